"""Loader processes: they ignore the signals of a job, end with their trainer, and are replaced if one is killed.

The order of batches is that of their numbers, so new workers that start at the next batch change nothing.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing.connection import wait
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data._utils import signal_handling

from leam_mm.errors import UserError

DEATHS = 2  # at the same batch, which end the run
DIED = "DataLoader worker (pid"  # begin of torch's message
log = logging.getLogger(__name__)
_expecting = False  # whether the main thread waits for a batch, where a death may be raised
_torch_handler: Any = None


class FromPosition(Sampler[int]):
    """Batch numbers from ``first`` on; its length is that of the whole run, for the progress bar."""

    def __init__(self, first: int, total: int) -> None:
        """See the class."""
        self.first, self.total = first, total

    def __iter__(self) -> Iterator[int]:
        """Iterate over the batch numbers."""
        return iter(range(self.first, self.total))

    def __len__(self) -> int:
        """Return the number of batches of the whole run."""
        return self.total


class RestartingLoader(DataLoader[Any]):
    """DataLoader over the batches of a FromPosition, one for each number; starts new workers if one is killed."""

    def __iter__(self) -> Any:
        """Iterate over the batches."""
        if not self.num_workers:
            return super().__iter__()
        _hold_back_deaths()  # before there are workers: one may die before the first batch is asked for
        return self._with_restarts(super().__iter__())

    def _with_restarts(self, iterator: Any) -> Iterator[Any]:
        global _expecting
        done = deaths = 0
        while True:
            _hold_back_deaths()
            try:
                try:
                    _expecting = True
                    if any(worker.exitcode for worker in iterator._workers):
                        raise RuntimeError(DIED)
                    batch = next(iterator)
                finally:
                    _expecting = False
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                if not _died(error, iterator):
                    raise
                deaths += 1
                if deaths == DEATHS:
                    raise UserError(
                        f"loader workers were killed {deaths} times at the same batch (out of memory?): lower "
                        "data.init_args.loading.workers; the same command continues from the last checkpoint"
                    ) from None
                log.warning("a loader worker was killed (out of memory?): the batches continue with new workers")
                iterator._shutdown_workers()
                iterator = self._continued(done)
                continue
            deaths = 0
            done += 1
            yield batch

    def _continued(self, done: int) -> Any:
        """Return an iterator with new workers that leaves out the first batches.

        The position is that of this pass alone: the next pass may begin before this one is closed.
        """
        assert isinstance(self.sampler, FromPosition)
        first = self.sampler.first
        self.sampler.first += done
        try:
            with torch.random.fork_rng(devices=[]):  # a new iterator draws from the generator of the run
                return super().__iter__()
        finally:
            self.sampler.first = first


def _died(error: Exception, iterator: Any) -> bool:
    """Return whether an error comes from the death of a worker."""
    if isinstance(error, RuntimeError):
        return str(error).startswith(DIED)
    # A batch is here, and the worker that was to hand over its memory is gone; its end may be reported a moment later.
    return bool(wait([worker.sentinel for worker in iterator._workers], timeout=1))


def _hold_back_deaths() -> None:
    """Let torch's handler of SIGCHLD raise only where a batch is expected, not in the middle of a training step."""
    global _torch_handler
    signal_handling._set_SIGCHLD_handler()  # torch does so once in a process, with its first workers
    current = signal.getsignal(signal.SIGCHLD)
    if current is _handle_death or not callable(current) or threading.current_thread() is not threading.main_thread():
        return
    _torch_handler = current
    signal.signal(signal.SIGCHLD, _handle_death)


def _handle_death(number: int, frame: Any) -> None:
    if _expecting:
        _torch_handler(number, frame)


def begin_worker(worker: int) -> None:
    """Ignore signals in a worker: schedulers signal all processes of a job, and without its workers a run cannot save.

    TERM still ends a worker if its own trainer sends it, as multiprocessing does at exit; and it ends with its trainer.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    trainer = multiprocessing.parent_process()  # not os.getppid(), which under forkserver is the server
    if trainer is None:
        return
    threading.Thread(target=_exit_after, args=(trainer.sentinel,), daemon=True).start()
    if hasattr(signal, "sigwaitinfo"):  # macOS has none; there TERM ends a worker
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_term_of, args=(trainer.pid,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    # torch's own watch looks between batches only: a worker that waits to hand one over would stay for ever.
    wait([sentinel])
    os._exit(1)


def _exit_on_term_of(trainer: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
        continue
    os._exit(0)
