"""Learning rates in every log: ``lr`` is the highest rate of all parameter groups, ``lr/0``, ``lr/1``, ... are theirs.

With several optimizers the names are ``lr/0.0``, ``lr/1.0``, .... A value is the rate with which the step was taken.
"""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class LearningRates(Callback):
    """Log the learning rate of each optimizer step, with and without a schedule."""

    def __init__(self) -> None:
        """Begin before the first step."""
        self._rates: dict[str, float] = {}
        self._step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the step at which this process begins."""
        self._step = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the rates before the step: a schedule sets those of the next one as soon as it is taken."""
        self._rates = rates(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log after an optimizer step."""
        if trainer.global_step == self._step or not self._rates:
            return
        self._step = trainer.global_step
        named = self._rates if len(self._rates) > 1 else {}
        pl_module.log_dict(named, rank_zero_only=True, batch_size=1)
        pl_module.log("lr", max(self._rates.values()), prog_bar=True, rank_zero_only=True, batch_size=1)


def rates(trainer: Trainer) -> dict[str, float]:
    """Return the rate of each parameter group by its name in the log."""
    several = len(trainer.optimizers) > 1
    return {
        f"lr/{number}.{place}" if several else f"lr/{place}": float(group["lr"])
        for number, optimizer in enumerate(trainer.optimizers)
        for place, group in enumerate(optimizer.param_groups)
    }
