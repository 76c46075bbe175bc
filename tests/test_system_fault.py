"""leam_mm.system_fault: a full disk or a read-only folder is one line, and leaves the old result whole."""

import builtins
import errno
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import save_file
from toys.images import soft_jpeg
from toys.recipes import clip_recipe
from toys.runs import assert_same_run, last_checkpoint
from toys.shards import small_sample, write_samples
from toys.small_disk import fill, mounted

from leam_mm import cli
from leam_mm.callbacks.preemption import Preemption
from leam_mm.data.shard_index import ShardFolder
from leam_mm.errors import UserError, run
from leam_mm.files import atomic_folder, atomic_write, named_faults, write_text
from leam_mm.system_fault import fault_line, system_fault


def error_line(program: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    """The error line of a program that must fail."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run(program)
    text = capsys.readouterr().err
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert caught.value.code == 2 and len(lines) == 1 and "Traceback" not in text, text
    return lines[0]


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b: No space left on device: free space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a/b"), "a/b: Disk quota exceeded: free space in that quota"),
        (OSError(errno.EROFS, "Read-only file system", "a/b"), "a/b: Read-only file system: choose a folder"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "a/b: Permission denied: change its rights"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files: raise the limit of open files"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "use fewer, then start the same command"),
        (RuntimeError("can't start new thread"), "raise the limit of processes and threads"),
        (MemoryError(), "Cannot allocate memory: free memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: Cannot allocate memory"), "free mem"),
        (OSError("100 requested and 20 written"), "No space left on device"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"), "a/b: No such file or directory: check"),
    ],
)
def test_faults_become_one_line(error: Exception, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise error

    assert part in error_line(fail, capsys)


def test_a_cause_is_found_and_other_errors_are_none() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "file")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904 (as torch does)
    except RuntimeError as error:
        assert system_fault(error).filename == "file"  # type: ignore[union-attr]
    assert fault_line(ValueError("x")) is None and fault_line(KeyError("No")) is None


def test_errors_without_a_name_get_one(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device: '.*/out.txt'"), named_faults(tmp_path / "out.txt"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(UserError, match="mine"), named_faults(tmp_path):
        raise UserError("mine: Permission denied")


def test_a_fault_in_a_thread_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "events")

    def start() -> None:
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()

    before = threading.excepthook
    run(start)
    threading.excepthook = before
    text = capsys.readouterr().err
    assert text.startswith("warning: events: No space left") and "Traceback" not in text


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    with mounted(tmp_path / "disk", 1) as folder:
        yield folder


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("x" * 50_000),
    "torch": lambda path: torch.save({"a": torch.zeros(20_000)}, open(path, "wb")),  # noqa: SIM115
    "safetensors": lambda path: save_file({"a": torch.zeros(20_000)}, path),
    "numpy": lambda path: np.save(open(path, "wb"), np.zeros(20_000)),  # noqa: SIM115
    "parquet": lambda path: pq.write_table(pa.table({"a": np.random.default_rng(0).random(20_000)}), path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_library_on_a_full_disk(writer: str, small_disk: Path) -> None:
    path = small_disk / "result"
    write_text(path, "old")
    (small_disk / "folder").mkdir()
    write_text(small_disk / "folder" / "old", "old")
    filler = fill(small_disk)
    with pytest.raises(OSError, match="No space left on device") as caught, atomic_write(path) as temporary:
        WRITERS[writer](temporary)
    assert caught.value.filename.startswith(str(path))
    with pytest.raises(OSError, match="No space"), atomic_folder(small_disk / "folder") as folder:
        WRITERS[writer](folder / "new")
    assert path.read_text() == "old" and (small_disk / "folder" / "old").read_text() == "old"
    assert {one.name for one in small_disk.iterdir()} == {"result", "folder", "filler"}
    filler.unlink()
    with atomic_write(path) as temporary:
        WRITERS[writer](temporary)


def refuse_writing(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let all writing below a folder fail, where no small disk can be mounted."""
    original = builtins.open

    def full(file: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
        if isinstance(file, str | os.PathLike) and set(mode) & set("wax+") and str(file).startswith(str(folder)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        return original(file, mode, *more, **options)

    monkeypatch.setattr(builtins, "open", full)


@pytest.mark.parametrize("freed", [True, False])
def test_training_survives_a_full_disk(
    freed: bool,
    tmp_path: Path,
    toy_shards: Path,
    toy_tokenizer: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fit(name: str) -> None:
        recipe = clip_recipe(tmp_path / name, toy_shards, toy_tokenizer)
        del recipe["trainer"]["logger"]
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        cli.main(["fit", "--config", str(tmp_path / "recipe.yaml")])

    def disturb(self: Preemption, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 3:
            refuse_writing(disk, tmp_path / "broken")
        if trainer.global_step == 5 and freed:
            disk.undo()

    fit("whole")
    disk = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setattr(Preemption, "on_before_optimizer_step", disturb, raising=False)
        if freed:
            with pytest.warns(UserWarning, match=r"no checkpoint is saved, .*generation-.*No space left on device"):
                fit("broken")
        else:
            line = error_line(lambda: fit("broken"), capsys)
            disk.undo()
            assert "generation-" in line and "No space left on device: free space" in line
            assert last_checkpoint(tmp_path / "broken")["global_step"] == 2
    if not freed:
        fit("broken")
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    assert (tmp_path / "whole" / "metrics.csv").read_text().count("\n") == (
        (tmp_path / "broken" / "metrics.csv").read_text().count("\n")
    )


def vet(tmp_path: Path, output: Path) -> Callable[[], object]:
    from data_tools.vet_shards import main

    if not (tmp_path / "shards").exists():
        write_samples(tmp_path / "shards", [small_sample(number, image=soft_jpeg(number)) for number in range(12)])
    rules = tmp_path / "rules.yaml"
    rule = {"class_path": "data_tools.vetting.caption_quality.CaptionQuality"}
    rules.write_text(yaml.safe_dump({"rules": [rule]}))
    words = ["--shards", tmp_path / "shards", "--rules", rules, "--output", output, "--processes", "1", "--materialise"]
    return lambda: main([str(word) for word in words])


def test_data_program_on_a_full_disk(small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = small_disk / "vetted"
    filler = fill(small_disk)
    line = error_line(vet(tmp_path, output), capsys)
    assert str(small_disk) in line and "No space left on device: free space" in line
    assert not output.exists()
    filler.unlink()
    vet(tmp_path, output)()
    assert ShardFolder(output).samples == 12


def test_data_program_in_a_read_only_folder(
    small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = vet(tmp_path, small_disk / "vetted")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "Read-only file system: choose a folder" in error_line(program, capsys)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    program()
    assert ShardFolder(small_disk / "vetted").samples == 12
