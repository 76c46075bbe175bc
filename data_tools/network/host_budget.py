"""Be a polite guest: so many connections to one host at a time, so long between two requests, and patience on demand.

All processes that share a folder share the budget: a connection is a locked file there, which the operating system sets
free when a process dies, and a host's next moment is the content of another. The queue hands out a part's links so that
hosts take turns and no thread waits for one host while another is free.
"""

import fcntl
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
OCCUPIED = 0.02  # seconds until a host whose connections are all in use is asked again
BUCKETS = 4  # hex digits of a host's file name: hosts beyond 65,536 share files, which only makes us more polite


@dataclass(frozen=True)
class Place:
    """A connection that may be made now.

    Args:
        handle: The locked file, or -1 for a host without a budget.
    """

    handle: int

    def leave(self) -> None:
        """Give the place back."""
        if self.handle >= 0:
            os.close(self.handle)


class HostBudget:
    """Counts connections and keeps pauses, for each host.

    Args:
        folder: Shared by all processes of a download.
        connections: At a time, to one host.
        delay: Seconds between the beginnings of two requests to one host.
        longer: Longer delays, by host.
        free: Hosts without a budget; they are left alone only when they ask for it.
    """

    def __init__(
        self, folder: Path, connections: int, delay: float, longer: dict[str, float], free: frozenset[str]
    ) -> None:
        """Create the folder; see the class for the arguments."""
        self.folder, self.connections, self.delay, self.longer, self.free = folder, connections, delay, longer, free
        folder.mkdir(parents=True, exist_ok=True)

    def enter(self, host: str) -> Place | float:
        """A place, or the seconds after which to ask again."""
        if not host or (host in self.free and not self._file(host, "next").exists()):
            return Place(-1)
        now = time.time()
        with open(self._file(host, "next"), "a+", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            moment = _moment(file)
            if moment > now:
                return moment - now
            if host in self.free:
                return Place(-1)
            for number in range(self.connections):
                handle = os.open(self._file(host, str(number)), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(handle)
                    continue
                if delay := max(self.delay, self.longer.get(host, 0.0)):
                    _write(file, now + delay)
                return Place(handle)
        return OCCUPIED

    def hold(self, host: str, seconds: float, asked: bool) -> None:
        """Leave a host alone for a while, because it asked for it or to be on the safe side; a longer pause stays."""
        if not host or (host in self.free and not asked):
            return
        with open(self._file(host, "next"), "a+", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _write(file, max(_moment(file), time.time() + seconds))

    def _file(self, host: str, what: str) -> Path:
        return self.folder / f"{hashlib.sha256(host.encode()).hexdigest()[:BUCKETS]}.{what}"


def _moment(file: TextIO) -> float:
    file.seek(0)
    try:
        return float(file.read())
    except ValueError:
        return 0.0  # empty, or torn by a kill


def _write(file: TextIO, moment: float) -> None:
    file.truncate(0)
    file.write(f"{moment:.6f}")
    file.flush()


class HostQueue(Generic[Job]):
    """Hands jobs to threads, host by host in turn, each with a place at its host.

    Args:
        jobs: Host and job, in the order of the table.
        budget: Of the hosts.
        longest_wait: Jobs of a host that must be left alone for longer than this are given up, in seconds.
        give_up: Called with such a job.
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

    def take(self) -> tuple[str, Job, Place] | None:
        """The next job, when its host has a place for it; None when all are done."""
        with self._changed:
            while self._open and not self._stopped:
                pause = 0.5
                for _ in range(len(self._turn)):
                    host = self._turn[0]
                    self._turn.rotate(-1)
                    left = self._not_before.get(host, 0.0) - time.monotonic()
                    if left <= 0:
                        place = self.budget.enter(host)
                        if isinstance(place, Place):
                            job = self._waiting[host].popleft()
                            if not self._waiting[host]:
                                self._turn.remove(host)
                                del self._waiting[host]
                            return host, job, place
                        left = place
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

    def back(self, host: str, job: Job) -> None:
        """Take a job that is to be tried again, behind those that were not tried yet."""
        with self._changed:
            if host not in self._waiting:
                self._waiting[host] = deque()
                self._turn.append(host)
            self._waiting[host].append(job)
            self._not_before.pop(host, None)
            self._changed.notify()

    def done(self) -> None:
        """Count a job that is over."""
        with self._changed:
            self._open -= 1
            if self._open:
                self._changed.notify()
            else:
                self._changed.notify_all()

    def stop(self) -> None:
        """Give out no more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
