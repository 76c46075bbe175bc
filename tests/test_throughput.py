from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from leam_mm.callbacks.throughput import Throughput, batch_size


class Clock:
    """A clock that only moves when somebody works."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(Dataset):
    """Each sample takes the clock a given time to fetch."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> torch.Tensor:
        self.clock.now += self.seconds
        return torch.ones(2)


class Line(pl.LightningModule):
    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.layer, self.clock, self.seconds = nn.Linear(2, 1), clock, seconds

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.clock.now += self.seconds
        return self.layer(batch).square().mean()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.clock.now += 1000.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def train(
    folder: Path,
    *,
    fetch: float = 0.0,
    compute: float = 1.0,
    steps: int = 4,
    accumulate: int = 1,
    validate: bool = False,
    checkpoint: Path | None = None,
    with_throughput: bool = True,
) -> tuple[Throughput, pl.Trainer]:
    clock, throughput = Clock(), Throughput(window=10)
    throughput.clock = clock
    loader = DataLoader(Slow(clock, fetch), batch_size=3)
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", callbacks=[throughput] if with_throughput else [], logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0,
        accumulate_grad_batches=accumulate, default_root_dir=folder,
        val_check_interval=2 if validate else 1.0, limit_val_batches=1 if validate else 0,
    )  # fmt: skip
    trainer.fit(Line(clock, compute), loader, loader if validate else None, ckpt_path=checkpoint, weights_only=True)
    trainer.save_checkpoint(folder / "last.ckpt")
    return throughput, trainer


def test_rate_and_data_wait_are_the_clock_s(tmp_path: Path) -> None:
    throughput, trainer = train(tmp_path, fetch=1.0, compute=2.0)
    assert throughput.samples_per_second == pytest.approx(3 / (3 * 1.0 + 2.0))
    assert throughput.data_wait == pytest.approx(3 / 5)
    assert trainer.callback_metrics["samples_seen"] == 12
    assert trainer.progress_bar_metrics["throughput/samples_per_second"] == pytest.approx(0.6)


def test_accumulated_batches_belong_to_one_step(tmp_path: Path) -> None:
    throughput, trainer = train(tmp_path, compute=2.0, steps=3, accumulate=2)
    assert trainer.global_step == 3 and throughput.samples_seen == 18
    assert len(throughput.steps) == 2 and {samples for _, _, samples in throughput.steps} == {6}
    assert throughput.samples_per_second == pytest.approx(3 / 2.0)


def test_validation_does_not_slow_the_rate(tmp_path: Path) -> None:
    throughput, _ = train(tmp_path, compute=1.0, steps=8, validate=True)
    assert throughput.samples_per_second == pytest.approx(3.0)
    assert throughput.data_wait == pytest.approx(0.0)
    assert len(throughput.steps) >= 3


def test_samples_seen_survive_a_restart(tmp_path: Path) -> None:
    train(tmp_path, steps=3)
    throughput, _ = train(tmp_path, steps=5, checkpoint=tmp_path / "last.ckpt")
    assert throughput.samples_seen == 15


def test_samples_seen_are_derived_for_a_checkpoint_without_the_callback(tmp_path: Path) -> None:
    train(tmp_path, steps=2, accumulate=2, with_throughput=False)
    throughput, _ = train(tmp_path, steps=3, accumulate=2, checkpoint=tmp_path / "last.ckpt")
    assert throughput.samples_seen == 18


def test_batch_size_reads_our_batches() -> None:
    assert batch_size({"image": torch.zeros(5, 3, 2, 2), "key": ["a"] * 5}) == 5
    assert batch_size([torch.zeros(4, 2)]) == 4
    assert batch_size(torch.zeros(3, 2)) == 3
    with pytest.raises(ValueError, match="no tensor"):
        batch_size({})


def test_nothing_is_reported_before_the_first_step() -> None:
    assert Throughput().samples_per_second is None and Throughput().data_wait is None
