"""Seconds of training until an accuracy is reached; time spent on evaluation is not counted."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from leam_mm.evaluators.evaluator import EvaluationContext
from leam_mm.evaluators.zero_shot import ZeroShot


class AccuracyClock(Callback):
    """Records (samples seen, seconds trained, CPU seconds trained, English top-1) at a regular interval.

    Args:
        shards: Test shards.
        classes: Class file.
        every_n_steps: Optimizer steps between two measurements.
        batch_size: Samples of a step.
    """

    def __init__(self, shards: Path, classes: Path, every_n_steps: int, batch_size: int) -> None:
        """See the class for the arguments."""
        self.evaluator = ZeroShot(shards, classes, ["en"])
        self.every_n_steps, self.batch_size = every_n_steps, batch_size
        self.curve: list[dict[str, float]] = []
        self.seconds, self.cpu, self._since = 0.0, 0.0, (0.0, 0.0)

    def start(self) -> None:
        """Start or resume the clock."""
        self._since = (time.perf_counter(), time.process_time())

    def stop(self) -> None:
        """Stop the clock."""
        self.seconds += time.perf_counter() - self._since[0]
        self.cpu += time.process_time() - self._since[1]

    def note(self, module: Any, steps: int) -> None:
        """Evaluate a module while the clock is stopped."""
        training = module.training
        module.eval()
        found = self.evaluator.run(EvaluationContext(module, None, Path("."), torch.device("cpu")))
        module.train(training)
        top = next(metric for metric in found if metric.name == "zero_shot/top1/en")
        self.curve.append(
            {
                "samples": steps * self.batch_size,
                "seconds": self.seconds,
                "cpu_seconds": self.cpu,
                "accuracy": float(top.value or 0.0),
            }
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the loader's first batch."""
        self.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure at the interval."""
        if trainer.global_step % self.every_n_steps == 0:
            self.stop()
            self.note(pl_module, trainer.global_step)
            self.start()


def reached(curve: list[dict[str, float]], accuracy: float, what: str) -> float | None:
    """Where a curve first reaches an accuracy, in a straight line between two measurements; None if it never does."""
    before = {"accuracy": 0.0, what: 0.0}
    for point in curve:
        if point["accuracy"] >= accuracy:
            share = (accuracy - before["accuracy"]) / (point["accuracy"] - before["accuracy"])
            return before[what] + share * (point[what] - before[what])
        before = point
    return None
