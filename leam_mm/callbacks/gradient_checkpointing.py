"""Gradient checkpointing (arXiv 1604.06174): a third more compute, much less activation memory.

trainer:
  callbacks:
  - class_path: leam_mm.callbacks.gradient_checkpointing.GradientCheckpointing
"""

import logging
from functools import partial

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.checkpoint import checkpoint

from leam_mm.callbacks.compilation import Compilation, trained_blocks
from leam_mm.errors import UserError

log = logging.getLogger(__name__)


class GradientCheckpointing(Callback):
    """Store only the inputs of trained blocks and recompute their activations; gradients are bit-identical.

    Blocks keep their names, sharding and compilation. Dropout uses the same random numbers in the recomputation.

    Args:
        every: Checkpoint every n-th block, n >= 1; 1 checkpoints all blocks, 2 half of them.
    """

    def __init__(self, every: int = 1) -> None:
        """See the class for the arguments."""
        if every < 1:
            raise UserError(f"GradientCheckpointing: every is {every}: give at least 1")
        self.every = every
        self._chosen: list[nn.Module] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wrap the forward of the blocks, after other callbacks have marked blocks for compilation."""
        blocks = trained_blocks(pl_module)
        self._chosen = blocks[:: self.every]
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        dynamic = next((each.dynamic for each in callbacks if isinstance(each, Compilation)), None)
        for block in self._chosen:
            forward = block.forward
            if block._compiled_call_impl is not None:
                # torch.compile silently skips a module that calls checkpoint, so compile the wrapped forward instead.
                block._compiled_call_impl = None
                forward = torch.compile(forward, dynamic=dynamic)
            block.forward = partial(checkpoint, forward, use_reentrant=False)
        if blocks:
            log.info("gradient checkpointing: %d of %d blocks are recomputed", len(self._chosen), len(blocks))
        else:
            log.warning("gradient checkpointing is not used: the network has no repeated blocks")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the original forward of the blocks."""
        for block in self._chosen:
            del block.forward  # removes the instance attribute; the class method remains
        self._chosen = []
