"""Stops a training whose loss is no longer a number, before a checkpoint of it is written, and names the samples."""

from collections import deque
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from leam_mm.callbacks.throughput import batch_size
from leam_mm.distributed import any_rank
from leam_mm.errors import UserError
from leam_mm.files import write_json


class Divergence(Callback):
    """Ends the run at the first loss that is not finite and writes the keys of its batch beside the metrics.

    Losses stay on the device and are looked at together, so that a GPU does not wait at every step; a checkpoint is
    never written in between. ``diverged.RANK.json`` in the run folder holds step, loss and the samples' keys. The last
    good checkpoint stays as it is.

    Args:
        every_n_steps: Batches between two looks.
    """

    def __init__(self, every_n_steps: int = 16) -> None:
        """See the class for the arguments."""
        if every_n_steps < 1:
            raise UserError(f"divergence.every_n_steps is {every_n_steps}: give at least 1")
        self.every_n_steps = every_n_steps
        self._recent: deque[tuple[int, Tensor, list[str], int]] = deque()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        """Remember the loss and the keys; look now and then."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is None:  # a module of somebody else that steps its optimizers itself
            return
        self._recent.append((trainer.global_step, loss.detach().float(), batch.get("key", []), batch_size(batch)))
        if len(self._recent) >= self.every_n_steps:
            self._look(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """No checkpoint of weights that a bad step has spoilt."""
        self._look(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last look."""
        self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        recent, self._recent = list(self._recent), deque()
        if not recent:
            return
        losses = torch.stack([loss for _, loss, _, _ in recent])
        finite = losses.isfinite().tolist()
        # All ranks look after the same steps, and leave together: one alone would let the others wait for ever.
        if not any_rank(not all(finite), losses.device):
            return
        if all(finite):
            raise UserError("the loss of another rank is not finite; its own message names the samples")
        step, loss, keys, samples = recent[finite.index(False)]
        path = Path(trainer.default_root_dir) / f"diverged.{trainer.global_rank}.json"
        write_json(path, {"step": step, "loss": str(loss.item()), "samples": samples, "keys": keys})
        raise UserError(
            f"the loss is {loss.item()} after step {step}; the keys of the batch are in {path}. Resume from the last "
            "checkpoint with a lower learning rate, with trainer.gradient_clip_val, or without the samples"
        )
