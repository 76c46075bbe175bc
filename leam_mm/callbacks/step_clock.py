"""Times of the parts of a short run: steps, validation, other callbacks, a checkpoint. ``planning calibrate`` adds it.

YAML:

    trainer:
      callbacks:
        - class_path: leam_mm.callbacks.step_clock.StepClock
          init_args: {output: times.json, seconds: 60}
"""

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from leam_mm.callbacks.energy_meter import cpu_seconds
from leam_mm.callbacks.throughput import batch_size
from leam_mm.files import write_json

WARM = 10  # steps before the window in which CPU time is counted: kernels are compiled and buffers allocated


class StepClock(pl.Callback):
    """Write the times of a run as JSON and end the run after a time; ``leam_mm.planning.calibration_run`` reads them.

    ``steps`` holds (global step, wall seconds, CPU seconds of this process) from the start of a batch to that of the
    next, without validation; a device's queue is not waited for, so that only sums of many steps are exact.

    Args:
        output: JSON file.
        seconds: Training ends after this time, in seconds.
        least_steps: Steps that are made even if they take longer.
    """

    def __init__(self, output: Path, seconds: float = 60.0, least_steps: int = 30) -> None:
        """See the class for the arguments."""
        self.output, self.seconds, self.least_steps = Path(output), seconds, least_steps
        self.steps: list[tuple[int, float, float]] = []
        self.validations: list[tuple[float, float]] = []
        self.samples = 0
        self._mark: tuple[int, float, float] | None = None
        self._validation_began: tuple[float, float] | None = None
        self._warm: tuple[int, float] | None = None
        self._began = (0.0, 0.0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; the check of validation before training is not counted."""
        self._began, self.validations = (time.perf_counter(), cpu_seconds()), []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """End the previous step and begin one."""
        self._end_step()
        if self._warm is None and len(self.steps) >= WARM:
            _synchronize(pl_module)
            self._warm = (len(self.steps), cpu_seconds())
        self.samples = batch_size(batch) * trainer.world_size
        self._mark = (trainer.global_step, time.perf_counter(), time.process_time())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the run when its time is over."""
        if time.perf_counter() - self._began[0] > self.seconds and trainer.global_step >= self.least_steps:
            trainer.should_stop = True

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin a validation."""
        self._validation_began = (time.perf_counter(), cpu_seconds())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End a validation; the time of its step begins later by as much."""
        if self._validation_began is None:
            return
        _synchronize(pl_module)
        wall, cpu = time.perf_counter() - self._validation_began[0], cpu_seconds() - self._validation_began[1]
        self.validations.append((wall, cpu))
        if self._mark is not None:
            step, began, process = self._mark
            self._mark = (step, began + wall, process + cpu)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write a checkpoint, time it, and write the times."""
        self._end_step()
        _synchronize(pl_module)
        wall, cpu = time.perf_counter(), cpu_seconds()
        path = self.output.with_name("timed.ckpt")
        trainer.save_checkpoint(path)
        saved, saved_cpu = time.perf_counter() - wall, cpu_seconds() - cpu
        if not trainer.is_global_zero:
            return
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        write_json(
            self.output,
            {
                "seconds": wall - self._began[0],
                "cpu_seconds": cpu - self._began[1],
                "warm_steps": self._warm[0] if self._warm else 0,
                "warm_cpu_seconds": self._warm[1] - self._began[1] if self._warm else 0.0,
                "samples": self.samples,
                "steps": self.steps,
                "validations": self.validations,
                "save_seconds": saved,
                "save_cpu_seconds": saved_cpu,
                "checkpoint_bytes": sum(file.stat().st_size for file in files),
                "device": _device_name(pl_module),
            },
        )

    def _end_step(self) -> None:
        if self._mark is not None:
            step, wall, process = self._mark
            self.steps.append((step, time.perf_counter() - wall, time.process_time() - process))
        self._mark = None


def _synchronize(pl_module: pl.LightningModule) -> None:
    if pl_module.device.type == "cuda":
        torch.cuda.synchronize(pl_module.device)


def _device_name(pl_module: pl.LightningModule) -> str:
    return torch.cuda.get_device_name(pl_module.device) if pl_module.device.type == "cuda" else "cpu"
