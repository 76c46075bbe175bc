"""First-in-first-out queue of the page: one request runs at a time, with limits on how many wait.

One thread runs the requests, so that models are never called by two threads, and memory does not grow with the number
of people. A request that nobody waits for any more is dropped before it starts, and stops at its next step if it runs.
"""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from leam_mm.serving.refusal import Refusal

WAITING = 64  # requests of all clients
WAITING_PER_CLIENT = 8


class Dropped(Exception):
    """Raised inside a running request that was cancelled."""


class Ticket:
    """One request in the queue.

    Args:
        client: Who asks; only compared with other clients.
        work: Called with the ticket when it is its turn. It calls ``check`` between steps.
    """

    def __init__(self, client: str, work: Callable[["Ticket"], Any]) -> None:
        """See the class for the arguments."""
        self.client, self.work = client, work
        self.done: Future[Any] = Future()
        self.finished_steps, self.steps = 0, 0
        self.started = False
        self._dropped = threading.Event()

    def cancel(self) -> None:
        """Drop the request: nobody waits for its result."""
        self._dropped.set()

    @property
    def cancelled(self) -> bool:
        """Whether the request was dropped."""
        return self._dropped.is_set()

    def check(self, finished: int = 0, steps: int = 0) -> None:
        """Note the progress of a running request.

        Args:
            finished: Steps that are finished.
            steps: All steps; 0 if not known.

        Raises:
            Dropped: The request was cancelled.
        """
        self.finished_steps, self.steps = finished, steps
        if self.cancelled:
            raise Dropped


class RequestQueue:
    """Runs requests one after the other, in the order in which they came.

    Args:
        waiting: Most requests that wait.
        per_client: Most requests of one client that wait or run.
    """

    def __init__(self, waiting: int = WAITING, per_client: int = WAITING_PER_CLIENT) -> None:
        """Start the thread; see the class for the arguments."""
        self.waiting, self.per_client = waiting, per_client
        self._tickets: deque[Ticket] = deque()
        self._running: Ticket | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="requests", daemon=True)
        self._thread.start()

    def submit(self, client: str, work: Callable[[Ticket], Any]) -> Ticket:
        """Append a request.

        Args:
            client: Who asks.
            work: The request; see ``Ticket``.

        Raises:
            Refusal: Too many requests wait.
        """
        ticket = Ticket(client, work)
        with self._changed:
            self._remove_cancelled()
            if self._closed:
                raise Refusal("closing")
            present = [*self._tickets, *([self._running] if self._running else [])]
            if sum(other.client == client and not other.cancelled for other in present) >= self.per_client:
                raise Refusal("too_many_of_yours", limit=self.per_client)
            if len(self._tickets) >= self.waiting:
                raise Refusal("queue_full", limit=self.waiting)
            self._tickets.append(ticket)
            self._changed.notify_all()
        return ticket

    def position(self, ticket: Ticket) -> int:
        """Return how many requests come first; 0 for the one that runs or has run."""
        with self._changed:
            self._remove_cancelled()
            if ticket not in self._tickets:
                return 0
            return list(self._tickets).index(ticket) + (self._running is not None)

    def __len__(self) -> int:
        """Return the number of requests that wait or run."""
        with self._changed:
            self._remove_cancelled()
            return len(self._tickets) + (self._running is not None)

    def close(self, timeout: float = 10.0) -> None:
        """Drop all requests, and end the thread."""
        with self._changed:
            self._closed = True
            for ticket in [*self._tickets, *([self._running] if self._running else [])]:
                ticket.cancel()
            self._changed.notify_all()
        self._thread.join(timeout)

    def _remove_cancelled(self) -> None:
        """Remove dropped requests that wait; the lock is held."""
        for ticket in [ticket for ticket in self._tickets if ticket.cancelled]:
            self._tickets.remove(ticket)
            ticket.done.cancel()

    def _next(self) -> Ticket | None:
        """Wait for the next request; None at the end."""
        with self._changed:
            self._running = None
            while True:
                self._remove_cancelled()
                if self._tickets:
                    self._running = self._tickets.popleft()
                    return self._running
                if self._closed:
                    return None
                self._changed.wait()

    def _run(self) -> None:
        while (ticket := self._next()) is not None:
            ticket.started = True
            if not ticket.done.set_running_or_notify_cancel():
                continue
            try:
                ticket.check()
                result = ticket.work(ticket)
            except BaseException as error:  # of the request; the thread continues with the next one
                ticket.done.set_exception(error)
            else:
                ticket.done.set_result(result)
            del ticket  # a waiting thread keeps no images
