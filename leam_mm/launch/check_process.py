"""Run one check in a process of its own with a hard time limit.

Collectives, GPU drivers and file systems hang in system calls that no exception interrupts; a process can be killed.
The process is forked, so that torch is imported once; the parent must not use the GPU.
"""

import contextlib
import ctypes
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from leam_mm.errors import without_addresses
from leam_mm.launch.check_result import CheckResult, results_from_json, results_to_json
from leam_mm.launch.rank_environment import RankEnvironment
from leam_mm.planning.cluster_profile import ClusterProfile

PARENT_DEATH_SIGNAL = 1  # of prctl(2)
TAIL = 300  # characters of a check's own output that are shown after a crash


@dataclass(frozen=True)
class Target:
    """What the checks examine.

    Args:
        ranks: Rank and host of this process.
        profile: Profile of the cluster; by default nothing is known about it.
        run: The run folder, or None.
    """

    ranks: RankEnvironment
    profile: ClusterProfile = field(default_factory=lambda: ClusterProfile("unknown", "unknown cluster"))
    run: Path | None = None


@dataclass(frozen=True)
class Check:
    """One check.

    Args:
        name: Name for ``--only`` and for results of a check that fails as a whole.
        run: Examines the target; runs in its own process.
        seconds: Hard time limit.
        hang: What it means if the limit is exceeded: the fix.
        together: All ranks run it at the same time.
        per_host: Only local rank 0 of each host runs it.
    """

    name: str
    run: Callable[[Target], list[CheckResult]]
    seconds: float
    hang: str = ""
    together: bool = False
    per_host: bool = False


def run_check(check: Check, target: Target) -> list[CheckResult]:
    """Run a check and return its results; an exception, a crash and a time-out become one failed result."""
    reader, writer = os.pipe()
    output = os.memfd_create("output")
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        os.close(reader)
        _run_in_child(check, target, writer, output)
    os.close(writer)
    try:
        text, ended = _read(reader, check.seconds)
        status = _end(process, kill=not ended)
        if not ended:
            return [CheckResult(check.name, None, expected=f"an end within {check.seconds:g} s", verdict="fail",
                                reason=f"no end within {check.seconds:g} s; the check was killed{_tail(output)}",
                                fix=check.hang)]  # fmt: skip
        if not text:
            ended_by = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
            reason = f"the check's process ended with {ended_by}{_tail(output)}"
            return [CheckResult(check.name, None, verdict="fail", reason=reason, fix=check.hang)]
        return results_from_json(text)
    finally:
        os.close(reader)
        os.close(output)


def _run_in_child(check: Check, target: Target, writer: int, output: int) -> None:
    try:
        with contextlib.suppress(Exception):
            ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout = sys.stderr = os.fdopen(output, "w", buffering=1, closefd=False)
        try:
            results = check.run(target)
        except Exception as error:
            lines = without_addresses(str(error)).strip().splitlines()
            reason = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
            results = [CheckResult(check.name, None, verdict="fail", reason=reason, fix=check.hang)]
        with open(writer, "wb") as pipe:
            pipe.write(results_to_json(results).encode())
        os._exit(0)
    finally:
        os._exit(1)


def _read(reader: int, seconds: float) -> tuple[bytes, bool]:
    """Return what the check wrote, and whether it ended in time."""
    end = time.monotonic() + seconds
    parts: list[bytes] = []
    with selectors.DefaultSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        while (left := end - time.monotonic()) > 0:
            if selector.select(left):
                part = os.read(reader, 1 << 16)
                if not part:
                    return b"".join(parts), True
                parts.append(part)
    return b"".join(parts), False


def _end(process: int, kill: bool) -> int:
    """Wait for a process and return its exit code; a process in an uninterruptible call is left after two seconds."""
    if kill:
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(process).children(recursive=True):
                child.kill()
        os.kill(process, signal.SIGKILL)
    for _ in range(200):
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return 0


def _tail(output: int) -> str:
    size = os.fstat(output).st_size
    text = os.pread(output, TAIL, max(0, size - TAIL)).decode(errors="replace")
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return f"; it wrote: ... {line}" if line else ""
