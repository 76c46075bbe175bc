"""A save in the background writes the bytes of a save in step with training, one at a time, and ends no run."""

import errno
import os
import textwrap
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toys.command_line import fit_here
from toys.recipes import clip_recipe
from toys.runs import SignalAt, assert_equal, assert_same_run, killer, run_training, with_callbacks

from leam_mm.callbacks.asynchronous_save import AsynchronousCheckpointIO, HostCopy
from leam_mm.callbacks.preemption import EXIT_CODE, Preemption
from leam_mm.checkpoint import EVIDENCE, AtomicCheckpointIO, read_checkpoint
from leam_mm.checkpoint_generations import generations


def content(step: int = 1) -> dict[str, Any]:
    whole = torch.arange(4000.0) + step
    image = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    state: Any = OrderedDict(w=whole, tied=whole, part=whole[100:200], kernel=image, half=image.bfloat16(), none=None)
    state._metadata = OrderedDict({"": {"version": 1}})
    moments = {0: {"step": torch.tensor(float(step)), "empty": torch.zeros(0), "turned": torch.rand(3, 5).t()}}
    evidence = {"config": "model: {}", "samples_seen": step}
    return {"state_dict": state, "optimizer_states": [{"state": moments}], EVIDENCE: evidence, "global_step": step}


class Disk:
    """A disk whose flushes wait until it is released; then they fail, if it has a fault."""

    def __init__(self) -> None:
        self.reached, self.released, self.fault = threading.Event(), threading.Event(), 0
        self.flush = os.fsync

    def fsync(self, descriptor: int) -> None:
        self.reached.set()
        assert self.released.wait(60)
        if self.fault:
            raise OSError(self.fault, os.strerror(self.fault))
        self.flush(descriptor)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk()
    monkeypatch.setattr(os, "fsync", made.fsync)
    yield made
    made.released.set()


def test_the_file_has_the_bytes_of_a_save_in_step(tmp_path: Path) -> None:
    made, writer = content(), AsynchronousCheckpointIO()
    AtomicCheckpointIO().save_checkpoint(made, tmp_path / "one" / "last.ckpt")
    for _ in range(2):  # into new buffers, and into those of the first
        writer.save_checkpoint(made, tmp_path / "two" / "last.ckpt")
        assert writer.finish() and writer.failure is None
        assert (tmp_path / "two" / "last.ckpt").read_bytes() == (tmp_path / "one" / "last.ckpt").read_bytes()
    assert_equal(read_checkpoint(tmp_path / "two"), made, "checkpoint")


def test_a_copy_shares_nothing_and_its_memory_is_used_again() -> None:
    made, copier = content(), HostCopy()
    copied = copier(made)
    assert_equal(copied, made, "copy")
    assert copied["state_dict"]["tied"] is copied["state_dict"]["w"]
    place = copied["state_dict"]["w"].data_ptr()
    assert copied["state_dict"]["part"].data_ptr() == place + 400 and place != made["state_dict"]["w"].data_ptr()
    made["state_dict"]["w"].add_(1.0)
    made[EVIDENCE]["samples_seen"] = 5
    assert copied["state_dict"]["w"][0] == 1.0 and copied[EVIDENCE]["samples_seen"] == 1
    again = copier(made)
    assert again["state_dict"]["w"].data_ptr() == place and again["state_dict"]["w"][0] == 2.0
    wider = copier({"state_dict": {"w": torch.ones(5), "v": torch.ones(7000)}})
    assert_equal(wider, {"state_dict": {"w": torch.ones(5), "v": torch.ones(7000)}}, "other layout")


def test_training_changes_weights_while_the_old_ones_are_written(tmp_path: Path, disk: Disk) -> None:
    made, writer = content(), AsynchronousCheckpointIO()
    writer.save_checkpoint(made, tmp_path / "last.ckpt")
    assert disk.reached.wait(60) and not (tmp_path / "last.ckpt").exists()
    made["state_dict"]["w"].zero_()
    made["global_step"] = 9
    disk.released.set()
    assert writer.finish()
    found = read_checkpoint(tmp_path / "last.ckpt")
    assert found["global_step"] == 1 and found["state_dict"]["w"][-1] == 4000.0


def test_saves_do_not_overlap_and_one_that_is_late_is_waited_for(tmp_path: Path, disk: Disk) -> None:
    writer, last = AsynchronousCheckpointIO(patience=0.05), tmp_path / "last.ckpt"
    writer.save_checkpoint(content(1), last)
    assert disk.reached.wait(60)
    threading.Timer(0.5, disk.released.set).start()
    with pytest.warns(UserWarning, match=r"still being written after 0\.05 s: training waits"):
        writer.save_checkpoint(content(2), last)
    assert read_checkpoint(last)["global_step"] == 2  # complete when the call returns
    assert [read_checkpoint(file)["global_step"] for file in generations(tmp_path)] == [2, 1]
    writer.save_checkpoint(content(3), last)
    writer.teardown()
    assert read_checkpoint(last)["global_step"] == 3


def test_a_fault_in_the_background_is_a_warning_and_the_next_save_works(tmp_path: Path, disk: Disk) -> None:
    writer, last = AsynchronousCheckpointIO(), tmp_path / "last.ckpt"
    disk.released.set()
    writer.save_checkpoint(content(1), last)
    assert writer.finish()
    for fault, line in ((errno.EIO, "Input/output error: check the disk"), (errno.ELOOP, "OSError: .*symbolic links")):
        disk.fault = fault
        with pytest.warns(UserWarning, match=f"no checkpoint is saved, training continues and tries .*{line}"):
            writer.save_checkpoint(content(2), last)
            assert writer.finish()
        assert writer.failure is not None and read_checkpoint(last)["global_step"] == 1
    disk.fault = 0
    writer.save_checkpoint(content(3), last)
    assert writer.finish() and writer.failure is None and read_checkpoint(last)["global_step"] == 3


def test_without_memory_for_a_copy_the_save_is_in_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, last = AsynchronousCheckpointIO(), tmp_path / "last.ckpt"

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: Error code 12 (Cannot allocate memory)")

    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="written in step with training: Cannot alloc"):
        patch.setattr(HostCopy, "_buffer", full)
        writer.save_checkpoint(content(1), last)
    assert read_checkpoint(last)["global_step"] == 1
    writer.save_checkpoint(content(2), last)
    assert writer.finish() and read_checkpoint(last)["global_step"] == 2


def recipe_of(run: Path, shards: Path, tokenizer: Path, asynchronous: bool = True) -> dict:
    made = clip_recipe(run, shards, tokenizer, max_samples=48)
    made["checkpoint"] |= {"asynchronous": asynchronous, "keep": 3}
    return made


def test_an_asynchronous_run_equals_the_other_and_resumes(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    for name in ("in_step", "background", "resumed"):
        fit_here(recipe_of(tmp_path / name, toy_shards, toy_tokenizer, name != "in_step"), tmp_path / f"{name}.recipe")
    assert_same_run(tmp_path / "in_step", tmp_path / "background")
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint"]
    pairs = zip(*(generations(tmp_path / name / "checkpoints") for name in ("in_step", "background")), strict=True)
    for one, two in pairs:  # of each step
        first, second = read_checkpoint(one), read_checkpoint(two)
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
            assert_equal(second[part], first[part], part)
    folder = tmp_path / "resumed" / "checkpoints"
    middle = generations(folder)[1]
    assert read_checkpoint(middle)["global_step"] == 4
    middle.rename(tmp_path / "middle.ckpt")
    for file in folder.iterdir():
        file.unlink()
    (tmp_path / "middle.ckpt").rename(folder / "last.ckpt")
    fit_here(recipe_of(tmp_path / "resumed", toy_shards, toy_tokenizer), tmp_path / "resumed.recipe")
    assert_same_run(tmp_path / "in_step", tmp_path / "resumed")


def released_at(disk: Disk, step: int) -> Callable[..., None]:
    def note(self: Preemption, trainer: Any, *_: Any) -> None:
        if trainer.global_step == step:
            assert disk.reached.wait(60)
            threading.Timer(0.3, disk.released.set).start()

    return note


def test_a_signal_waits_for_the_file(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Preemption, "on_before_optimizer_step", released_at(disk, 3), raising=False)
    recipe = recipe_of(tmp_path / "run", toy_shards, toy_tokenizer)
    recipe["trainer"]["callbacks"] = [{"class_path": "toys.runs.SignalAt", "init_args": {"step": 5}}]
    assert SignalAt.__module__ == "toys.runs"
    with pytest.raises(SystemExit) as caught:
        fit_here(recipe, tmp_path)
    assert caught.value.code == EXIT_CODE
    assert [read_checkpoint(file)["global_step"] for file in generations(tmp_path / "run" / "checkpoints")] == [5, 4, 2]


SLOW_DISK = """
    import os, time
    from lightning.pytorch import Callback

    class SlowDisk(Callback):
        def on_before_optimizer_step(self, trainer, *_):
            if trainer.global_step == 3:  # the save after the next step is not complete when the run is killed
                os.fsync = lambda descriptor: time.sleep(600)
"""


@pytest.mark.slow
def test_a_run_killed_during_a_background_write_resumes_from_the_one_before(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "slow_disk.py").write_text(textwrap.dedent(SLOW_DISK))
    recipe = recipe_of(tmp_path / "broken", toy_shards, toy_tokenizer)
    recipe["checkpoint"]["patience"] = 0.0
    disturbed = with_callbacks(recipe, {"class_path": "slow_disk.SlowDisk"}, killer(5))
    assert run_training(disturbed, tmp_path / "broken").returncode == -9
    folder = tmp_path / "broken" / "checkpoints"
    assert list(folder.glob("*.tmp-*")) and read_checkpoint(folder)["global_step"] == 2
    fit_here(recipe, tmp_path / "recipe")
    fit_here(recipe_of(tmp_path / "whole", toy_shards, toy_tokenizer), tmp_path / "recipe")
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    assert not list(folder.glob("*.tmp-*"))


def test_patience_is_checked(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    recipe = recipe_of(tmp_path / "run", toy_shards, toy_tokenizer)
    for name, value in (("patience", -1.0), ("keep", 0)):
        wrong = yaml.safe_load(yaml.safe_dump(recipe))
        wrong["checkpoint"][name] = value
        with warnings.catch_warnings(), pytest.raises(Exception, match=name):
            fit_here(wrong, tmp_path)
