"""Weights that stay as they are: locked-image tuning (LiT, 2111.07991), or any part named by a pattern.

trainer:
  callbacks:
  - class_path: leam_mm.callbacks.freezing.Freezing
    init_args: {patterns: ["encoder.clip.visual.*"]}
"""

import fnmatch
import logging

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from leam_mm.errors import UserError

log = logging.getLogger(__name__)


class Freezing(Callback):
    """Takes the weights that match out of the training, before the optimizer is built.

    Layers whose weights are all frozen run in evaluation mode: their dropout is off, and the running statistics of
    their batch norms stay too. (Most trainers forget that, and the locked tower drifts.)

    Args:
        patterns: Names of parameters with ``*`` and ``?``, as ``encoder.clip.visual.*``; each must match something.
    """

    def __init__(self, patterns: list[str]) -> None:
        """See the class for the arguments."""
        self.patterns = patterns
        self._still: list[nn.Module] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze, and say in one line how much."""
        if stage != "fit":
            return
        weights = dict(pl_module.named_parameters())
        chosen: set[str] = set()
        for pattern in self.patterns:
            found = fnmatch.filter(weights, pattern)
            if not found:
                near = sorted({".".join(name.split(".")[:3]) for name in weights})
                raise UserError(f"freezing: no weight is named {pattern!r}; there are {', '.join(near[:12])}")
            chosen.update(found)
        for name in chosen:
            weights[name].requires_grad_(False)
        if not any(weight.requires_grad for weight in weights.values()):
            raise UserError(f"freezing: {self.patterns} leave nothing to train")
        self._still = [
            layer
            for layer in pl_module.modules()
            if any(True for _ in layer.parameters()) and not any(weight.requires_grad for weight in layer.parameters())
        ]
        count = sum(weights[name].numel() for name in chosen)
        log.info("frozen: %d weights in %d tensors match %s", count, len(chosen), ", ".join(self.patterns))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Lightning puts the whole module into training mode at its start and after each validation."""
        for layer in self._still:
            layer.eval()
