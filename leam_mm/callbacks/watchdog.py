"""Watchdog: a rank that dies, stops or gets stuck ends the whole run in a stated time, with its name and host.

Without it the other ranks wait in a collective, for ever or until a time-out that names nobody. Each rank reports its
progress by a lifeline (`leam_mm/lifelines.py`). When one is gone, every rank writes its stacks to the run folder, one
line is printed per host, and the process exits with code 76.

YAML:

    watchdog: {limit: 600, pause: 3600, join: 600}
"""

import atexit
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from jsonargparse.typing import PositiveFloat
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment

from leam_mm.callbacks import preemption
from leam_mm.callbacks.emergency_exit import LEAVING, EmergencyExit
from leam_mm.errors import UserError, one_line, user_error
from leam_mm.lifeline_server import LifelineServer
from leam_mm.lifelines import GRACE, Lifeline, Rank, Status, Verdict, interval, process_start
from leam_mm.rank_errors import lost_connection
from leam_mm.rank_meeting import MeetingAlarm, Place, meeting_fault
from leam_mm.system_fault import fault_line

MARGIN = 60  # seconds by which the time-out of collectives is longer: it ends a run without a name


class Watchdog(Callback):
    """End the run with exit code 76 if one of several ranks dies, stops or makes no progress.

    A killed process is noticed within seconds; a stopped or unreachable one, or a step that hangs, after ``limit``. The
    stacks of rank N are written to ``watchdog/rank-N.txt``, with NCCL's or gloo's record of its last collectives
    beside them if torch has one. A run of one rank is not watched.

    Args:
        limit: Seconds without a step, or without a sign of life, after which a rank is gone; None turns the watchdog
            off.
        pause: The same where no steps are expected: the first step (compilation), evaluation, saving, the end.
        join: Seconds in which all ranks must meet when the run starts.
    """

    def __init__(
        self, limit: PositiveFloat | None = 600.0, pause: PositiveFloat = 3600.0, join: PositiveFloat = 600.0
    ) -> None:
        """See the class for the arguments."""
        self.limit, self.pause, self.join = limit, float(pause), float(join)
        self._status = Status(allowed=self.pause)
        self._ranks: list[Rank] = []
        self._rank = 0
        self._server: LifelineServer | None = None
        self._line: Lifeline | None = None
        self._exit = EmergencyExit(Path(), [], 0, [])
        self._alarm: MeetingAlarm | None = None
        self._met = False

    def configure(self, trainer: Trainer) -> None:
        """Set the time-out of the process group.

        Raises:
            UserError: There are several nodes, and nothing says where they meet.
        """
        if trainer.world_size == 1:
            return
        environment = getattr(trainer.strategy, "cluster_environment", None)
        if trainer.num_nodes > 1 and isinstance(environment, LightningEnvironment):
            missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
            if missing:
                raise UserError(
                    f"trainer.num_nodes is {trainer.num_nodes}, but {', '.join(missing)} is not set: start the nodes "
                    "with srun or torchrun, or set MASTER_ADDR, MASTER_PORT and NODE_RANK on each of them"
                )
        if hasattr(trainer.strategy, "_timeout"):
            trainer.strategy._timeout = timedelta(seconds=self.join)

    @contextmanager
    def meeting(self, trainer: Trainer) -> Iterator[None]:
        """Limit the time in which the ranks meet, which begins now.

        Raises:
            UserError: They did not meet.
        """
        if trainer.world_size == 1:
            yield
            return
        place = Place(trainer.global_rank, trainer.world_size, self.join)

        def end_children() -> None:
            children = list(getattr(trainer.strategy.launcher, "procs", []))
            EmergencyExit(Path(), [], 0, children).end_children(LEAVING)

        self._alarm = MeetingAlarm(place, end_children)
        try:
            yield
            self._wait_for_children(trainer)
        except Exception as error:
            if not self._met:
                end_children()  # they would wait for this rank
            first_use = "nccl" in str(error).lower()  # NCCL connects in the first collective
            if self._met or not lost_connection(error) or (dist.is_initialized() and not first_use):
                raise
            raise UserError(meeting_fault(error, place)) from None
        finally:
            self._alarm.cancel()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Connect the ranks."""
        if stage != "fit" or trainer.world_size == 1:
            return
        self._has_met()
        if self.limit is None:
            return
        self._rank = trainer.global_rank
        first = self._rank == 0
        token = secrets.token_hex(16)
        self._server = LifelineServer(self.limit, token) if first else None
        mine = (socket.gethostname(), os.getpid(), process_start(os.getpid()))
        everyone: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(everyone, (mine, (self._server.port, token) if self._server else None))
        self._ranks = [Rank(number, *place) for number, (place, _) in enumerate(everyone)]
        port, token = everyone[0][1]
        if self._server is not None:
            self._server.watch(self._ranks)
        self._exit = EmergencyExit(Path(trainer.default_root_dir), self._ranks, self._rank, self._children(trainer))
        address = ("127.0.0.1" if first else os.environ["MASTER_ADDR"], port)
        try:
            self._line = Lifeline(address, token, self._ranks, self._rank, self.limit, self._report, self._exit)
        except OSError as error:
            raise UserError(
                f"rank {self._rank} on {mine[0]} cannot reach {address[0]} port {port} ({error.strerror or error}): "
                "open the ports between the nodes, or set watchdog.limit to null to train without the watchdog"
            ) from None
        self._line.start()

    def _has_met(self) -> None:
        """Let collectives, also those of a mesh, wait longer than the watchdog."""
        self._met = True
        if self._alarm is not None:
            self._alarm.cancel()
        longest = timedelta(seconds=max(self.limit or 0, self.pause) + MARGIN)
        set_timeout = (
            getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
        )  # of torch before 2.15
        for group in list(getattr(dist.distributed_c10d._world, "pg_map", {})):
            with suppress(RuntimeError, ValueError, AttributeError):
                set_timeout(longest, group)

    def _wait_for_children(self, trainer: Trainer) -> None:
        """Wait until the ranks that Lightning started have ended, so that their CPU time counts as this process's."""
        for child in list(getattr(trainer.strategy.launcher, "procs", [])):
            with suppress(subprocess.TimeoutExpired):
                child.wait(GRACE)

    def _children(self, trainer: Trainer) -> list[subprocess.Popen]:
        """Return the ranks that Lightning started, without its observer, which would kill this process at once."""
        launcher = trainer.strategy.launcher
        watched: list[subprocess.Popen] | None = getattr(launcher, "procs", None)
        if launcher is None or not watched:
            return []
        children = list(watched)
        launcher.procs = list(children)  # type: ignore[attr-defined]
        watched.clear()  # the observer polls this list
        return children

    def _report(self) -> Status:
        return replace(self._status, waits=in_collective())

    def _pass(self, where: str, allowed: float | None, counted: bool = True) -> None:
        before = self._status
        seconds = self.pause if allowed is None else allowed
        self._status = Status(before.passed + counted, before.ticks + 1, where, seconds)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Allow more time up to the end of the first step."""
        self._pass("starts training", None)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the start of a step."""
        began = self._status.where.startswith("start")
        words = f"trains step {trainer.global_step + 1}"
        self._pass(f"starts, and {words}" if began else words, None if began else self.limit)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the end of a step; other callbacks may now evaluate, draw and save."""
        self._pass(f"is in the callbacks after step {trainer.global_step}", None)

    def before_forward(self) -> None:
        """Count that the callbacks at the start of a step are done."""
        self._pass(self._status.where, self._status.allowed)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        """Count the forward pass."""
        self._pass(self._status.where, self._status.allowed)

    def after_callbacks(self, where: str) -> None:
        """Count the end of all callbacks; the next batch is read."""
        self._pass(where, self.limit)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Allow more time while a checkpoint is written."""
        self._pass(f"saves a checkpoint after step {trainer.global_step}", None, counted=False)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Allow more time for each batch of the validation."""
        self._pass(f"validates after step {trainer.global_step}", None)

    def on_validation_batch_start(self, *_: Any) -> None:
        """Show progress: the ranks may have different numbers of batches."""
        self._pass(self._status.where, None, counted=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the end of the validation."""
        self._pass(f"has validated after step {trainer.global_step}", None)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Allow more time for the last checkpoint."""
        self._pass("ends training", None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell the other ranks; after a collective that another rank broke, wait to hear which one."""
        if self._line is None:
            return
        if is_planned_end(exception):
            self._close()
            if isinstance(exception, KeyboardInterrupt):
                atexit.register(self._exit.end_children, GRACE + LEAVING)
            return
        cause = user_error(exception)
        line = one_line(cause) if cause else fault_line(exception) or f"{type(exception).__name__}: {exception}"
        if isinstance(exception, SystemExit):
            line = f"something in it called sys.exit({exception.code!r}) before the end of training"
        line = " ".join(line.split())[:300]
        lost = cause is None and lost_connection(exception)
        if self._server is not None and not lost:
            self._server.announce(f"{self._ranks[0].name} failed: {line}")
        self._line.report_failure("lost" if lost else "failed", line)
        atexit.register(self._exit.end_children, GRACE + LEAVING)
        if lost and self.limit is not None:
            self._line.join(GRACE + 4 * interval(self.limit) + LEAVING)  # it ends the process
            me = self._ranks[self._rank]
            self._exit(Verdict("lost", (), f"{me.name} lost the connection to another rank ({line})"))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End the watch as planned; after a failure the lifelines stay, so that the other ranks hear of it."""
        if trainer.state.status != "interrupted":
            self._close()

    def _close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None
        if self._server is not None:
            self._server.close()
            self._server = None


def is_planned_end(exception: BaseException) -> bool:
    """Return whether a rank ends after a save, together with the others, or since a person interrupts it."""
    planned = isinstance(exception, SystemExit) and exception.code in (preemption.EXIT_CODE, preemption.INTERRUPTED)
    return planned or isinstance(exception, KeyboardInterrupt)


def in_collective() -> bool:
    """Return whether the main thread is in a collective, or in a backward pass, which may wait for one."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return False
    file = frame.f_code.co_filename.replace(os.sep, "/")
    ours = file.endswith("leam_mm/distributed.py")
    return ours or "torch/distributed/" in file or frame.f_code.co_name == "_engine_run_backward"


class AfterCallbacks(Callback):
    """The last callback: tells the watchdog that all others are done."""

    def __init__(self, watchdog: Watchdog) -> None:
        """``watchdog`` is the first callback."""
        self.watchdog = watchdog

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The forward pass comes after this."""
        self.watchdog.before_forward()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The next batch is read after this."""
        self.watchdog.after_callbacks(f"reads the batch after step {trainer.global_step}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The next batch is read after this."""
        self.watchdog.after_callbacks(f"reads the batch after step {trainer.global_step}")
