"""Lifelines: one TCP connection from each rank to the first one, by which the ranks notice that one of them is gone.

They are independent of collectives. The kernel closes the connection of a process that dies, so that its death is known
at once. A process that stops, or whose host is unreachable, is known by its silence. A process that lives but makes no
progress is known by its count of passed points, which all ranks pass in the same order: the others wait for the one
with the lowest count.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

LONGEST_LINE = 4000  # bytes of a message
GRACE = 10.0  # seconds in which the other ranks may end by themselves after one failed
Kind = Literal["died", "silent", "stuck", "failed", "lost"]
open_sockets: set[socket.socket] = set()


def _close_in_child() -> None:
    """Close copies in a forked process: a connection is closed by a death only if no loader worker holds it too."""
    for one in open_sockets:
        with suppress(OSError):
            one.close()
    open_sockets.clear()


os.register_at_fork(after_in_child=_close_in_child)


@dataclass(frozen=True)
class Rank:
    """Where a rank runs.

    Args:
        number: Global rank.
        host: Name of its host.
        pid: Its process.
        started: Start time of the process in clock ticks, which tells it from a later process of the same number.
    """

    number: int
    host: str
    pid: int
    started: int

    @property
    def name(self) -> str:
        """Return the words that name the rank in messages."""
        return f"rank {self.number} on host {self.host}"


@dataclass(frozen=True)
class Verdict:
    """Why the run must end.

    Args:
        kind: ``failed`` if a rank reported an error of its own, ``lost`` if one only lost its connection to another.
        ranks: Numbers of the ranks to blame.
        line: One line for the user.
    """

    kind: Kind
    ranks: tuple[int, ...]
    line: str


@dataclass(frozen=True)
class Status:
    """State of a rank, as its lifeline reports it.

    Args:
        passed: Points of the training loop that it has passed; all ranks pass the same ones in the same order.
        ticks: The same, and signs of progress between them.
        where: What it does now, in words.
        allowed: Seconds without progress that are allowed here.
        waits: Whether it is in a collective, in which it may wait for another rank.
    """

    passed: int = 0
    ticks: int = 0
    where: str = "starts"
    allowed: float = 3600.0
    waits: bool = False


def interval(limit: float) -> float:
    """Return the seconds between two messages of a lifeline."""
    return min(5.0, limit / 10)


def process_start(pid: int) -> int:
    """Return the start time of a process in clock ticks; 0 if it is unknown, or the process a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return 0 if fields[0] == "Z" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return 0


SLOW = "if it is only slow, raise watchdog.limit (steps) or watchdog.pause (evaluation, saving, the first step)"


class Lines:
    """Messages of a connection, one JSON object a line."""

    def __init__(self, connection: socket.socket) -> None:
        """Wrap a connection that has a timeout."""
        self.connection, self._rest = connection, b""
        open_sockets.add(connection)

    def send(self, message: dict[str, Any]) -> None:
        """Send a message."""
        with suppress(OSError):  # a closed connection is noticed by receive
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """Return the messages that arrived within the connection's timeout; None if the connection is closed."""
        try:
            found = self.connection.recv(65536)
        except (TimeoutError, BlockingIOError):
            return []
        except OSError:
            return None
        if not found:
            return None
        *lines, self._rest = (self._rest + found).split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            return None
        valid = len(self._rest) <= LONGEST_LINE and all(isinstance(message, dict) for message in messages)
        return messages if valid else None

    def close(self) -> None:
        """Close the connection."""
        open_sockets.discard(self.connection)
        with suppress(OSError):
            self.connection.close()


class Clock:
    """A monotonic clock that stands still while this process is stopped, as by Ctrl-Z or ``scontrol suspend``."""

    def __init__(self, longest: float) -> None:
        """``longest`` is the time between two calls of ``tick`` that is taken for a stop of this process."""
        self._longest, self._lost, self._last = longest, 0.0, time.monotonic()

    def tick(self) -> float:
        """Return the time, which must be asked for regularly."""
        now = time.monotonic()
        if now - self._last > self._longest:
            self._lost += now - self._last
        self._last = now
        return now - self._lost


class Lifeline(threading.Thread):
    """The end of a lifeline on each rank, the first one included: it reports progress, and hears who is gone.

    Args:
        address: Host and port of the server.
        token: See LifelineServer.
        ranks: All ranks, in their order.
        number: This rank.
        limit: Seconds of silence after which the first rank is taken for dead.
        status: Returns the state of this rank.
        end: Called once in this thread if the run must end.
    """

    def __init__(
        self,
        address: tuple[str, int],
        token: str,
        ranks: Sequence[Rank],
        number: int,
        limit: float,
        status: Callable[[], Status],
        end: Callable[[Verdict], None],
    ) -> None:
        """Connect.

        Raises:
            OSError: The first rank cannot be reached.
        """
        super().__init__(daemon=True, name="lifeline")
        self._first, self._limit, self._status, self._end = ranks[0], limit, status, end
        connection = socket.create_connection(address, timeout=30)
        connection.settimeout(interval(limit) / 2)
        self._lines, self._clock = Lines(connection), Clock(3 * interval(limit) + 2)
        self._sending = threading.Lock()
        self._over = threading.Event()
        self._send({"rank": number, "token": token})

    def _send(self, message: dict[str, Any]) -> None:
        with self._sending:
            self._lines.send(message)

    def report_failure(self, kind: Kind, line: str) -> None:
        """Tell the first rank that this one fails."""
        self._send({"failure": line[: LONGEST_LINE // 8], "kind": kind})

    def close(self) -> None:
        """Say that this rank ends as planned."""
        self._over.set()
        self._send({"over": True})

    def run(self) -> None:
        """Exchange messages until this rank ends, or must end."""
        heard, sent, failing = self._clock.tick(), -1e9, None
        while not self._over.is_set():
            now = self._clock.tick()
            if now - sent >= interval(self._limit):
                self._send({"status": asdict(self._status())})
                sent = now
            messages = self._lines.receive()
            now = self._clock.tick()
            heard = now if messages else heard
            failing = next((message["failing"] for message in messages or [] if message.get("failing")), failing)
            if any("closing" in message for message in messages or []):
                return
            given = next((message for message in messages or [] if "line" in message), None)
            verdict: Verdict | None = None
            if given is not None:
                verdict = Verdict(given["kind"], tuple(given["ranks"]), given["line"])
            elif messages is None and failing:
                self._over.wait(GRACE)  # this rank may have the same error
                verdict = Verdict("failed", (0,), failing)
            elif messages is None:
                line = f"{self._first.name} (process {self._first.pid}) died without a message, as after a kill"
                verdict = Verdict("died", (0,), line)
            elif now - heard > self._limit:
                verdict = Verdict(
                    "silent", (0,), f"{self._first.name} gave no sign of life for {self._limit:g} s; {SLOW}"
                )
            if verdict is not None and not self._over.is_set():
                self._end(verdict)
                return
