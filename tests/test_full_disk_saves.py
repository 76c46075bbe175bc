"""A full disk during a save ends no run and takes no good checkpoint; the next save with room succeeds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toys.command_line import fit_here
from toys.recipes import clip_recipe
from toys.runs import assert_same_run
from toys.small_disk import fill, mounted

from leam_mm.callbacks.asynchronous_save import AsynchronousCheckpointIO
from leam_mm.callbacks.preemption import Preemption
from leam_mm.callbacks.save_failures import RetriedCheckpointIO
from leam_mm.checkpoint import EVIDENCE, read_checkpoint
from leam_mm.checkpoint_generations import generations

SIZE = 200_000  # bytes of a checkpoint
WRITERS = [RetriedCheckpointIO, AsynchronousCheckpointIO]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB, with room for five checkpoints."""
    with mounted(tmp_path / "disk", 1) as folder:
        yield folder


def save(writer: RetriedCheckpointIO, folder: Path, step: int, size: int = SIZE) -> None:
    state = {"w": torch.full((size // 4,), float(step))}
    evidence = {"config": "model: {}", "samples_seen": step}
    writer.save_checkpoint({"state_dict": state, EVIDENCE: evidence, "global_step": step}, folder / "last.ckpt")
    writer.finish()


def steps(folder: Path) -> list[int]:
    return [read_checkpoint(file)["global_step"] for file in generations(folder)]


@pytest.mark.parametrize("kind", WRITERS)
def test_old_ones_make_room_but_never_the_only_good_one(kind: type[RetriedCheckpointIO], disk: Path) -> None:
    writer = kind(2)
    for step in (1, 2):
        save(writer, disk, step)
    fill(disk, left=SIZE // 2)
    with pytest.warns(UserWarning, match=r"no room for a new checkpoint beside the old ones: the newest stays, .*0001"):
        save(writer, disk, 3)
    assert steps(disk) == [3, 2] and writer.failure is None
    filler = fill(disk)
    with pytest.warns(UserWarning, match=r"no checkpoint is saved, .*No space left on device: free space"):
        save(writer, disk, 4, 2 * SIZE)
    assert steps(disk) == [3] and read_checkpoint(disk / "last.ckpt")["global_step"] == 3 and writer.failure
    with pytest.warns(UserWarning, match="no checkpoint is saved"):
        save(writer, disk, 5, 2 * SIZE)
    assert steps(disk) == [3]
    assert {file.suffix for file in disk.iterdir()} == {".ckpt", ""}  # no unfinished file
    filler.unlink()
    save(writer, disk, 6, 2 * SIZE)
    assert steps(disk) == [6, 3] and writer.failure is None


def test_the_newest_good_one_stays_when_a_newer_one_is_damaged(disk: Path) -> None:
    writer = RetriedCheckpointIO(3)
    for step in (1, 2, 3):
        save(writer, disk, step)
    with open(disk / "last.ckpt", "rb+") as file:
        file.seek(SIZE // 2)
        file.write(b"damage")
    fill(disk)
    with pytest.warns(UserWarning, match="the newest stays, and generation-000001-samples-000000000001.ckpt made room"):
        save(writer, disk, 4)
    assert [file.name[:17] for file in generations(disk)] == [f"generation-{number:06d}" for number in (4, 3, 2)]
    assert all(read_checkpoint(generations(disk)[number])["global_step"] == step for number, step in ((0, 4), (2, 2)))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_run_goes_on_and_saves_once_there_is_room(
    asynchronous: bool, tmp_path: Path, toy_shards: Path, toy_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recipe(name: str) -> dict[str, Any]:
        made = clip_recipe(tmp_path / name, toy_shards, toy_tokenizer)
        made["checkpoint"] |= {"asynchronous": asynchronous}
        return made

    def disturb(self: Preemption, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 3:
            fillers.append(fill(tmp_path / "broken"))
        if trainer.global_step == 5:
            trainer.strategy.checkpoint_io.finish()
            assert read_checkpoint(tmp_path / "broken")["global_step"] == 2
            fillers.pop().unlink()

    fillers: list[Path] = []
    fit_here(recipe("whole"), tmp_path / "recipe")
    with mounted(tmp_path / "broken", 8):
        monkeypatch.setattr(Preemption, "on_before_optimizer_step", disturb, raising=False)
        with pytest.warns(UserWarning, match=r"no checkpoint is saved, .*No space left on device"):
            fit_here(recipe("broken"), tmp_path / "recipe")
        assert not fillers and steps(tmp_path / "broken" / "checkpoints") == [8, 6]
        assert_same_run(tmp_path / "whole", tmp_path / "broken")
