"""Worker processes that do jobs in parallel and never outlive the program that started them."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, Generic, TypeVar

from leam_mm.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")
State = TypeVar("State")


class WorkerDied(UserError):
    """A worker process ended before its job did; the operating system may have killed it for its memory."""


class WorkerPool(Generic[State]):
    """Does jobs in this process, or in several worker processes that are started once, when first needed.

    Use it as a context manager: at its end the workers end, after an error at once. Which worker does a job must not
    matter for its result.

    Args:
        processes: Number of processes; 1 does all jobs in this process and starts none.
        prepare: Called once in each process; tasks receive what it returns as their first argument. A function of a
            module, so that a new process finds it by its name. Without it, tasks receive None.
        arguments: Of ``prepare``; they are pickled.
        state: What tasks receive in this process, if it need not be prepared.
        isolated: Start a worker even if ``processes`` is 1, because a job may bring its process down.
        cure: What the user can do if a worker dies, for the error message.
    """

    def __init__(
        self,
        processes: int,
        prepare: Callable[..., State] | None = None,
        *arguments: Any,
        state: State | None = None,
        isolated: bool = False,
        cure: str = "give fewer --processes",
    ) -> None:
        """Start nothing yet; see the class for the arguments."""
        self.processes, self.prepare, self.arguments, self.cure = processes, prepare, arguments, cure
        self._state, self._in_process = state, processes == 1 and not isolated
        self._pool: ProcessPoolExecutor | None = None
        self._others: set[Any] = set()

    def run(
        self, task: Callable[[State, Job], Result], jobs: Iterable[Job], ahead: int | None = None
    ) -> Iterator[tuple[Job, Result]]:
        """Do all jobs and yield each with its result, in their order.

        Args:
            task: Function of a module, called with the state and a job.
            jobs: Jobs, read only when there is room for them.
            ahead: Number of jobs handed out before the first result is taken; by default all.

        Raises:
            WorkerDied: A worker was killed.
        """
        if self._in_process:
            if self._state is None and self.prepare is not None:
                self._state = self.prepare(*self.arguments)
            for job in jobs:
                yield job, task(self._state, job)  # type: ignore[arg-type]
            return
        if self._pool is None:
            self._pool = self._start()
        coming, waiting = iter(jobs), deque[tuple[Job, Future[Result]]]()
        try:
            while True:
                free = None if ahead is None else ahead - len(waiting)
                waiting.extend((job, self._pool.submit(_do, task, job)) for job in islice(coming, free))
                if not waiting:
                    return
                job, future = waiting.popleft()
                yield job, future.result()
        except BrokenProcessPool:
            raise WorkerDied(
                f"a worker process died (out of memory?): {self.cure}; the same command continues where this one ended"
            ) from None

    def _start(self) -> ProcessPoolExecutor:
        # Spawned, because a fork copies neither threads (the progress bar, pyarrow) nor CUDA in a usable state.
        context = multiprocessing.get_context("spawn")
        self._others = set(multiprocessing.active_children())
        started = context.Value("i", 0)
        return ProcessPoolExecutor(self.processes, context, _begin, (started, self.prepare, self.arguments))

    def __enter__(self) -> "WorkerPool[State]":
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers; after an error, kill them: a job that is cut off leaves nothing that counts as done."""
        if self._pool is None:
            return
        self._pool.shutdown(wait=kind is None, cancel_futures=True)
        if kind is not None:
            for process in set(multiprocessing.active_children()) - self._others:
                process.kill()


_number = 0  # of this process among the workers
_own: Any = None  # state of this worker


def worker_number() -> int:
    """Return the number of this worker process, from 0 in the order in which they started; 0 outside of a pool."""
    return _number


def _begin(started: Any, prepare: Callable[..., Any] | None, arguments: tuple[Any, ...]) -> None:
    global _number, _own
    become_worker()
    with started.get_lock():
        _number, started.value = started.value, started.value + 1
    if prepare is not None:
        _own = prepare(*arguments)


def _do(task: Callable[[Any, Any], Any], job: Any) -> Any:
    return task(_own, job)


def become_worker() -> None:
    """Ignore interrupts from the keyboard, which the main process handles, and end with the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, however that ended."""
    parent, number = multiprocessing.parent_process(), os.getppid()

    def watch() -> None:
        if parent is not None:
            wait([parent.sentinel])
        else:  # started by subprocess: an orphan gets another parent
            while os.getppid() == number:
                time.sleep(0.3)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
