"""Controls of audits and metrics: inputs whose right answer is known.

A positive control has a planted fault that must be found; a negative control is clean and must pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """What an audit or a metric made of a control.

    Args:
        found: What was found, in a few words with the numbers.
        right: Whether it is on the right side.
    """

    found: str
    right: bool


@dataclass(frozen=True)
class Control:
    """One control.

    Args:
        subject: Audit or metric under control, such as `audit/memorization` or `metric/frechet_distance`.
        name: What the input is, in a few words, such as `generator that returns training images`.
        positive: Whether it has a planted fault.
        expected: What must be found, in a few words.
        run: Builds the input in an empty folder, measures, and returns the outcome.
        slow: Whether it takes more than a few seconds on one core; the tests run it with ``-m slow`` only.
    """

    subject: str
    name: str
    positive: bool
    expected: str
    run: Callable[[Path], Outcome]
    slow: bool = False
