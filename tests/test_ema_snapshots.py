"""Snapshots of averages: when, what, and the same after an interruption."""

import errno
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Subset
from toys.generators import SignLatents, generator_module
from toys.recipes import codec_section, generator_section
from toys.runs import assert_same_run, run_training, with_kill

from leam_mm.callbacks import ema_snapshots
from leam_mm.callbacks.ema_snapshots import FOLDER, EmaSnapshots, Snapshot, read_snapshots, write_snapshot
from leam_mm.data.batch import SamplePosition, collate_samples
from leam_mm.diffusion_module import LatentDiffusionModule
from leam_mm.errors import UserError
from leam_mm.optim.power_ema import PowerEma, PowerFunction
from leam_mm.optim.sharding import shard_blocks

BATCH = 16


class Stop(Callback):
    """Ends a training in the midst, after everything else of the step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


class Data(LightningDataModule):
    """Samples in order from the position on."""

    micro_batch_size = BATCH

    def train_dataloader(self) -> DataLoader:
        seen = next(c.samples_seen for c in self.trainer.callbacks if isinstance(c, SamplePosition))  # type: ignore
        rest = Subset(SignLatents(4096), range(seen, 4096))
        return DataLoader(rest, batch_size=BATCH, collate_fn=collate_samples)


def train(folder: Path, steps: int, every: int, stop: int = 0, resume: Path | None = None) -> LatentDiffusionModule:
    module = generator_module(ema=PowerFunction((0.1, 0.05)))
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    callbacks = [SamplePosition(), EmaSnapshots(every), *([Stop(stop)] if stop else [])]
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        default_root_dir=folder,
        callbacks=callbacks,
        enable_checkpointing=False,
        **quiet,
    )
    try:
        trainer.fit(module, datamodule=Data(), ckpt_path=resume, weights_only=True)
    except (SystemExit, KeyboardInterrupt):
        trainer.save_checkpoint(folder / "stopped.ckpt")
    return module


def samples(folder: Path) -> list[int]:
    return [snapshot.samples for _, snapshot in read_snapshots(folder)]


def test_snapshots_come_with_the_samples_and_at_the_end(tmp_path: Path) -> None:
    module = train(tmp_path, steps=11, every=40)
    # 16 samples a step: 48 is the first step beyond 40, 80 beyond 80, 128 beyond 120, 160 fills 160; 176 is the end.
    assert samples(tmp_path) == [48, 80, 128, 160, 176]
    path, last = read_snapshots(tmp_path)[-1]
    assert last == Snapshot(176, 11, (0.1, 0.05))
    assert isinstance(module.ema, PowerEma)
    held = load_file(path)
    for number, average in enumerate(module.ema.copies()):
        for name, value in average.named_parameters():
            assert torch.equal(held.pop(f"{number}.{name}"), value)
    assert not held
    assert module.ema_denoiser() is module.ema.model
    assert not list((tmp_path / FOLDER).glob("*.tmp*"))


def test_an_interrupted_run_writes_the_same_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path / "whole", steps=12, every=32)
    train(tmp_path / "broken", steps=12, every=32, stop=5)
    # What a run killed after its checkpoint leaves: later snapshots, and one that was being written.
    folder = tmp_path / "broken" / FOLDER
    (folder / "000000000128.safetensors").write_bytes(b"torn")
    (folder / "000000000160.safetensors.tmp-1").write_bytes(b"torn")
    with caplog.at_level("INFO"):
        train(tmp_path / "broken", steps=12, every=32, resume=tmp_path / "broken" / "stopped.ckpt")
    assert "1 snapshots after sample 80 are removed" in caplog.text
    whole, broken = (read_snapshots(tmp_path / name) for name in ("whole", "broken"))
    assert [path.name for path, _ in whole] == [path.name for path, _ in broken] and len(whole) == 6
    for (one, _), (other, _) in zip(whole, broken, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert len(list(folder.iterdir())) == 6


def test_a_full_disk_ends_no_run_and_the_snapshot_comes_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full, attempts = {80, 96, 176}, []
    save = ema_snapshots.save_file

    def limited(tensors: Any, path: Path, metadata: dict[str, str]) -> None:
        attempts.append(int(path.name.partition(".")[0]))
        if attempts[-1] in full:
            path.write_bytes(b"torn")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path, metadata)

    monkeypatch.setattr(ema_snapshots, "save_file", limited)
    with (
        pytest.warns(UserWarning, match=r"training continues and tries again: .*80\.safetensors cannot be written"),
        pytest.raises(UserError, match=r"176\.safetensors cannot be written .* make room"),
    ):
        train(tmp_path, steps=11, every=40)
    assert attempts == [48, 80, 96, 112, 128, 160, 176] and samples(tmp_path) == [48, 112, 128, 160]
    assert not list((tmp_path / FOLDER).glob("*.tmp*"))
    train(tmp_path / "whole", steps=7, every=1000)
    name = f"{112:012d}.safetensors"
    whole, late = ((folder / FOLDER / name).read_bytes() for folder in (tmp_path / "whole", tmp_path))
    assert whole == late
    again = EmaSnapshots(40)
    again.load_state_dict({"seen": 80, "again": 84})
    assert again.state_dict() == {"seen": 80, "again": 84}
    again.load_state_dict({"seen": 96})  # of an older checkpoint
    assert again.state_dict() == {"seen": 96, "again": None}


def test_sharded_averages_are_gathered_whole(mesh: Any, tmp_path: Path) -> None:
    from leam_mm.callbacks.ema_snapshots import gather

    module = generator_module(ema=PowerFunction((0.05, 0.1)))
    assert isinstance(module.ema, PowerEma)
    plain = {name: value.clone() for name, value in gather(module.ema).items()}
    for network in (module.denoiser, *module.ema.copies()):
        shard_blocks(network, mesh)
    with torch.no_grad():
        for value in module.denoiser.parameters():
            value.add_(1.0)
    module.ema.update(module.denoiser)
    found = gather(module.ema)
    assert found.keys() == plain.keys()
    for name, value in found.items():
        assert type(value) is torch.Tensor
        torch.testing.assert_close(value, plain[name] + 1)


def test_wrong_uses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 1"):
        EmaSnapshots(0)
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False)
    with pytest.raises(UserError, match="PowerFunction"):
        EmaSnapshots(8).on_train_start(trainer, generator_module())
    with pytest.raises(UserError, match="no snapshots"):
        read_snapshots(tmp_path)
    path = write_snapshot(tmp_path / FOLDER, Snapshot(3, 1, (0.05,)), {"0.weight": torch.ones(2)})
    assert read_snapshots(tmp_path) == [(path, Snapshot(3, 1, (0.05,)))]
    whole = path.read_bytes()
    for damaged in (
        whole[:40],
        whole[:-3] + bytes([whole[-3] ^ 8]) + whole[-2:],
        whole.replace(b'"updates', b'"updates'[::-1]),
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"000000000003\.safetensors is damaged, or not a snapshot"):
            read_snapshots(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_snapshot(tmp_path / "file", Snapshot(3, 1, (0.05,)), {"0.weight": torch.ones(2)})


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_snapshots_after_a_kill_are_those_of_an_undisturbed_run(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    from toys.recipes import clip_recipe

    clip = clip_recipe(tmp_path / "clip", toy_shards, toy_tokenizer, max_samples=8)
    codec = {**clip_recipe(tmp_path / "codec", toy_shards, toy_tokenizer, max_samples=8), "model": codec_section()}
    for recipe in (clip, codec):
        done = run_training(recipe, tmp_path / "parts")
        assert done.returncode == 0, done.stderr

    def recipe_of(name: str) -> dict[str, Any]:
        made = clip_recipe(tmp_path / name, toy_shards, toy_tokenizer, max_samples=96)
        made["model"] = generator_section(tmp_path / "clip", tmp_path / "codec")
        made["model"]["init_args"]["ema"] = {
            "class_path": "leam_mm.optim.power_ema.PowerFunction",
            "init_args": {"widths": [0.05, 0.1]},
        }
        made["trainer"]["callbacks"] = [
            {"class_path": "leam_mm.callbacks.ema_snapshots.EmaSnapshots", "init_args": {"every_n_samples": 20}}
        ]
        made["checkpoint"] = {"every_n_train_steps": 4}
        return made

    whole = run_training(recipe_of("whole"), tmp_path / "a")
    assert whole.returncode == 0, whole.stderr
    broken = with_kill(recipe_of("broken"), 7)
    broken["trainer"]["callbacks"] = recipe_of("broken")["trainer"]["callbacks"] + broken["trainer"]["callbacks"]
    assert run_training(broken, tmp_path / "b").returncode == -signal.SIGKILL
    assert samples(tmp_path / "broken") == [24, 40]
    resumed = run_training(recipe_of("broken"), tmp_path / "b", "--data.init_args.loading.workers=2")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    assert samples(tmp_path / "whole") == [24, 40, 64, 80, 96]
    for one, other in zip(*(read_snapshots(tmp_path / name) for name in ("whole", "broken")), strict=True):
        assert one[0].name == other[0].name and one[0].read_bytes() == other[0].read_bytes()
