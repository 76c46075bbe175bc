"""Samples per second, samples seen, and the share of time spent waiting for data.

YAML:

    trainer:
      callbacks:
        - class_path: leam_mm.callbacks.throughput.Throughput
"""

import statistics
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch

from leam_mm.data.batch import samples_seen


def batch_size(batch: Any) -> int:
    """Return the number of samples in a batch: the length of its first tensor, list or tuple."""
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else [batch]
    for value in values:
        if isinstance(value, (torch.Tensor, list, tuple)):
            return len(value)
    raise ValueError(f"no tensor in a batch of type {type(batch).__name__}: cannot count its samples")


class Throughput(pl.Callback):
    """Log ``throughput/samples_per_second`` (global), ``throughput/data_wait`` (share of time) and ``samples_seen``.

    The rate is the median over the last optimizer steps, including accumulated batches, so single slow steps do not
    change it. Steps interrupted by validation or a checkpoint are excluded. The device is not synchronised: queued
    kernels make the times of single steps inexact, but hardly the median.

    Args:
        window: Number of optimizer steps in the median.
    """

    def __init__(self, window: int = 50) -> None:
        """See the class for the arguments."""
        self.steps: deque[tuple[float, float, int]] = deque(maxlen=window)  # seconds, seconds waited, samples
        self.samples_seen = 0
        self.clock = time.perf_counter
        self._restored = False
        self._step = -1
        self.forget()

    def forget(self) -> None:
        """Discard the current step, whose time includes other work such as an evaluation or a checkpoint."""
        self._began: float | None = None
        self._ended: float | None = None
        self._waited, self._samples = 0.0, 0

    @property
    def samples_per_second(self) -> float | None:
        """Median over the window, summed over all ranks; None before the first complete step."""
        return statistics.median(samples / seconds for seconds, _, samples in self.steps) if self.steps else None

    @property
    def data_wait(self) -> float | None:
        """Share of the window in which this rank waited for data, in [0, 1]; None before the first complete step."""
        return sum(wait for _, wait, _ in self.steps) / sum(s for s, _, _ in self.steps) if self.steps else None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Discard the times of an earlier fit, but keep the number of samples seen."""
        self.steps.clear()
        self.forget()
        self._step = trainer.global_step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the time since the end of the previous batch as waiting."""
        if not self._restored and trainer.global_step:
            # The checkpoint is from a run without this callback; assume that its batches had this size.
            size = batch_size(batch) * trainer.world_size * trainer.accumulate_grad_batches
            self.samples_seen = self.samples_seen or trainer.global_step * size
        self._restored = True
        if self._ended is not None:
            self._waited += self.clock() - self._ended

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Finish the step and log after an optimizer step."""
        now, size = self.clock(), batch_size(batch) * trainer.world_size
        position = samples_seen(trainer)
        self.samples_seen = self.samples_seen + size if position is None else position
        self._samples += size
        self._ended = now
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if self._began is not None and now > self._began:
            self.steps.append((now - self._began, self._waited, self._samples))
        self._began, self._waited, self._samples = now, 0.0, 0
        pl_module.log("samples_seen", float(self.samples_seen), rank_zero_only=True, batch_size=1)
        rate, wait = self.samples_per_second, self.data_wait
        if rate is not None and wait is not None:
            pl_module.log("throughput/samples_per_second", rate, prog_bar=True, rank_zero_only=True, batch_size=1)
            pl_module.log("throughput/data_wait", wait, rank_zero_only=True, batch_size=1)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Discard the current step."""
        self.forget()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Discard the current step."""
        self.forget()

    def state_dict(self) -> dict[str, Any]:
        """Return the number of samples seen, for the checkpoint."""
        return {"samples_seen": self.samples_seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue counting from the checkpoint."""
        self.samples_seen, self._restored = int(state_dict["samples_seen"]), True
