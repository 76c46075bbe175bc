"""The newest few checkpoints are kept, and the newest good one is found whatever happens to the others."""

import os
import random
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from leam_mm import files
from leam_mm.checkpoint import EVIDENCE, AtomicCheckpointIO, find_checkpoint, is_run, read_checkpoint, sound_checkpoint
from leam_mm.checkpoint_generations import generations
from leam_mm.errors import UserError


def content(step: int = 1) -> dict[str, Any]:
    state = {"w": torch.arange(300.0) + step}
    return {"state_dict": state, EVIDENCE: {"config": "model: {}", "samples_seen": 8 * step}, "global_step": step}


def save(folder: Path, *steps: int, keep: int = 2) -> Path:
    for step in steps:
        AtomicCheckpointIO(keep).save_checkpoint(content(step), folder / "last.ckpt")
    return folder / "last.ckpt"


def name(number: int, step: int) -> str:
    return f"generation-{number:06d}-samples-{8 * step:012d}.ckpt"


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def step_of(found: tuple[Path, dict[str, Any]] | None) -> int:
    assert found is not None
    return read_checkpoint(found[0])["global_step"]


def flip(path: Path, position: int = 1000) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 8
    path.write_bytes(data)


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_newest_few_are_kept_and_last_is_the_newest(tmp_path: Path, keep: int) -> None:
    last = save(tmp_path, 1, 2, 3, 4, 5, keep=keep)
    kept = range(6 - keep, 6)
    assert names(tmp_path) == [*(name(step, step) for step in kept), "last.ckpt"]
    assert last.samefile(tmp_path / name(5, 5)) and read_checkpoint(last)["global_step"] == 5
    assert [read_checkpoint(file)["global_step"] for file in generations(tmp_path)] == [*reversed(kept)]


def test_the_same_samples_again_replace_the_newest(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 2)
    assert names(tmp_path) == [name(1, 1), name(2, 2), "last.ckpt"]


def test_a_run_that_went_back_keeps_its_new_checkpoints(tmp_path: Path) -> None:
    save(tmp_path, 7, 8, 3, 4)  # resumed from a checkpoint of another folder
    assert names(tmp_path) == [name(3, 3), name(4, 4), "last.ckpt"]
    assert step_of(sound_checkpoint(tmp_path / "last.ckpt", replace=False)) == 4


def damages(generator: random.Random) -> dict[str, Callable[[Path], None]]:
    def truncated(file: Path) -> None:
        os.truncate(file, generator.randrange(1, file.stat().st_size))

    def flipped(file: Path) -> None:  # not in the mark, without which a file is one of an older version
        flip(file, generator.randrange(file.stat().st_size - 100))

    def empty(file: Path) -> None:
        os.truncate(file, 0)

    def missing(file: Path) -> None:
        if file.samefile(last := file.with_name("last.ckpt")):
            last.unlink()
        file.unlink()

    return {"truncated": truncated, "flipped": flipped, "empty": empty, "missing": missing}


@pytest.mark.parametrize("kind", ["truncated", "flipped", "empty", "missing"])
def test_of_25_damaged_last_checkpoints_each_gives_the_one_before(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage = damages(random.Random(kind))[kind]
    for attempt in range(25):
        last = save(tmp_path / str(attempt), 1, 2, 3)
        damage(generations(last.parent)[0])
        caplog.clear()
        assert step_of(sound_checkpoint(last, replace=False)) == 2
        assert step_of(sound_checkpoint(last, replace=True)) == 2
        lines = [line for line in caplog.messages if "resumes from the checkpoint before the last one" in line]
        assert len(lines) == 1 and "\n" not in lines[0] and name(2, 2) in lines[0] and str(last) in lines[0]
        assert names(last.parent) == [*(["damaged.ckpt"] if kind != "missing" else []), name(2, 2), "last.ckpt"]
        assert last.samefile(last.with_name(name(2, 2)))


@pytest.mark.parametrize("good", range(5))
def test_of_five_the_only_good_one_is_found(good: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    last = save(tmp_path, 1, 2, 3, 4, 5, keep=5)
    damage = damages(random.Random(good))
    for step, kind in zip([s for s in range(1, 6) if s != good + 1], damage.values(), strict=True):
        kind(tmp_path / name(step, step))
    assert step_of(sound_checkpoint(last, replace=True)) == good + 1
    assert step_of(sound_checkpoint(last, replace=True)) == good + 1
    assert sum("resumes from" in line for line in caplog.messages) == (good < 4)


def test_all_damaged_is_one_line(tmp_path: Path) -> None:
    last = tmp_path / "last.ckpt"
    assert sound_checkpoint(last, replace=True) is None
    save(tmp_path, 1, 2)
    for file in generations(tmp_path):
        flip(file)
    before = names(tmp_path)
    with pytest.raises(UserError, match=r"last\.ckpt cannot.*generation-000001.*cannot.*: remove ") as caught:
        sound_checkpoint(last, replace=True)
    assert "\n" not in str(caught.value) and names(tmp_path) == before
    named = re.search(rf": remove (.*) from {re.escape(str(tmp_path))} to start", str(caught.value))
    assert named is not None
    for each in named[1].split(", "):  # last.ckpt and the newest generation are one file
        (tmp_path / each).unlink()
    assert sound_checkpoint(last, replace=True) is None


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "notes").write_text("of somebody")


KINDS: dict[str, Callable[[Path], Any]] = {
    "folder": make_folder,
    "pipe": os.mkfifo,
    "loop": lambda path: path.symlink_to(path.name),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to a folder": lambda path: path.symlink_to(path.parent),
}
FOREIGN = [
    f"generation-{'9' * 20}-samples-1.ckpt",
    f"generation-{'9' * 225}.ckpt",
    name(99, 3),
    "generation-notes.shards",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("foreign", FOREIGN, ids=lambda path: path[:30])
def test_what_is_no_file_of_a_run_stays_and_hinders_no_save(
    foreign: str, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    KINDS[kind](tmp_path / foreign)
    assert sound_checkpoint(tmp_path / "last.ckpt", replace=True) is None
    for step in range(1, 6):
        save(tmp_path, step, keep=1)
        assert step_of(sound_checkpoint(tmp_path / "last.ckpt", replace=True)) == step
        left = set(names(tmp_path)) - {foreign}
        assert len(left) == 2 and "last.ckpt" in left, left
    assert os.path.lexists(tmp_path / foreign) and not caplog.messages
    assert kind != "folder" or (tmp_path / foreign / "notes").exists()


@pytest.mark.parametrize("number", ["9" * 20, "9" * 225])
def test_numbers_that_no_run_reaches_are_of_no_generation(number: str, tmp_path: Path) -> None:
    (tmp_path / f"generation-{number}.ckpt").write_text("")
    save(tmp_path, 1, 2)
    assert step_of(sound_checkpoint(tmp_path / "last.ckpt", replace=True)) == 2
    assert {name(1, 1), name(2, 2)} < set(names(tmp_path))


@pytest.mark.parametrize("taken", ["last.ckpt", "previous.ckpt", "damaged.ckpt"])
def test_a_folder_with_the_name_of_a_checkpoint_is_refused_before_training(taken: str, tmp_path: Path) -> None:
    make_folder(tmp_path / taken)
    with pytest.raises(UserError, match=f"{taken} is a folder.*: rename or remove it"):
        sound_checkpoint(tmp_path / "last.ckpt", replace=False)


def test_folders_of_older_versions_resume_and_become_generations(tmp_path: Path) -> None:
    for step, file in ((1, "previous.ckpt"), (2, "last.ckpt")):
        AtomicCheckpointIO().save_checkpoint(content(step), tmp_path / "made.ckpt")
        (tmp_path / "made.ckpt").rename(tmp_path / file)
    last = tmp_path / "last.ckpt"
    assert step_of(sound_checkpoint(last, replace=True)) == 2
    save(tmp_path, 3)
    assert names(tmp_path) == [name(1, 3), "last.ckpt", "previous.ckpt"]
    flip(last)
    assert step_of(sound_checkpoint(last, replace=False)) == 2  # the older version's last one
    flip(last)
    save(tmp_path, 4)
    assert names(tmp_path) == [name(1, 3), name(2, 4), "last.ckpt"]


def test_last_comes_back_if_a_kill_left_only_a_generation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    last = save(tmp_path / "checkpoints", 1)
    last.unlink()
    assert is_run(tmp_path) and find_checkpoint(tmp_path).name == name(1, 1) and "last.ckpt is missing" in caplog.text
    assert step_of(sound_checkpoint(last, replace=True)) == 1 and last.is_file()


@pytest.mark.parametrize("kinds", [("link",), ("link", "symlink")])
def test_disks_without_links_keep_two(
    kinds: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    for kind in kinds:
        monkeypatch.setattr(os, kind, unsupported)
    last = save(tmp_path, 1, 2, 3)
    if len(kinds) == 1:
        assert last.is_symlink() and names(tmp_path) == [name(2, 2), name(3, 3), "last.ckpt"]
    else:
        assert names(tmp_path) == ["last.ckpt", "previous.ckpt"]
    assert read_checkpoint(last)["global_step"] == 3
    flip(last)
    assert step_of(sound_checkpoint(last, replace=True)) == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert read_checkpoint(last)["global_step"] == 2 and "damaged.ckpt" in names(tmp_path)
    with pytest.raises(UserError, match="it is damaged"):
        read_checkpoint(tmp_path / "damaged.ckpt")
    save(tmp_path, 4)
    assert read_checkpoint(last)["global_step"] == 4


def test_a_save_killed_at_any_rename_leaves_the_older_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.replace, []

    def killed(*paths: Any) -> None:
        calls.append(paths)
        if len(calls) == stop:
            raise KeyboardInterrupt
        real(*paths)

    for stop in (1, 2):
        folder = tmp_path / str(stop)
        last = save(folder, 1, 2)
        calls.clear()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", killed)
            save(folder, 3)
        assert step_of(sound_checkpoint(last, replace=True)) == 2
        assert [read_checkpoint(file)["global_step"] for file in generations(folder)] == [[2, 1], [3, 2, 1]][stop - 1]
        save(folder, 4)
        assert step_of(sound_checkpoint(last, replace=True)) == 4 and len(generations(folder)) == 2


def test_an_old_one_that_cannot_be_removed_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(path: Path, **_: object) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    save(tmp_path, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refused)
        last = save(tmp_path, 3)
    assert "an old checkpoint stays, training continues" in caplog.text and name(1, 1) in caplog.text
    assert read_checkpoint(last)["global_step"] == 3 and len(generations(tmp_path)) == 3
    save(tmp_path, 4)
    assert len(generations(tmp_path)) == 2


def test_two_writers_leave_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.os, "getpid", lambda: 7)  # as on two hosts
    faults: list[BaseException] = []
    last = save(tmp_path, 1)
    writers = [threading.Thread(target=lambda n=n: save(tmp_path, *[n] * 30)) for n in (1, 2)]
    monkeypatch.setattr(threading, "excepthook", lambda given: faults.append(given.exc_value))
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        found = read_checkpoint(last)
        assert torch.equal(found["state_dict"]["w"], content(found["global_step"])["state_dict"]["w"])
    assert not faults and read_checkpoint(last)
