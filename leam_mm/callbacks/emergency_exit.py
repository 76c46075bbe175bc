"""The end of a run in which a rank is gone: stacks in the run folder, one line per host, exit code 76."""

import faulthandler
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from leam_mm.files import atomic_write, write_text
from leam_mm.lifelines import Rank, Verdict, process_start

EXIT_CODE, FAILED = 76, 1
FOLDER = "watchdog"
WRITING = 5.0  # seconds for the stacks: the file system may be what is stuck
LEAVING = 3.0  # seconds in which a process that must end does so by itself
log = logging.getLogger(__name__)


class EmergencyExit:
    """Ends this process, and what is left on its host.

    Args:
        run: The run folder.
        ranks: All ranks, in their order.
        number: This rank.
        children: Processes of the ranks that this one started.
    """

    def __init__(self, run: Path, ranks: Sequence[Rank], number: int, children: Sequence[subprocess.Popen]) -> None:
        """See the class for the arguments."""
        self._folder = run / FOLDER
        self._ranks, self._number, self._children = ranks, number, children

    def __call__(self, verdict: Verdict) -> None:
        """Write the stacks, print the line, kill what does not end by itself, and end with an exit code."""
        me = self._ranks[self._number]
        if me.number in verdict.ranks and verdict.kind == "failed":
            time.sleep(LEAVING)  # its error is being printed
        writing = threading.Thread(target=self._write, args=(verdict,), daemon=True)
        writing.start()
        writing.join(WRITING)
        left = [rank.number for rank in self._ranks if rank.host == me.host and rank.number not in verdict.ranks]
        if min(left, default=me.number) == me.number:
            words = f"stacks are in {self._folder}; the same command resumes from the last checkpoint"
            with suppress(OSError, ValueError):
                print(f"error: {verdict.line}; {words}", file=sys.stderr, flush=True)
            self._kill([rank for rank in self._ranks if rank.number in verdict.ranks and rank.host == me.host])
        self.end_children(LEAVING)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(FAILED if verdict.kind == "failed" else EXIT_CODE)

    def _kill(self, ranks: Sequence[Rank]) -> None:
        """Kill ranks of this host that do not end by themselves: a stopped process keeps its memory and its locks."""
        limit = time.monotonic() + LEAVING
        for rank in ranks:
            while rank.number != self._number and rank.started and process_start(rank.pid) == rank.started:
                if time.monotonic() > limit:
                    with suppress(OSError):
                        os.kill(rank.pid, signal.SIGKILL)
                    break
                time.sleep(0.05)

    def end_children(self, seconds: float) -> None:
        """Wait for the ranks that this one started, and kill those that do not end in time."""
        limit = time.monotonic() + seconds
        for child in self._children:
            try:
                child.wait(max(0.0, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()

    def _write(self, verdict: Verdict) -> None:
        """Write the stacks of all threads, and torch's record of the last collectives."""
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._folder / f"rank-{self._number}.txt") as temporary, open(temporary, "x") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {verdict.line}\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            record = collectives()
            if record is not None:
                write_text(self._folder / f"rank-{self._number}.collectives.json", record)


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
