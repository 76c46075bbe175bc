"""Stop a run whose loss is NaN or infinite before a checkpoint is written, and record the samples of that batch."""

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
    """End the run at the first loss that is not finite, and write the keys of its batch to the run folder.

    Losses stay on the device and are checked several at a time, which saves synchronisation; they are always checked
    before a checkpoint, so the last checkpoint is finite. ``diverged.RANK.json`` has the step, the loss and the keys.

    Args:
        every_n_steps: Batches between two checks.
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
        """Store the loss and the keys; check every n-th batch."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is None:  # a third-party module with manual optimization may return no loss
            return
        self._recent.append((trainer.global_step, loss.detach().float(), batch.get("key", []), batch_size(batch)))
        if len(self._recent) >= self.every_n_steps:
            self._check(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check before a checkpoint is written."""
        self._check(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the last batches."""
        self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        recent, self._recent = list(self._recent), deque()
        if not recent:
            return
        losses = torch.stack([loss for _, loss, _, _ in recent])
        finite = losses.isfinite().tolist()
        # All ranks check after the same steps and stop together: the others would wait forever for one that stopped.
        if not any_rank(not all(finite), losses.device):
            return
        if all(finite):
            raise UserError("the loss of another rank is not finite: see that rank's message for the samples")
        step, loss, keys, samples = recent[finite.index(False)]
        path = Path(trainer.default_root_dir) / f"diverged.{trainer.global_rank}.json"
        write_json(path, {"step": step, "loss": str(loss.item()), "samples": samples, "keys": keys})
        raise UserError(
            f"the loss is {loss.item()} after step {step}; the keys of the batch are in {path}. Resume from the last "
            "checkpoint with a lower learning rate, with trainer.gradient_clip_val, or without the samples"
        )
