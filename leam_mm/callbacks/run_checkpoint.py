"""When a run saves checkpoints, how many it keeps, and how they are written."""

from pathlib import Path

from jsonargparse.typing import NonNegativeFloat, PositiveInt
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from leam_mm.callbacks.asynchronous_save import AsynchronousCheckpointIO
from leam_mm.callbacks.save_failures import RetriedCheckpointIO
from leam_mm.checkpoint_shards import SHARDS
from leam_mm.files import remove_leftovers


class RunCheckpoint(ModelCheckpoint):
    """The newest checkpoints of a run, written at an interval and at the end of training.

    ``checkpoints/last.ckpt`` is the newest; it and the older ones are generations of checkpoint_generations.py.

    Args:
        every_n_train_steps: Optimizer steps between two checkpoints.
        dirpath: Folder of the files; None means ``checkpoints`` in the run folder.
        keep: Number of checkpoints that stay, at least 1. The disk needs room for one more.
        asynchronous: Continue training while a file is written; takes as much memory on the CPU as a checkpoint.
        patience: Longest wait of an asynchronous save for the one before, in seconds; then training waits for both.
    """

    def __init__(
        self,
        every_n_train_steps: int = 1000,
        dirpath: str | None = None,
        keep: PositiveInt = 2,
        asynchronous: bool = False,
        patience: NonNegativeFloat = 60.0,
    ) -> None:
        """See the class for the arguments."""
        super().__init__(
            dirpath=dirpath,
            filename="last",
            every_n_train_steps=every_n_train_steps,
            save_top_k=1,
            enable_version_counter=False,
            auto_insert_metric_name=False,
        )
        self.keep = keep
        self.asynchronous, self.patience = asynchronous, patience

    def writer(self) -> RetriedCheckpointIO:
        """Return the writer of these checkpoints, a plugin of the trainer."""
        return (
            AsynchronousCheckpointIO(self.keep, self.patience) if self.asynchronous else RetriedCheckpointIO(self.keep)
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what a killed run left of unfinished files."""
        super().on_train_start(trainer, pl_module)
        if trainer.is_global_zero:
            for pattern in ("*.ckpt", f"*.{SHARDS}"):
                remove_leftovers(Path(self.dirpath or "."), pattern)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last steps too, if their number is no multiple of the interval."""
        super().on_train_end(trainer, pl_module)
        if self._last_global_step_saved != trainer.global_step:
            trainer.save_checkpoint(f"{self.dirpath}/last.ckpt")
            self._last_global_step_saved = trainer.global_step
