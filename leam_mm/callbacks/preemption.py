"""Preemption: after a signal, or when the job's time is nearly over, save a checkpoint at the next step and exit.

SIGUSR1, SIGUSR2 (submitit), SIGTERM, SIGHUP and the end of the time exit with code 75. SIGINT (Ctrl-C) exits with code
130, since a person wants the run to end and no script shall requeue it; a second one ends it at once.

Lightning saves inside the signal handler, in the middle of a step, where collectives can hang. Here the handler only
sets a flag. All ranks exchange it after each optimizer step, save together and exit with code 75 (EX_TEMPFAIL in
sysexits.h: "try again later"). A Slurm script can requeue the job on this code with ``scontrol requeue``.
"""

import atexit
import logging
import os
import signal
import subprocess
import time
from contextlib import suppress
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from leam_mm.callbacks.save_failures import RetriedCheckpointIO, save_or_fail
from leam_mm.callbacks.time_left import TimeLeft, job_end
from leam_mm.distributed import any_rank
from leam_mm.early_signals import early_signal

EXIT_CODE, INTERRUPTED = 75, 130
SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
LAST_SECONDS = 60  # time limit for the exit of a rank after saving
log = logging.getLogger(__name__)


class Preemption(Callback):
    """Save a checkpoint and exit after an optimizer step if one of ``SIGNALS`` was received or the time is over."""

    def __init__(self) -> None:
        """Register the wait for child ranks at exit."""
        self.received: int | None = None
        self._previous: dict[int, Any] = {}
        self._steps = 0
        self._saved: str | None = None
        self._reason = "signal received"
        self._code = EXIT_CODE
        self.time_left = TimeLeft(None)
        self._children: list[subprocess.Popen] = []
        # Registered before the cleanup of the process group, so called after it: the cleanup needs all ranks.
        atexit.register(self._wait_for_children)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.received == number:
                raise KeyboardInterrupt
            # os.write, since a signal may interrupt a print, which cannot be entered twice.
            with suppress(OSError):
                os.write(2, b"\ninterrupted: saving at the end of this step; press Ctrl-C again to end at once\n")
        self.received = number

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Handle SIGUSR1 and SIGUSR2 before the first step; their default action would kill the run."""
        if stage == "fit":
            self.time_left = TimeLeft(job_end(os.environ, time.time()))
            self._install(signal.SIGUSR1, signal.SIGUSR2)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers in place of those of Lightning, whose handler of SIGTERM waits for the first rank."""
        self._install(*SIGNALS)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers; exit if a signal arrived before, since the first step may take long."""
        self._steps = trainer.global_step
        self._install(*SIGNALS)
        self.received = self.received or early_signal()
        if any_rank(self.received is not None, pl_module.device):
            self._release_children(trainer)
            if any_rank(self.received == signal.SIGINT, pl_module.device):
                self._code = INTERRUPTED
            words = "signal received before the first step: exiting with code %d; the same command %s"
            log.warning(words, self._code, "resumes" if trainer.global_step else "starts the run")
            raise SystemExit(self._code)

    def _install(self, *numbers: int) -> None:
        for number in numbers:
            ignored = signal.getsignal(number) == signal.SIG_IGN  # by nohup, or by a shell for its background jobs
            if not (ignored and number in (signal.SIGHUP, signal.SIGINT)):
                self._previous.setdefault(number, signal.signal(number, self._note))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save a checkpoint after an optimizer step if any rank received a signal, or has no time left."""
        if trainer.global_step == self._steps:
            return
        self._steps = trainer.global_step
        over = self.time_left.is_over()
        if not any_rank(self.received is not None or over, pl_module.device):
            return
        if self.received is None:
            self._reason = "the job's time is nearly over" if over else "another rank got a signal or has no time left"
        # The other ranks can exit only after the save, which synchronizes all ranks.
        self._release_children(trainer)
        path = trainer.checkpoint_callback.dirpath if trainer.checkpoint_callback else trainer.default_root_dir  # type: ignore[attr-defined]
        if any_rank(self.received == signal.SIGINT, pl_module.device):
            self._code = INTERRUPTED
        save_or_fail(trainer, pl_module, f"{path}/last.ckpt")
        self._saved = f"{path}/last.ckpt"

    def _release_children(self, trainer: Trainer) -> None:
        """Keep Lightning from killing this rank if the ranks that it started exit first."""
        children: list[subprocess.Popen] | None = getattr(trainer.strategy.launcher, "procs", None)
        if children:
            self._children = list(children)
            children.clear()  # Lightning polls this list and treats every nonzero exit code as a crash

    def _wait_for_children(self) -> None:
        """Wait for the child ranks: the next run may start as soon as this process ends."""
        for rank in self._children:
            try:
                rank.wait(timeout=LAST_SECONDS)
            except subprocess.TimeoutExpired:
                rank.kill()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Exit before the next batch, after the loggers have written the metrics of the last step."""
        if self._saved is not None:
            words = "%s: saved %s, exiting with code %d; the same command resumes"
            log.warning(words, self._reason, self._saved, self._code)
            raise SystemExit(self._code)
        self._end_pause(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note the start of a save; the next hook comes after its end."""
        self.time_left.save_begins()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not count a validation as a step."""
        self._end_pause(trainer)
        self.time_left.forget_step()

    def _end_pause(self, trainer: Trainer) -> None:
        self.time_left.pause_ends()
        writer = trainer.strategy.checkpoint_io
        if isinstance(writer, RetriedCheckpointIO):  # it may write in the background
            self.time_left.longest_save = max(self.time_left.longest_save, writer.longest)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
