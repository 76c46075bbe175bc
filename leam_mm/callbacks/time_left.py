"""Time left in a job: when a run must save, so that it ends before the scheduler kills it.

The end of the job comes from ``SLURM_JOB_END_TIME``, which Slurm sets, or from ``LEAM_JOB_END``, which a job script can
set from ``squeue`` or by hand.
"""

import time
from collections import deque
from collections.abc import Mapping
from datetime import datetime

from lightning.pytorch.utilities import rank_zero_warn

VARIABLES = ("SLURM_JOB_END_TIME", "LEAM_JOB_END")
LEAST = 120.0  # seconds that are left for saving and leaving at least
SAVES, STEPS = 3, 2  # how many of the longest saves and steps so far must fit into the time left
LONGEST_JOB = 10 * 366 * 86400.0  # seconds
WINDOW = 20  # steps whose longest counts


def job_end(environment: Mapping[str, str], now: float) -> float | None:
    """Return the end of the job in seconds since 1970; None if no variable tells it.

    Args:
        environment: Variables of the process; each of ``VARIABLES`` is seconds since 1970, or a local time such as
            ``2026-11-29T18:00:00``. The earlier one counts.
        now: The time now. A value in the past is that of another job, and ignored with a warning, as any other bad one.
    """
    found = []
    for name in VARIABLES:
        text = environment.get(name, "").strip()
        if not text:
            continue
        try:
            end = float(text) if text.replace(".", "", 1).isdigit() else datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError, OSError):
            rank_zero_warn(f"{name}={text[:40]} is no time (seconds since 1970, or 2026-11-29T18:00:00): it is ignored")
            continue
        if end <= now:
            rank_zero_warn(f"{name}={text[:40]} is in the past: it is ignored")
            continue
        if end > now + LONGEST_JOB:
            rank_zero_warn(f"{name}={text[:40]} is more than ten years from now, as milliseconds are: it is ignored")
            continue
        found.append(end)
    return min(found, default=None)


class TimeLeft:
    """Decides after each optimizer step whether the job still has time for another one and for saving.

    Args:
        end: End of the job in seconds since 1970; None means that it has none.
    """

    def __init__(self, end: float | None) -> None:
        """See the class for the arguments."""
        self.end = end
        self.longest_save = 0.0
        self._steps: deque[float] = deque(maxlen=WINDOW)
        self._boundary: float | None = None
        self._saving: float | None = None

    @property
    def margin(self) -> float:
        """Return the seconds before the end at which a run must save."""
        return max(LEAST, SAVES * self.longest_save + STEPS * max(self._steps, default=0.0))

    def save_begins(self) -> None:
        """Note the start of a save."""
        self._saving = self._saving or time.monotonic()

    def pause_ends(self) -> None:
        """Note that a save, if there was one, is over; called by the first hook after it."""
        if self._saving is not None:
            self.longest_save = max(self.longest_save, time.monotonic() - self._saving)
            self.forget_step()

    def forget_step(self) -> None:
        """Do not count the current step, which has other work in it, such as a save or an evaluation."""
        self._saving = self._boundary = None

    def is_over(self) -> bool:
        """Return whether a run must save now; called once after each optimizer step."""
        now = time.monotonic()
        if self._boundary is not None:
            self._steps.append(now - self._boundary)
        self._boundary = now
        return self.end is not None and time.time() + self.margin >= self.end
