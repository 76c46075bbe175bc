"""Latent shards by several processes and after kills have the same bytes as those of one undisturbed process."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from toys.command_line import encode_latents
from toys.shards import write_toy_shards

from data_tools import encode_latents as program
from data_tools.latents.latent_jobs import Job, merge_statistics, prefetch, read_rows
from leam_mm.codecs.latent_codec import LatentStatistics
from leam_mm.data.shard_index import ShardFolder, ShardWriter, read_samples
from leam_mm.errors import UserError

ROOT = Path(program.__file__).parents[1]
MORE = ("--image-size", "8", "--image-size", "16", "--features")


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_rows_are_the_samples_of_the_folder(toy_shards: Path) -> None:
    folder, everything = ShardFolder(toy_shards), list(read_samples(toy_shards))
    for rows in ([0, 19, 20, 21, 95], [40], list(range(96)), []):
        assert list(read_rows(folder, np.array(rows, int))) == [everything[row] for row in rows]


def test_prefetch_keeps_its_order_and_its_errors() -> None:
    def numbers() -> object:
        yield from range(5)
        raise UserError("the end")

    seen = []
    with pytest.raises(UserError, match="the end"):
        seen.extend(prefetch(numbers()))  # type: ignore[arg-type]
    assert seen == [0, 1, 2, 3, 4] or seen == []
    assert list(prefetch(iter("abc"))) == ["a", "b", "c"] and list(prefetch(iter(()))) == []


def test_statistics_are_merged_in_the_order_of_shards(tmp_path: Path) -> None:
    torch.manual_seed(0)
    latents = torch.randn(12, 3, 2, 2, dtype=torch.float64)
    jobs = [Job("", number, (8, 8), np.arange(4), tmp_path / f"{number:05d}", 2) for number in range(3)]
    for number in (2, 0, 1):  # whoever is first
        jobs[number].encoded.mkdir()
        for batch in (1, 0):
            part = LatentStatistics.of(latents[4 * number + 2 * batch : 4 * number + 2 * batch + 2])
            moments = {"count": part.count, "mean": part.mean.numpy(), "deviation": part.deviation.numpy()}
            np.savez(jobs[number].encoded / f"{batch:05d}.npz", **moments)
    merged, whole = merge_statistics(jobs), LatentStatistics.of(latents)
    assert merged.count == whole.count
    np.testing.assert_allclose(merged.mean.numpy(), whole.mean.numpy(), rtol=1e-12)
    np.testing.assert_allclose(merged.std.numpy(), whole.std.numpy(), rtol=1e-12)
    in_order = LatentStatistics.of(latents[:2])
    for first in range(2, 12, 2):
        in_order = in_order.merge(LatentStatistics.of(latents[first : first + 2]))
    assert torch.equal(merged.deviation, in_order.deviation) and torch.equal(merged.mean, in_order.mean)


class Killed(BaseException):
    """Nothing in the program catches it."""


def test_a_kill_at_any_rename_loses_nothing(
    tmp_path: Path, toy_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = write_toy_shards(tmp_path / "shards", samples=5, samples_per_shard=2)
    more = (*MORE, str(toy_checkpoints["clip"]))
    encode_latents(shards, toy_checkpoints, tmp_path / "whole", *more)
    expected = content(tmp_path / "whole")
    given = ["--shards", str(shards), *[t for n, p in toy_checkpoints.items() for t in (f"--{n}", str(p))], *more]
    options = program.parse([*given, "--batch-size", "7", "--output", str(tmp_path / "none")])
    opened = program.open_encoder(options, torch.device("cpu"))  # once: it takes longer than all the rest
    monkeypatch.setattr(program, "open_encoder", lambda *_: opened)
    replace, remove, left = os.replace, shutil.rmtree, [0]

    def dying_replace(source: Path, target: Path) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        replace(source, target)

    def dying_remove(path: Path, ignore_errors: bool = False) -> None:
        left[0] -= 1
        if left[0] == 0:  # a kill during a removal leaves a part
            for file in [file for file in sorted(Path(path).rglob("*")) if file.is_file()][:1]:
                file.unlink()
            raise Killed
        remove(path, ignore_errors=ignore_errors)

    ends = 0
    for step in range(1, 200, 4):
        output = tmp_path / f"out{step}"
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying_replace)
            patch.setattr(shutil, "rmtree", dying_remove)
            left[0] = step
            try:
                encode_latents(shards, toy_checkpoints, output, *more)
                break
            except Killed:
                ends += 1
        encode_latents(shards, toy_checkpoints, output, *more)
        assert content(output) == expected and not list(tmp_path.glob(f"out{step}.*"))
        remove(output)
    assert ends > 10


def start(shards: Path, toy_checkpoints: dict[str, Path], output: Path, processes: int, *more: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "data_tools/encode_latents.py"), "--shards", str(shards)]
    command += [text for name, value in toy_checkpoints.items() for text in (f"--{name}", str(value))]
    command += ["--output", str(output), "--batch-size", "7", "--processes", str(processes), *more]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_killed_and_resumed_runs_write_the_same_bytes(tmp_path: Path, toy_checkpoints: dict[str, Path]) -> None:
    shards = write_toy_shards(tmp_path / "shards", samples=40, samples_per_shard=4)
    began = time.monotonic()
    encode_latents(shards, toy_checkpoints, tmp_path / "whole")
    lasted, kills = time.monotonic() - began, 0
    for share in (0.3, 0.5, 0.6):
        child = os.fork()
        if child == 0:
            try:
                encode_latents(shards, toy_checkpoints, tmp_path / "out")
            finally:
                os._exit(0)
        time.sleep(share * lasted)
        os.kill(child, signal.SIGKILL)
        kills += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    encode_latents(shards, toy_checkpoints, tmp_path / "out")
    assert kills and content(tmp_path / "out") == content(tmp_path / "whole") and not list(tmp_path.glob("out.*"))


@pytest.mark.slow
def test_two_killed_processes_and_a_resumed_one_write_the_same_bytes(
    tmp_path: Path, toy_checkpoints: dict[str, Path]
) -> None:
    shards = write_toy_shards(tmp_path / "shards", samples=300, samples_per_shard=4)
    encode_latents(shards, toy_checkpoints, tmp_path / "whole", "--image-size", "32")
    work, killed = tmp_path / "out.partial" / "work" / "shards", None
    running = start(shards, toy_checkpoints, tmp_path / "out", 2, "--image-size", "32")
    while running.poll() is None:
        if len(list(work.glob("*/manifest.jsonl"))) >= 3:
            killed = psutil.Process(running.pid).children(recursive=True)
            running.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    output, _ = running.communicate(timeout=60)
    assert killed is not None, output
    assert len(killed) >= 2
    _, alive = psutil.wait_procs(killed, timeout=20)
    assert not alive  # workers end with their parent
    assert not (tmp_path / "out").exists()
    said = encode_latents(shards, toy_checkpoints, tmp_path / "out", "--image-size", "32")
    assert "continuing after" in said
    assert content(tmp_path / "out") == content(tmp_path / "whole") and not list(tmp_path.glob("out.*"))


@pytest.mark.slow
def test_three_processes_write_the_bytes_of_one(tmp_path: Path, toy_checkpoints: dict[str, Path]) -> None:
    shards = write_toy_shards(tmp_path / "shards", samples=400, samples_per_shard=6)
    more = (*MORE, str(toy_checkpoints["clip"]))
    encode_latents(shards, toy_checkpoints, tmp_path / "whole", *more)
    running = start(shards, toy_checkpoints, tmp_path / "three", 3, *more)
    output, _ = running.communicate(timeout=280)
    assert running.returncode == 0, output
    assert content(tmp_path / "three") == content(tmp_path / "whole")


def damaged_shards(folder: Path) -> Path:
    """Eight samples, of which number 4 has no readable image, and number 6 no captions."""
    samples = list(read_samples(write_toy_shards(folder.with_name("whole"), samples=8, samples_per_shard=4)))
    with ShardWriter(folder, 4) as writer:
        for number, (key, members) in enumerate(samples):
            broken = {4: {"png": b"no image"}, 6: {"json": b"{}"}}.get(number, {})
            writer.write(key, members | broken)
    return folder


@pytest.mark.parametrize("more", [(), ("--buckets",), ("--verify",)])
def test_samples_that_cannot_be_read_are_left_out_and_recorded(
    more: tuple[str, ...], tmp_path: Path, toy_checkpoints: dict[str, Path]
) -> None:
    shards = damaged_shards(tmp_path / "shards")
    encode_latents(shards, toy_checkpoints, tmp_path / "latents", *more)
    output = tmp_path / "latents"
    folders = [path.parent for path in sorted(output.rglob("manifest.jsonl"))]
    keys = sorted(key for folder in folders for key, _ in read_samples(folder))
    assert keys == [f"{number:06d}" for number in (0, 1, 2, 3, 5, 7)]
    rows = pq.read_table(output / "ledger.parquet").to_pylist()
    assert [(row["key"], row["rule"], row["value"], row["kept"]) for row in rows] == [
        ("000004", "sample", "4", False),
        ("000006", "sample", "6", False),
    ]
    assert "unreadable image" in rows[0]["reason"] and "captions" in rows[1]["reason"]
    statistics = (tmp_path / "latents" / "codec_statistics.json").read_text()
    encode_latents(shards, toy_checkpoints, tmp_path / "again", "--statistics", str(output))
    assert (tmp_path / "again" / "codec_statistics.json").read_text() == statistics


def test_more_processes_than_gpus_are_refused(
    tmp_path: Path, toy_checkpoints: dict[str, Path], toy_shards: Path
) -> None:
    more = ["--device", "cuda", "--processes", "99"]
    given = ["--shards", str(toy_shards), *[t for n, p in toy_checkpoints.items() for t in (f"--{n}", str(p))]]
    options = program.parse([*given, "--output", str(tmp_path / "out"), *more])
    with pytest.raises(UserError, match="visible here; give fewer --processes"):
        program.encode_latents(options, Console(file=io.StringIO()))
