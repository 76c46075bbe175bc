"""Signals that arrive before training starts: they are noted, since their default action would end the process.

A scheduler may send its warning while the libraries are still being imported. A rank that died of it would leave the
others waiting, and no script would know that the job is to continue. leam_mm/callbacks/preemption.py acts on the note.
"""

import signal
from types import FrameType

NOTED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
_received: list[int] = []


def note_early_signals() -> None:
    """Note USR1, USR2 and TERM, unless somebody else handles them. A second TERM ends the process at once."""
    for number in NOTED:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _note)


def early_signal() -> int | None:
    """Return the first signal that arrived so far, if any."""
    return _received[0] if _received else None


def _note(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_DFL)
