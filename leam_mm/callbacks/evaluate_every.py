"""Evaluation during training: a callback that runs evaluators on the averaged weights and logs their metrics.

YAML:

    trainer:
      callbacks:
        - class_path: leam_mm.callbacks.evaluate_every.EvaluateEvery
          init_args:
            every_n_steps: 500
            evaluators:
              - class_path: leam_mm.evaluators.zero_shot.ZeroShot
                init_args: {shards: shards/test, classes: drawings/classes.json, languages: [en, de]}
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from leam_mm.callbacks.throughput import Throughput
from leam_mm.codec_module import LatentCodecModule
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.evaluators.evaluator import EvaluationContext, Evaluator


class EvaluateEvery(Callback):
    """Log each metric of the evaluators under its own name, without changing the training state.

    All ranks run the evaluators. Zero-shot and retrieval split images and texts over the ranks and give the numbers of
    a single process. Other evaluators compute the same on every rank. Rank 0 logs. Weights are evaluated in their own
    precision, as in evaluate.py. ``evaluate/seconds`` is the time of one evaluation and ``time/evaluation`` the sum of
    all since the first step, including restarts. The throughput counts neither.

    Args:
        evaluators: Evaluators to run.
        every_n_steps: Optimizer steps between two evaluations; the last step is evaluated too.
    """

    def __init__(self, evaluators: list[Evaluator], every_n_steps: int = 1000) -> None:
        """See the class for the arguments."""
        self.evaluators, self.every_n_steps = evaluators, every_n_steps
        self._measured, self._seconds = 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the step of the last evaluation and the total seconds of all evaluations."""
        return {"measured": self._measured, "seconds": self._seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both, so that the resumed step is not evaluated again."""
        self._measured, self._seconds = state_dict["measured"], state_dict.get("seconds", 0.0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluate every ``every_n_steps`` optimizer steps and at the last step."""
        step = trainer.global_step
        due = step % self.every_n_steps == 0 or step == trainer.max_steps
        if due and step != self._measured:
            self._measured = step
            self.measure(trainer, pl_module)

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the evaluators on the module in its current state and log the metrics."""
        began = time.monotonic()
        clip = pl_module if isinstance(pl_module, ContrastiveModule) else None
        output = Path(trainer.default_root_dir) / "evaluate_every"
        codec = pl_module if isinstance(pl_module, LatentCodecModule) else None
        generator = None if clip or codec else pl_module
        context = EvaluationContext(clip, generator, output, pl_module.device, codec)
        with untouched(pl_module, pl_module.device), torch.no_grad():
            found = [metric for evaluator in self.evaluators for metric in evaluator.run(context)]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Throughput):
                callback.forget()
        seconds = time.monotonic() - began
        self._seconds += seconds
        values = {metric.name: metric.value for metric in found if metric.value is not None}
        values |= {"evaluate/seconds": seconds, "time/evaluation": self._seconds}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step - 1)


@contextmanager
def untouched(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Set a module to evaluation mode, and restore the mode of each layer and all random states on exit.

    Frozen layers stay in evaluation mode; ``module.train()`` would set them to training mode.
    """
    training = [layer for layer in module.modules() if layer.training]
    module.eval()
    devices = [device] if device.type == "cuda" else []  # by default, every rank would open a context on every GPU
    try:
        with torch.random.fork_rng(devices), isolate_rng(include_cuda=False):
            yield
    finally:
        for layer in training:
            layer.training = True
