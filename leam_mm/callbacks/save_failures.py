"""Failed checkpoints: a full disk does not end a run, which tries again at the next interval and at the end."""

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from leam_mm.callbacks.metrics_log import MetricsLog
from leam_mm.checkpoint import AtomicCheckpointIO
from leam_mm.checkpoint_generations import LAST, NO_ROOM, make_room
from leam_mm.distributed import any_rank
from leam_mm.errors import UserError
from leam_mm.system_fault import fault_line, system_fault


class RetriedCheckpointIO(AtomicCheckpointIO):
    """Checkpoint writer that warns of a fault of the machine; ``failure`` holds its line until a save succeeds.

    Only the first rank writes, and the others wait for it: an exception would leave them waiting. On a full disk the
    checkpoints older than the newest good one make room for the new one.
    """

    longest = 0.0  # seconds of the longest save so far

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write the file, or keep the last one."""
        began = time.monotonic()
        try:
            try:
                super().save_checkpoint(checkpoint, path, storage_options)
            except Exception as error:
                if not self._made_room(error, Path(path)):
                    raise
                super().save_checkpoint(checkpoint, path, storage_options)
            self.failure = None
            self.longest = max(self.longest, time.monotonic() - began)
        except Exception as error:
            if system_fault(error) is None:
                raise
            self.failure = fault_line(error)
            rank_zero_warn(f"no checkpoint is saved, training continues and tries again later: {self.failure}")

    def finish(self, seconds: float | None = None) -> bool:
        """Wait until nothing is being written; a writer in the background overrides it."""
        return True

    def _made_room(self, error: Exception, path: Path) -> bool:
        fault = system_fault(error)
        if fault is None or fault.errno not in NO_ROOM or path.name != LAST:
            return False
        removed = [file.name for file in make_room(path.parent)]
        if removed:
            rank_zero_warn(
                f"{path.parent} has no room for a new checkpoint beside the old ones: the newest stays, and "
                f"{', '.join(removed)} made room; free space on that disk, or set checkpoint.keep lower"
            )
        return bool(removed)


def save_or_fail(trainer: Trainer, module: LightningModule, path: Path | str) -> None:
    """Save a checkpoint on which the end of this process depends.

    Raises:
        UserError: It cannot be written; raised on all ranks.
    """
    trainer.save_checkpoint(path)
    failure = _failure(trainer)  # waits for a save in the background
    if any_rank(failure is not None, module.device):
        raise UserError(failure or "the first rank could not save a checkpoint: see its message")


def _failure(trainer: Trainer) -> str | None:
    writer = trainer.strategy.checkpoint_io
    if not isinstance(writer, RetriedCheckpointIO):
        return None
    writer.finish()
    return writer.failure


class LastSave(Callback):
    """The last callback: end with an error if the last checkpoint or the metrics could not be written."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try once more after a failure."""
        if any_rank(_failure(trainer) is not None, pl_module.device):
            folder = trainer.checkpoint_callback.dirpath if trainer.checkpoint_callback else trainer.default_root_dir  # type: ignore[attr-defined]
            save_or_fail(trainer, pl_module, f"{folder}/last.ckpt")
        for logger in trainer.loggers:
            if isinstance(logger, MetricsLog):
                logger.write_waiting(last=True)
