"""Programs of this project in forked processes, and the breaks that ``faults`` applies to them.

A fork has all libraries loaded already, so that an attempt takes about a second. A trigger stops the process at a
random event (an optimizer step, or a rename of a finished file) or lets a random time pass; then the break happens.
"""

import errno
import faulthandler
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from leam_mm import run_lock
from leam_mm.errors import UserError, run

PATIENCE = 45.0  # seconds that an attempt may take
MIB = 1 << 20


@dataclass
class Attempt:
    """A program in a process group of its own.

    Args:
        pid: Its process.
        log: File with what it prints.
    """

    pid: int
    log: Path
    code: int | None = field(default=None, init=False)

    def poll(self, options: int = os.WNOHANG) -> str:
        """Return ``running``, ``stopped`` or ``ended``."""
        if self.code is not None:
            return "ended"
        found, status = os.waitpid(self.pid, options | os.WUNTRACED)
        if not found:
            return "running"
        if os.WIFSTOPPED(status):
            return "stopped"
        self.code = os.waitstatus_to_exitcode(status)
        return "ended"

    def wait(self, state: tuple[str, ...], seconds: float) -> str:
        """Wait for one of these states; return the last one."""
        end = time.monotonic() + seconds
        while (now := self.poll()) not in state and time.monotonic() < end:
            time.sleep(0.003)
        return now

    def end(self) -> int:
        """Return the exit code, negative for a signal; one that stops at its event only now is continued."""
        while (state := self.wait(("ended", "stopped"), PATIENCE)) == "stopped":
            os.kill(self.pid, signal.SIGCONT)
        if state != "ended":
            os.kill(self.pid, signal.SIGUSR2)  # prints where it hangs
            time.sleep(0.5)
            self.kill()
            raise UserError(f"{self.log.name} does not end within {PATIENCE:.0f} s: {self.output()[-3000:]}")
        assert self.code is not None
        return self.code

    def kill(self) -> None:
        """Kill it and all that it started."""
        if self.code is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait(("ended",), PATIENCE)

    def output(self) -> str:
        """Return what it printed until now."""
        return self.log.read_text(errors="replace")


def start(main: Callable[[list[str]], object], words: list[str], log: Path, prepare: Callable[[], None]) -> Attempt:
    """Fork a process that acts like the program; ``prepare`` is called in it first."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Attempt(pid, log)
    code = 1
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        faulthandler.register(signal.SIGUSR2, file=2)
        run_lock.PATIENCE = 0.3
        # So that worker processes, which are spawned, import the program's modules and not this benchmark.
        sys.modules["__main__"].__spec__ = None
        vars(sys.modules["__main__"]).pop("__file__", None)
        prepare()
        run(lambda: main(words))
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        from multiprocessing.util import _exit_function

        try:
            _exit_function()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def at_event(kind: str, count: int, act: Callable[[], None]) -> Callable[[], None]:
    """Return a preparation that acts at the n-th ``replace`` (of a finished file) or optimizer ``step``."""
    left = [count]

    def happen() -> None:
        left[0] -= 1
        if left[0] == 0:
            act()

    def prepare() -> None:
        if kind == "replace":
            original = os.replace

            def replace(*given: Any, **more: Any) -> None:
                happen()
                original(*given, **more)

            os.replace = replace  # type: ignore[assignment]
            return
        from leam_mm.data.batch import SamplePosition

        before = SamplePosition.on_train_batch_end

        def step(*given: Any, **more: Any) -> None:
            before(*given, **more)
            happen()

        SamplePosition.on_train_batch_end = step  # type: ignore[method-assign]

    return prepare


def stop() -> None:
    """Stop this process until the benchmark lets it go on."""
    os.kill(os.getpid(), signal.SIGSTOP)


def jump_clock(seconds: float) -> None:
    """Let the wall clock of this process jump."""
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + seconds  # type: ignore[assignment]
    time.time_ns = lambda: real_ns() + int(seconds * 1e9)  # type: ignore[assignment]


def forbid_starts() -> None:
    """Let no thread and no process start in this process, as under a limit of processes."""

    def no_thread(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def no_process(*given: Any) -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    threading.Thread.start = no_thread  # type: ignore[method-assign]
    os.fork = no_process
    subprocess._fork_exec = no_process  # type: ignore[attr-defined]


def limit_memory(pid: int, rng: random.Random) -> None:
    """Allow a process and its present children little more address space than they have."""
    for process in _family(pid):
        limit = process.memory_info().vms + rng.choice((0, 4096, MIB, 16 * MIB))
        resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))


def limit_files(pid: int, rng: random.Random) -> None:
    """Allow a process and its present children hardly any more open files."""
    for process in _family(pid):
        limit = max(int(name) for name in os.listdir(f"/proc/{process.pid}/fd")) + rng.choice((1, 1, 2, 4))
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (limit, limit))


def kill_child(pid: int, rng: random.Random, spawned: bool) -> bool:
    """Kill a random worker of a process, spawned or forked; return whether it has one."""
    children = [child for child in _family(pid)[1:] if not spawned or "spawn_main" in " ".join(child.cmdline())]
    if children:
        rng.choice(children).kill()
    return bool(children)


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


class SmallDisk:
    """A tmpfs that can be filled, emptied and made read-only; needs root.

    Args:
        folder: Where it is mounted.
        mebibytes: Its size.
    """

    def __init__(self, folder: Path, mebibytes: int = 48) -> None:
        """Mount it."""
        self.folder, self.filler = folder, folder / "filler"
        folder.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)], capture_output=True, text=True
        )
        self.mounted = mounted.returncode == 0

    def fill(self, left: int) -> None:
        """Leave so many bytes free."""
        with open(self.filler, "wb", buffering=0) as file:
            status = os.statvfs(self.folder)
            os.posix_fallocate(file.fileno(), 0, max(1, status.f_bavail * status.f_frsize - left))

    def free(self) -> None:
        """Free what `fill` took."""
        self.filler.unlink(missing_ok=True)

    def read_only(self, wanted: bool) -> None:
        """Make it read-only, or writable again."""
        command = ["mount", "-o", f"remount,{'ro' if wanted else 'rw'}", str(self.folder)]
        for _ in range(100):  # processes of a killed program may still be ending
            if subprocess.run(command, capture_output=True).returncode == 0:
                return
            time.sleep(0.1)
        raise UserError(f"{self.folder} cannot be remounted: a process still writes there")

    def unmount(self) -> None:
        """Unmount it."""
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)
