"""The first rank's end of all lifelines, which decides which rank is gone."""

import selectors
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from leam_mm.lifelines import GRACE, SLOW, Clock, Kind, Lines, Rank, Status, Verdict, interval, open_sockets


@dataclass
class _Watched:
    """What the first rank knows about a rank; times are those of the monotonic clock."""

    rank: Rank
    heard: float
    moved: float
    status: Status = field(default_factory=Status)
    lines: Lines | None = None
    over: bool = False  # it said that it ends
    closed: bool = False
    failure: tuple[float, Kind, str] | None = None


class LifelineServer(threading.Thread):
    """The first rank's end of all lifelines: it decides which rank is gone and tells all others.

    Args:
        limit: Seconds of silence after which a rank is taken for dead.
        token: What a rank sends first; strangers do not know it.
    """

    def __init__(self, limit: float, token: str) -> None:
        """See the class for the arguments."""
        super().__init__(daemon=True, name="lifelines")
        self.limit, self._token = limit, token
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        self._listener = socket.create_server(("", 0), family=family, dualstack_ipv6=dual, backlog=4096)
        self._listener.setblocking(False)
        open_sockets.add(self._listener)
        self.port: int = self._listener.getsockname()[1]
        self._watched: dict[int, _Watched] = {}
        self._selector = selectors.DefaultSelector()
        self._clock = Clock(3 * interval(limit) + 2)
        self._closing = threading.Event()
        self._announced: str | None = None

    def watch(self, ranks: Sequence[Rank]) -> None:
        """Start to watch these ranks."""
        now = self._clock.tick()
        self._watched = {rank.number: _Watched(rank, now, now) for rank in ranks}
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self.start()

    def announce(self, failure: str) -> None:
        """Tell the other ranks that the first one, which holds this server, fails."""
        self._announced = failure

    def close(self) -> None:
        """Tell the other ranks that the first one ends as planned, and stop."""
        self._closing.set()
        self.join(timeout=5)

    def run(self) -> None:
        """Answer each rank once an interval, until one is gone or the run is over."""
        pause, answered, announced = interval(self.limit), 0.0, False
        while not self._closing.is_set():
            for key, _ in self._selector.select(timeout=pause / 4):
                self._accept() if key.data is None else self._read(key.data)
            now = self._clock.tick()
            if self._announced and not announced:
                announced, answered = True, 0.0
            if verdict := self._judge(now):
                self._send_all(asdict(verdict))
                return  # the connections stay open until this process ends
            if now - answered >= pause:
                answered = now
                self._send_all({"beat": True, "failing": self._announced})
        self._send_all({"closing": True})

    def _send_all(self, message: dict[str, Any]) -> None:
        for one in sorted(self._watched.values(), key=lambda one: -one.rank.number):  # this process last: it ends then
            if one.lines is not None and not one.closed:
                one.lines.send(message)

    def _accept(self) -> None:
        with suppress(OSError):
            connection, _ = self._listener.accept()
            connection.settimeout(2)
            self._selector.register(connection, selectors.EVENT_READ, [Lines(connection), None])

    def _read(self, entry: list[Any]) -> None:
        lines, one = entry
        messages = lines.receive()
        for message in messages or []:
            if one is None:
                one = entry[1] = self._greet(lines, message)
            if one is None:
                messages = None
                break
            self._note(one, message)
        if messages is None:
            self._selector.unregister(lines.connection)
            lines.close()
            if one is not None:
                one.closed = True

    def _greet(self, lines: Lines, message: dict[str, Any]) -> _Watched | None:
        one = self._watched.get(message.get("rank", -1))
        if one is None or message.get("token") != self._token:
            return None
        one.lines = lines
        return one

    def _note(self, one: _Watched, message: dict[str, Any]) -> None:
        one.heard = now = self._clock.tick()
        if "status" in message:
            status = Status(**message["status"])
            if status.ticks != one.status.ticks:
                one.moved = now
            one.status = status
        if "failure" in message:
            one.failure = (now, message["kind"], message["failure"])
        one.over = one.over or "over" in message

    def _judge(self, now: float) -> Verdict | None:
        """Return which rank is gone, if any: dead ones first, since they are the cause of what the others report."""
        present = [one for one in self._watched.values() if not one.over]
        for one in present:
            if one.closed and one.failure is None:
                line = f"{one.rank.name} (process {one.rank.pid}) died without a message, as after a kill"
                return Verdict("died", (one.rank.number,), line)
        for one in present:
            if not one.closed and one.failure is None and now - one.heard > self.limit:
                return _silent(one, self.limit)
        for one in sorted(present, key=lambda one: bool(one.failure and one.failure[1] == "lost")):
            if one.failure is not None and now - one.failure[0] > GRACE:
                return Verdict(one.failure[1], (one.rank.number,), f"{one.rank.name} failed: {one.failure[2]}")
        # The others wait for one that failed, which is reported first.
        return None if any(one.failure for one in self._watched.values()) else self._stuck(present, now)

    def _stuck(self, present: list[_Watched], now: float) -> Verdict | None:
        least = min((one.status.passed for one in present), default=0)
        last = [one for one in present if one.status.passed == least]
        # Those in a collective wait for those that are not, if there are any.
        last = [one for one in last if not one.status.waits] or last
        if not last or not all(now - one.moved > one.status.allowed for one in last):
            return None
        quiet = next((one for one in last if now - one.heard > 5 * interval(self.limit)), None)
        if quiet is not None:
            return _silent(quiet, now - quiet.heard)
        seconds = f"made no step for {min(one.status.allowed for one in last):g} s"
        over = [one.rank.name for one in self._watched.values() if one.over]
        if over:  # those that are left may wait for it for ever
            seconds += f" after {over[0]} ended"
        if len(last) == len(self._watched) > 1:
            return Verdict("stuck", (), f"all {len(last)} ranks {seconds}: {_does(last[0])}")
        names = ", ".join(one.rank.name for one in last[:3]) + (f" and {len(last) - 3} more" if len(last) > 3 else "")
        return Verdict("stuck", tuple(one.rank.number for one in last), f"{names} {seconds}: {_does(last[0])}")


def _does(one: _Watched) -> str:
    return f"the last it said is that it {one.status.where}; {SLOW}"


def _silent(one: _Watched, seconds: float) -> Verdict:
    line = f"{one.rank.name} gave no sign of life for {seconds:.3g} s: {_does(one)}"
    return Verdict("silent", (one.rank.number,), line)
