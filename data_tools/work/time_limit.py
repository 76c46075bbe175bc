"""Give up what takes too long on one sample of a stranger."""

import signal
import threading

SAMPLE_SECONDS = 60.0  # for one sample; a photograph takes 0.01 s to decode


class TookTooLong(BaseException):
    """A time limit has passed; no ``Exception``, so that no library handles it as an error of its own."""

    def __init__(self, seconds: float) -> None:
        """Keep the limit as the value for the ledger."""
        super().__init__(f"reading it took longer than {seconds:g} s")
        self.value = f"{seconds:g}"


class TimeLimit:
    """Context manager that raises ``TookTooLong`` in its block; it has no effect outside of the main thread.

    Args:
        seconds: The limit; by default ``SAMPLE_SECONDS``.
    """

    def __init__(self, seconds: float | None = None) -> None:
        """See the class for the arguments."""
        limit = SAMPLE_SECONDS if seconds is None else seconds
        self.seconds = limit if threading.current_thread() is threading.main_thread() else 0.0

    def __enter__(self) -> None:
        """Start the clock."""
        if self.seconds:
            self._before = signal.signal(signal.SIGALRM, self._over)
            signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def _over(self, *_: object) -> None:
        raise TookTooLong(self.seconds)

    def __exit__(self, *_: object) -> None:
        """Stop the clock."""
        if self.seconds:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._before)
