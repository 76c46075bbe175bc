"""Leaving in good order: USR1 or TERM saves at the next step boundary and exits with its own code.

Lightning saves inside the signal handler, wherever the step happens to be; collectives there can hang. Here the
handler sets a flag only. All ranks agree on it after each optimizer step, save together, and leave with exit code 75
(EX_TEMPFAIL of sysexits.h: "try again later"), which a Slurm script turns into ``scontrol requeue``.
"""

import atexit
import logging
import signal
import subprocess
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from leam_mm.distributed import any_rank

EXIT_CODE = 75
LAST_SECONDS = 60  # in which a rank that has saved must have ended
log = logging.getLogger(__name__)


class Preemption(Callback):
    """Save and leave at a step boundary after USR1 or TERM."""

    def __init__(self) -> None:
        """No signal seen yet."""
        self.received: int | None = None
        self._previous: dict[int, Any] = {}
        self._steps = 0
        self._saved: str | None = None
        self._children: list[subprocess.Popen] = []
        # Registered before the process group's own end, hence called after it: ending a group takes all ranks.
        atexit.register(self._wait_for_children)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """A USR1 before the first step must not kill the run, which is the signal's default."""
        if stage == "fit":
            self._install(signal.SIGUSR1)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers, over Lightning's own."""
        self._steps = trainer.global_step
        self._install(signal.SIGUSR1, signal.SIGTERM)

    def _install(self, *numbers: int) -> None:
        for number in numbers:
            self._previous.setdefault(number, signal.signal(number, self._note))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimizer step, exit if any rank received the signal."""
        if trainer.global_step == self._steps:
            return
        self._steps = trainer.global_step
        if not any_rank(self.received is not None, pl_module.device):
            return
        # The other ranks can leave only after the save, in which all ranks meet.
        self._release_children(trainer)
        path = trainer.checkpoint_callback.dirpath if trainer.checkpoint_callback else trainer.default_root_dir  # type: ignore[attr-defined]
        trainer.save_checkpoint(f"{path}/last.ckpt")
        self._saved = f"{path}/last.ckpt"

    def _release_children(self, trainer: Trainer) -> None:
        """Ranks that Lightning started may leave before this one without having it killed for that."""
        children: list[subprocess.Popen] | None = getattr(trainer.strategy.launcher, "procs", None)
        if children:
            self._children = list(children)
            children.clear()  # Lightning's observer reads this list and takes each exit code but 0 for a crash

    def _wait_for_children(self) -> None:
        """Whoever started this process may start the next run as soon as it has ended: leave nobody behind."""
        for rank in self._children:
            try:
                rank.wait(timeout=LAST_SECONDS)
            except subprocess.TimeoutExpired:
                rank.kill()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Leave before the next batch: by now the loggers have written the last step's row."""
        if self._saved is not None:
            log.warning("signal received: saved %s, leaving with exit code %d", self._saved, EXIT_CODE)
            raise SystemExit(EXIT_CODE)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
