"""Worker processes that do jobs in parallel and never outlive the program that started them.

A job may hold many samples of strangers, and one of them may end the process that reads it: by a broken pointer in a
decoder, or because the system kills it for its memory. The task therefore calls ``begin_sample`` before each sample. If
a worker dies, each job that was running is done again, alone in a process of its own. A sample that ends a second
process is left out, and the task records it.
"""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, Generic, TypeVar

from leam_mm.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")
State = TypeVar("State")
FATAL_SAMPLES = 20  # of one job; above, the cause is elsewhere
LAST_SECONDS = 5.0  # for workers to end by themselves after the last job
PATROL_SECONDS = 1.0  # between two looks at the executor's thread
KILLED_SECONDS = 10.0  # for killed workers to be gone
NONE = -1  # in place of the number of a job or sample
log = logging.getLogger(__name__)


class WorkerDied(UserError):
    """A worker process ended before its job did, and no sample is the cause; it may have been killed for its memory."""


@dataclass
class _Handed(Generic[Job, Result]):
    """A job that workers have received.

    Args:
        number: Number of the job in its run.
        job: The job.
        future: Its result.
        suspect: The sample at which it was when a process died, so that it must run alone.
    """

    number: int
    job: Job
    future: "Future[Result]"
    suspect: int | None = None


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
        self._slots: Any = None
        self._others = set(multiprocessing.active_children())
        self._deaths = 0  # of workers that did no job

    def run(
        self,
        task: Callable[[State, Job], Result],
        jobs: Iterable[Job],
        ahead: int | None = None,
        died: Callable[[Job], Result] | None = None,
    ) -> Iterator[tuple[Job, Result]]:
        """Do all jobs and yield each with its result, in their order.

        A job whose process died runs again, so a task must leave nothing behind that hinders its repetition.

        Args:
            task: Function of a module, called with the state and a job.
            jobs: Jobs, read only when there is room for them.
            ahead: Number of jobs handed out before the first result is taken; by default all.
            died: Gives the result of a job that ended two processes outside of any sample.

        Raises:
            WorkerDied: A job ended two processes outside of any sample, or too many of its samples did.
        """
        if self._in_process:
            if self._state is None and self.prepare is not None:
                self._state = self.prepare(*self.arguments)
            for job in jobs:
                yield job, task(self._state, job)  # type: ignore[arg-type]
            return
        numbered, waiting = enumerate(jobs), deque[_Handed[Job, Result]]()
        while True:
            free = None if ahead is None else ahead - len(waiting)
            waiting.extend(
                _Handed(number, job, self._submit(task, number, job)) for number, job in islice(numbered, free)
            )
            if not waiting:
                return
            handed = waiting[0]
            if handed.suspect is not None:
                result = self._do_alone(task, handed, died)
            else:
                try:
                    result = self._result(self._pool, handed.future)
                except BrokenProcessPool:
                    self._restart(task, waiting)
                    continue
            waiting.popleft()
            yield handed.job, result

    def _result(self, pool: ProcessPoolExecutor | None, future: "Future[Result]") -> Result:
        """Wait for a result; the executor's own thread may end without one, if there is no memory for another thread.

        Raises:
            UserError: It ended so.
        """
        while not futures.wait([future], PATROL_SECONDS).done:
            thread = getattr(pool, "_executor_manager_thread", None)
            if thread is not None and not thread.is_alive() and not future.done():
                raise UserError(
                    f"the thread that serves the worker processes ended (out of memory or threads?): {self.cure}; the "
                    "same command continues where this one ended"
                )
        return future.result()

    def _submit(self, task: Callable[[State, Job], Result], number: int, job: Job) -> "Future[Result]":
        if self._pool is None:
            self._pool, self._slots = self._start(self.processes)
        try:
            return self._pool.submit(_do, task, number, job)
        except BrokenProcessPool as error:
            broken: Future[Result] = Future()
            broken.set_exception(error)
            return broken

    def _restart(self, task: Callable[[State, Job], Result], waiting: "Iterable[_Handed[Job, Result]]") -> None:
        """Start new workers after one has died: any job that was running may be the cause, the others are repeated."""
        assert self._pool is not None
        self._pool.shutdown()
        running = dict(zip(self._slots[::2], self._slots[1::2], strict=True))
        self._pool, causes = None, 0
        for handed in waiting:
            if handed.suspect is None and not (handed.future.done() and handed.future.exception() is None):
                handed.suspect = running.get(handed.number)
                causes += handed.suspect is not None
        self._deaths = 0 if causes else self._deaths + 1
        if self._deaths > 1:
            raise self._died()
        for handed in waiting:
            if handed.suspect is None and handed.future.exception() is not None:
                handed.future = self._submit(task, handed.number, handed.job)

    def _do_alone(
        self,
        task: Callable[[State, Job], Result],
        handed: "_Handed[Job, Result]",
        died: Callable[[Job], Result] | None,
    ) -> Result:
        """Do a job in a process of its own, as often as it takes to find the samples that end it."""
        deaths, fatal = Counter([handed.suspect]), set[int]()
        while len(fatal) <= FATAL_SAMPLES:
            pool, slots = self._start(1)
            try:
                future = pool.submit(_do, task, handed.number, handed.job, frozenset(fatal), True)
                result = self._result(pool, future)
                pool.shutdown()
                return result
            except BrokenProcessPool:
                pool.shutdown()
            deaths[slots[1]] += 1
            if deaths[slots[1]] > 1:
                if slots[1] == NONE:
                    if died is not None:
                        return died(handed.job)
                    break
                log.warning("sample %s of job %s ended two processes and is left out", slots[1], handed.number)
                fatal.add(slots[1])
        raise self._died()

    def _died(self) -> WorkerDied:
        return WorkerDied(
            f"a worker process died (out of memory?): {self.cure}; the same command continues where this one ended"
        )

    def _start(self, processes: int) -> tuple[ProcessPoolExecutor, Any]:
        """Return workers, and the shared numbers of the job and sample that each is doing."""
        # Spawned, because a fork copies neither threads (the progress bar, pyarrow) nor CUDA in a usable state.
        context = multiprocessing.get_context("spawn")
        started, slots = context.Value("i", 0), context.Array("q", [NONE] * 2 * processes, lock=False)
        arguments = (started, slots, self.prepare, self.arguments)
        return ProcessPoolExecutor(processes, context, _begin, arguments), slots

    def __enter__(self) -> "WorkerPool[State]":
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers; after an error, kill them: a job that is cut off leaves nothing that counts as done."""
        if self._in_process:
            return
        if self._pool is not None:
            # Without waiting: a worker that was killed while it waited for a job may have left a lock to the others.
            self._pool.shutdown(wait=False, cancel_futures=True)
        end = time.monotonic() + (LAST_SECONDS if kind is None else 0)
        workers = set(multiprocessing.active_children()) - self._others
        for process in workers:
            process.join(max(0.0, end - time.monotonic()))
            process.kill()  # if it is still busy, or still starting
        end = time.monotonic() + KILLED_SECONDS
        for process in workers:
            # A thread of the executor waits for them, too: while it collects one, join() returns without the result.
            while process.is_alive() and time.monotonic() < end:
                process.join(0.01)
                time.sleep(0.001)


_number = 0  # of this process among the workers
_own: Any = None  # state of this worker
_slots: Any = None  # numbers of the job and sample of each worker, shared with the parent
_fatal: frozenset[int] = frozenset()  # samples of this job that ended two processes
_alone = False


def worker_number() -> int:
    """Return the number of this worker process, from 0 in the order in which they started; 0 outside of a pool."""
    return _number


def begin_sample(number: int) -> bool:
    """Note which sample of its job this process reads next, so that the pool knows what ended it.

    Args:
        number: Number of the sample in its job, at least 0.

    Returns:
        False if the sample ended two processes: the task must record it and leave it out.
    """
    if _slots is not None:
        _slots[2 * _number + 1] = number
    return number not in _fatal


def runs_alone() -> bool:
    """Return whether the job runs again because a process died: the task must then treat each sample by itself."""
    return _alone


def _begin(started: Any, slots: Any, prepare: Callable[..., Any] | None, arguments: tuple[Any, ...]) -> None:
    global _number, _own, _slots
    become_worker()
    _slots = slots
    with started.get_lock():
        _number, started.value = started.value, started.value + 1
    if prepare is not None:
        _own = prepare(*arguments)


def _do(
    task: Callable[[Any, Any], Any], number: int, job: Any, fatal: frozenset[int] = frozenset(), alone: bool = False
) -> Any:
    global _fatal, _alone
    _fatal, _alone = fatal, alone
    _slots[2 * _number : 2 * _number + 2] = [number, NONE]
    try:
        return task(_own, job)
    finally:
        _slots[2 * _number] = NONE


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
