"""Evaluators while training: a callback that runs them on the averaged weights and logs their headline numbers.

YAML:

    trainer:
      callbacks:
        - class_path: leam_mm.training.evaluate_every.EvaluateEvery
          init_args:
            every_n_steps: 500
            evaluators:
              - class_path: leam_mm.evaluators.zero_shot.ZeroShot
                init_args: {shards: shards/test, classes: drawings/classes.json, languages: [en, de]}
"""

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.evaluators.evaluator import EvaluationContext, Evaluator


class EvaluateEvery(Callback):
    """Logs each metric of the evaluators under its own name, with ``evaluate/seconds`` kept apart from training time.

    Every rank computes the same numbers, so none waits for another; the first one logs them.

    Args:
        evaluators: What to measure.
        every_n_steps: Optimizer steps between two measurements; the end of the training is measured too.
    """

    def __init__(self, evaluators: list[Evaluator], every_n_steps: int = 1000) -> None:
        """See the class for the arguments."""
        self.evaluators, self.every_n_steps = evaluators, every_n_steps
        self._measured = 0

    def state_dict(self) -> dict[str, int]:
        """The step of the last measurement."""
        return {"measured": self._measured}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Do not measure the resumed step again."""
        self._measured = state_dict["measured"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure when the interval is full or the training ends."""
        step = trainer.global_step
        due = step % self.every_n_steps == 0 or step == trainer.max_steps
        if due and step != self._measured:
            self._measured = step
            self.measure(trainer, pl_module)

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the evaluators on the module as it stands and log."""
        began, training = time.monotonic(), pl_module.training
        clip = pl_module if isinstance(pl_module, ContrastiveModule) else None
        output = Path(trainer.default_root_dir) / "evaluate_every"
        context = EvaluationContext(clip, None if clip else pl_module, output, pl_module.device)
        pl_module.eval()
        with torch.no_grad():
            found = [metric for evaluator in self.evaluators for metric in evaluator.run(context)]
        pl_module.train(training)
        values = {metric.name: metric.value for metric in found if metric.value is not None}
        values["evaluate/seconds"] = time.monotonic() - began
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step - 1)
