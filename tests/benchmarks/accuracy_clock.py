"""Seconds of training until an accuracy is reached; time spent on evaluation is not counted."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from leam_mm.evaluators.evaluator import EvaluationContext, Evaluator, Metric


@dataclass(frozen=True)
class Measure:
    """An evaluator, and which of its metrics is the accuracy.

    Args:
        evaluator: What is run.
        metric: Name of the accuracy.
    """

    evaluator: Evaluator
    metric: str

    def run(self, module: Any) -> dict[str, Metric]:
        """Evaluate a module on the CPU and return its metrics by name."""
        found = self.evaluator.run(EvaluationContext(module, None, Path("."), torch.device("cpu")))
        return {metric.name: metric for metric in found}


def cpu_seconds() -> float:
    """Return processor seconds of this process and its children, loader processes that still run included."""
    spent = os.times()
    total = spent.user + spent.system + spent.children_user + spent.children_system
    for child in psutil.Process().children(recursive=True):
        try:
            used = child.cpu_times()
        except psutil.Error:  # it ended meanwhile
            continue
        total += used.user + used.system
    return total


class AccuracyClock(Callback):
    """Records (samples seen, seconds trained, CPU seconds trained, accuracy) at a regular interval.

    Args:
        measure: What is measured at the interval; None times only.
        every_n_steps: Optimizer steps between two measurements.
        batch_size: Samples of a step.
        final: Further measures, run once after the last step with their names.
    """

    def __init__(
        self, measure: Measure | None, every_n_steps: int, batch_size: int, final: dict[str, Measure] | None = None
    ) -> None:
        """See the class for the arguments."""
        self.measure, self.final = measure, final or {}
        self.every_n_steps, self.batch_size = every_n_steps, batch_size
        self.curve: list[dict[str, float]] = []
        self.last: dict[str, dict[str, Metric]] = {}
        self.seconds, self.cpu, self._since = 0.0, 0.0, (0.0, 0.0)

    def start(self) -> None:
        """Start or resume the clock."""
        self._since = (time.perf_counter(), cpu_seconds())

    def stop(self) -> None:
        """Stop the clock."""
        self.seconds += time.perf_counter() - self._since[0]
        self.cpu += cpu_seconds() - self._since[1]

    def note(self, module: Any, steps: int, last: bool = False) -> None:
        """Evaluate a module while the clock is stopped."""
        if self.measure is None:
            return
        training = module.training
        module.eval()
        found = self.measure.run(module)
        if last:
            self.last = {"test": found} | {name: measure.run(module) for name, measure in self.final.items()}
        module.train(training)
        self.curve.append(
            {
                "samples": steps * self.batch_size,
                "seconds": self.seconds,
                "cpu_seconds": self.cpu,
                "accuracy": float(found[self.measure.metric].value or 0.0),
            }
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the loader's first batch."""
        self.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure at the interval, and after the last step."""
        last = trainer.global_step >= trainer.estimated_stepping_batches
        if trainer.global_step % self.every_n_steps == 0 or last:
            self.stop()
            self.note(pl_module, trainer.global_step, last)
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
