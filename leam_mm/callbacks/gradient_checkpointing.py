"""Activations computed again in the backward pass instead of kept (1604.06174): a third more work, much less memory.

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
    """Keeps only the inputs of the blocks of what is trained; gradients stay the same to the last bit.

    Blocks keep their names, sharding and compilation; the random numbers of their dropout are drawn again.

    Args:
        every: Each so many blocks one is computed again; 1 takes all, 2 half of them.
    """

    def __init__(self, every: int = 1) -> None:
        """See the class for the arguments."""
        if every < 1:
            raise UserError(f"gradient checkpointing: every is {every}: give at least 1")
        self.every = every
        self._chosen: list[nn.Module] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wrap the blocks' forward, after other callbacks have marked blocks for compilation."""
        blocks = trained_blocks(pl_module)
        self._chosen = blocks[:: self.every]
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        dynamic = next((each.dynamic for each in callbacks if isinstance(each, Compilation)), None)
        for block in self._chosen:
            forward = block.forward
            if block._compiled_call_impl is not None:
                # The compiler passes over a block with a checkpoint in it, silently: here it compiles what is inside.
                block._compiled_call_impl = None
                forward = torch.compile(forward, dynamic=dynamic)
            block.forward = partial(checkpoint, forward, use_reentrant=False)
        if blocks:
            log.info("gradient checkpointing: %d of %d blocks are computed again", len(self._chosen), len(blocks))
        else:
            log.warning("gradient checkpointing is not used: the network has no repeated blocks")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the network as it was."""
        for block in self._chosen:
            del block.forward  # the instance's; its class has its own
        self._chosen = []
