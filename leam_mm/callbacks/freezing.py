"""Freezing of parameters by name, for example for locked-image tuning (LiT, arXiv 2111.07991).

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
    """Freeze the parameters whose names match a pattern, before the optimizer is built.

    Layers whose parameters are all frozen run in evaluation mode: dropout is off and batch norm buffers do not change.
    Otherwise the outputs of a frozen tower would drift.

    Args:
        patterns: Names of parameters with ``*`` and ``?``, e.g. ``encoder.clip.visual.*``; each must match one.
    """

    def __init__(self, patterns: list[str]) -> None:
        """See the class for the arguments."""
        self.patterns = patterns
        self._frozen_layers: list[nn.Module] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze the matching parameters and log their number."""
        if stage != "fit":
            return
        weights = dict(pl_module.named_parameters())
        chosen: set[str] = set()
        for pattern in self.patterns:
            found = fnmatch.filter(weights, pattern)
            if not found:
                near = sorted({".".join(name.split(".")[:3]) for name in weights})
                raise UserError(f"Freezing: no parameter matches {pattern!r}; there are {', '.join(near[:12])}")
            chosen.update(found)
        for name in chosen:
            weights[name].requires_grad_(False)
        if not any(weight.requires_grad for weight in weights.values()):
            raise UserError(f"Freezing: {self.patterns} match all parameters: leave at least one to train")
        self._frozen_layers = [
            layer
            for layer in pl_module.modules()
            if any(True for _ in layer.parameters()) and not any(weight.requires_grad for weight in layer.parameters())
        ]
        count = sum(weights[name].numel() for name in chosen)
        log.info("freezing: %d parameters in %d tensors match %s", count, len(chosen), ", ".join(self.patterns))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Set frozen layers to evaluation mode: Lightning calls ``train()`` at the start and after each validation."""
        for layer in self._frozen_layers:
            layer.eval()
