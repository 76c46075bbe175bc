"""Rate limits per host: a number of connections at a time, a delay between requests, and longer pauses on request.

All processes that share a folder share the budget. A connection is a locked file there, which the operating system
releases when a process dies; the time of a host's next request is the content of another file. ``HostQueue`` hands out
the links of a part so that hosts take turns and no thread waits for one host while another one is free.
"""

import fcntl  # not filelock: files are locked that are read and written through the same descriptor
import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TextIO, TypeVar

Job = TypeVar("Job")
OCCUPIED = 0.02  # seconds until a host whose connections are all in use is tried again
BUCKETS = 4  # hex digits of a host's file name: above 65,536 hosts some share a file, and so a stricter limit


@dataclass(frozen=True)
class Connection:
    """Permission for one connection to a host.

    Args:
        descriptor: The locked file, or -1 for a host without limits.
    """

    descriptor: int

    def release(self) -> None:
        """Allow another connection in its place."""
        if self.descriptor >= 0:
            os.close(self.descriptor)


class HostBudget:
    """Counts connections and keeps delays, for each host.

    Args:
        folder: Folder shared by all processes of a download.
        connections: Largest number of connections to one host at a time.
        delay: Seconds between the starts of two requests to one host.
        longer: Longer delays, by host.
        unlimited: Hosts without limits; only pauses that they request themselves apply.
    """

    def __init__(
        self, folder: Path, connections: int, delay: float, longer: dict[str, float], unlimited: frozenset[str]
    ) -> None:
        """Create the folder; see the class for the arguments."""
        self.folder, self.connections, self.delay = folder, connections, delay
        self.longer, self.unlimited = longer, unlimited
        folder.mkdir(parents=True, exist_ok=True)

    def acquire(self, host: str) -> Connection | float:
        """Return a connection, or the seconds after which to try again."""
        if not host or (host in self.unlimited and not self._file(host, "next").exists()):
            return Connection(-1)
        now = time.time()
        with open(self._file(host, "next"), "a+", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            next_time = _read_time(file)
            if next_time > now:
                return next_time - now
            if host in self.unlimited:
                return Connection(-1)
            for number in range(self.connections):
                descriptor = os.open(self._file(host, str(number)), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(descriptor)
                    continue
                if delay := max(self.delay, self.longer.get(host, 0.0)):
                    _write_time(file, now + delay)
                return Connection(descriptor)
        return OCCUPIED

    def pause(self, host: str, seconds: float, requested: bool) -> None:
        """Send a host no requests for a while; a longer pause stays.

        Args:
            host: The host.
            seconds: Length of the pause.
            requested: Whether the host asked for it; others do not apply to unlimited hosts.
        """
        if not host or (host in self.unlimited and not requested):
            return
        with open(self._file(host, "next"), "a+", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _write_time(file, max(_read_time(file), time.time() + seconds))

    def _file(self, host: str, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(host.encode()).hexdigest()[:BUCKETS]}.{name}"


def _read_time(file: TextIO) -> float:
    file.seek(0)
    try:
        return float(file.read())
    except ValueError:
        return 0.0  # empty, or incomplete after a kill


def _write_time(file: TextIO, seconds: float) -> None:
    file.truncate(0)
    file.write(f"{seconds:.6f}")
    file.flush()


class HostQueue(Generic[Job]):
    """Hands jobs to threads, host by host in turn, each with a connection.

    Args:
        jobs: Pairs of host and job, in the order of the table.
        budget: Limits of the hosts.
        longest_wait: Jobs of a host whose pause is longer than this are given up, in seconds.
        give_up: Called with such a job and the seconds that remain of the pause.
    """

    def __init__(
        self,
        jobs: list[tuple[str, Job]],
        budget: HostBudget,
        longest_wait: float,
        give_up: Callable[[Job, float], None],
    ) -> None:
        """Sort the jobs by host; see the class for the arguments."""
        self.budget, self.longest_wait, self._give_up = budget, longest_wait, give_up
        self._waiting: dict[str, deque[Job]] = {}
        for host, job in jobs:
            self._waiting.setdefault(host, deque()).append(job)
        self._turn = deque(self._waiting)
        self._not_before: dict[str, float] = {}
        self._changed = threading.Condition()
        self._open, self._stopped = len(jobs), False

    def take(self) -> tuple[str, Job, Connection] | None:
        """Wait for the next job whose host has a free connection; None when all jobs are done."""
        with self._changed:
            while self._open and not self._stopped:
                pause = 0.5
                for _ in range(len(self._turn)):
                    host = self._turn[0]
                    self._turn.rotate(-1)
                    left = self._not_before.get(host, 0.0) - time.monotonic()
                    if left <= 0:
                        found = self.budget.acquire(host)
                        if isinstance(found, Connection):
                            job = self._waiting[host].popleft()
                            if not self._waiting[host]:
                                self._turn.remove(host)
                                del self._waiting[host]
                            return host, job, found
                        left = found
                        self._not_before[host] = time.monotonic() + left
                    if left > self.longest_wait:
                        self._drop(host, left)
                    else:
                        pause = min(pause, left)
                if self._open:
                    self._changed.wait(pause)
            return None

    def _drop(self, host: str, left: float) -> None:
        jobs = self._waiting.pop(host)
        self._turn.remove(host)
        self._not_before.pop(host, None)
        self._open -= len(jobs)
        for job in jobs:
            self._give_up(job, left)
        self._changed.notify_all()

    def retry(self, host: str, job: Job) -> None:
        """Queue a taken job again, behind the host's other jobs."""
        with self._changed:
            if host not in self._waiting:
                self._waiting[host] = deque()
                self._turn.append(host)
            self._waiting[host].append(job)
            self._not_before.pop(host, None)
            self._changed.notify()

    def done(self) -> None:
        """Count a taken job as done."""
        with self._changed:
            self._open -= 1
            if self._open:
                self._changed.notify()
            else:
                self._changed.notify_all()

    def stop(self) -> None:
        """Hand out no more jobs."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
