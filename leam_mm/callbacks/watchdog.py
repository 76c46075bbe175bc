"""Watchdog: a rank that dies, stops or gets stuck ends the whole run in a stated time, with its name and host.

Without it the other ranks wait in a collective, for ever or until a time-out that names nobody. Each rank reports its
progress by a lifeline (`leam_mm/lifelines.py`). When one is gone, every rank writes its stacks to the run folder, one
line is printed per host, and the process exits with code 76.

YAML:

    watchdog: {limit: 600, pause: 3600, join: 600}
"""

import atexit
import faulthandler
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jsonargparse.typing import PositiveFloat
from lightning.pytorch import Callback, LightningModule, Trainer

from leam_mm.errors import UserError, one_line, user_error
from leam_mm.files import atomic_write, write_text
from leam_mm.lifeline_server import LifelineServer
from leam_mm.lifelines import GRACE, Lifeline, Rank, Status, Verdict, interval, process_start
from leam_mm.rank_errors import lost_connection
from leam_mm.system_fault import fault_line

EXIT_CODE, FAILED = 76, 1
FOLDER = "watchdog"
WRITING = 5.0  # seconds for the stacks: the file system may be what is stuck
LEAVING = 3.0  # seconds in which a process that must end does so by itself
MARGIN = 60  # seconds by which the time-out of collectives is longer: it ends a run without a name
log = logging.getLogger(__name__)


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
        self._rank, self._local_rank = 0, 0
        self._run = Path()
        self._children: list[subprocess.Popen] = []
        self._server: LifelineServer | None = None
        self._line: Lifeline | None = None

    def configure(self, trainer: Trainer) -> None:
        """Set the time in which the ranks must meet."""
        if trainer.world_size > 1 and hasattr(trainer.strategy, "_timeout"):
            trainer.strategy._timeout = timedelta(seconds=self.join)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Connect the ranks."""
        if stage != "fit" or trainer.world_size == 1:
            return
        self._set_timeouts()
        if self.limit is None:
            return
        self._rank, self._local_rank = trainer.global_rank, trainer.local_rank
        self._run = Path(trainer.default_root_dir)
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
        address = ("127.0.0.1" if first else os.environ["MASTER_ADDR"], port)
        try:
            self._line = Lifeline(address, token, self._ranks, self._rank, self.limit, lambda: self._status, self._end)
        except OSError as error:
            raise UserError(
                f"rank {self._rank} on {mine[0]} cannot reach {address[0]} port {port} ({error.strerror or error}): "
                "open the ports between the nodes, or set watchdog.limit to null to train without the watchdog"
            ) from None
        self._line.start()
        self._take_children(trainer)

    def _set_timeouts(self) -> None:
        """Let collectives wait longer than the watchdog, also those of a mesh."""
        longest = timedelta(seconds=max(self.limit or 0, self.pause) + MARGIN)
        for group in list(getattr(dist.distributed_c10d._world, "pg_map", {})):
            with suppress(RuntimeError, ValueError, AttributeError):
                dist.distributed_c10d._set_pg_timeout(longest, group)

    def _take_children(self, trainer: Trainer) -> None:
        """Take the ranks that Lightning started from its observer, which would kill this process at once."""
        launcher = trainer.strategy.launcher
        children: list[subprocess.Popen] | None = getattr(launcher, "procs", None)
        if launcher is not None and children:
            self._children = list(children)
            launcher.procs = list(children)  # type: ignore[attr-defined]
            children.clear()  # the observer polls this list

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
        if isinstance(exception, SystemExit | KeyboardInterrupt):
            self._close()
            return
        cause = user_error(exception)
        line = one_line(cause) if cause else fault_line(exception) or f"{type(exception).__name__}: {exception}"
        line = " ".join(line.split())[:300]
        lost = cause is None and lost_connection(exception)
        if self._server is not None and not lost:
            self._server.announce(f"{self._ranks[0].name} failed: {line}")
        self._line.report_failure("lost" if lost else "failed", line)
        atexit.register(self._end_children, GRACE + LEAVING)
        if lost and self.limit is not None:
            self._line.join(GRACE + 4 * interval(self.limit) + LEAVING)  # it ends the process
            me = self._ranks[self._rank]
            self._end(Verdict("lost", (), f"{me.name} lost the connection to another rank ({line})"))

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

    def _end(self, verdict: Verdict) -> None:
        """Write the stacks, print the line, end what is left on this host, and end this process."""
        me = self._ranks[self._rank]
        mine = self._rank in verdict.ranks
        if mine and verdict.kind == "failed":
            time.sleep(LEAVING)  # its error is being printed
        writing = threading.Thread(target=self._write, args=(verdict,), daemon=True)
        writing.start()
        writing.join(WRITING)
        here = [rank for rank in self._ranks if rank.host == me.host and rank.number not in verdict.ranks]
        first = (here or [me])[0].number == self._rank
        if first:
            stacks = self._run / FOLDER
            words = "the same command resumes from the last checkpoint"
            with suppress(OSError, ValueError):
                print(f"error: {verdict.line}; stacks are in {stacks}; {words}", file=sys.stderr, flush=True)
            self._kill([rank for rank in self._ranks if rank.number in verdict.ranks and rank.host == me.host])
        self._end_children()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(FAILED if verdict.kind == "failed" else EXIT_CODE)

    def _kill(self, ranks: list[Rank]) -> None:
        """Kill ranks of this host that do not end by themselves: a stopped process keeps its memory and its locks."""
        limit = time.monotonic() + LEAVING
        for rank in ranks:
            while rank.started and process_start(rank.pid) == rank.started and rank.number != self._rank:
                if time.monotonic() > limit:
                    with suppress(OSError):
                        os.kill(rank.pid, signal.SIGKILL)
                    break
                time.sleep(0.05)

    def _end_children(self, seconds: float = LEAVING) -> None:
        limit = time.monotonic() + seconds
        for child in self._children:
            try:
                child.wait(max(0.0, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()

    def _write(self, verdict: Verdict) -> None:
        """Write the stacks of all threads, and torch's record of the last collectives."""
        folder = self._run / FOLDER
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(folder / f"rank-{self._rank}.txt") as temporary, open(temporary, "x") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {verdict.line}\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        record = collectives()
        if record is not None:
            with suppress(OSError):
                write_text(folder / f"rank-{self._rank}.collectives.json", record)


def collectives() -> str | None:
    """Return torch's record of the last collectives of this rank as JSON text, if it keeps one."""
    module = getattr(torch._C, "_distributed_c10d", None)
    nccl = torch.cuda.is_available() and torch.version.hip is None
    dump = getattr(module, "_dump_nccl_trace_json" if nccl else "_dump_fr_trace_json", None)
    if dump is None:
        return None
    try:
        found = dump()
    except Exception as error:  # a diagnosis must not hide what it is about
        log.debug("no record of collectives: %s", error)
        return None
    return found.decode(errors="replace") if isinstance(found, bytes) else str(found)


class AfterCallbacks(Callback):
    """The last callback: tells the watchdog that all others are done."""

    def __init__(self, watchdog: Watchdog) -> None:
        """``watchdog`` is the first callback."""
        self.watchdog = watchdog

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The next batch is read after this."""
        self.watchdog.after_callbacks(f"reads the batch after step {trainer.global_step}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The next batch is read after this."""
        self.watchdog.after_callbacks(f"reads the batch after step {trainer.global_step}")
