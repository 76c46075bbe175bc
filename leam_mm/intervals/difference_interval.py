"""Interval of the difference of two results: from outcomes of the same samples, else from both intervals.

Both are the square-and-add method: Newcombe, "Interval estimation for the difference between independent proportions"
(Statistics in Medicine 17, 1998, 873-890, method 10) and "Improved confidence intervals for the difference between
binomial proportions based on paired data" (17, 1998, 2635-2650, method 10). For other statistics than proportions:
Zou and Donner (27, 2008, 1693-1702). Paired hits are tested by the exact test of McNemar, paired scores by Student's
test with a correction for skewness, others by where their interval excludes zero.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy
from scipy.stats import binomtest, norm

from leam_mm.intervals.intervals import FEWEST, mean_interval, mean_test, wilson_ends
from leam_mm.intervals.outcomes import read_outcomes

Kind = Literal["paired", "independent", "none"]
LARGEST = 1e100


@dataclass(frozen=True)
class Difference:
    """Difference B - A of a result.

    Args:
        value: The difference, or None where one of both was not measured.
        low: Lower end of its 95 % interval, or None.
        high: Upper end, or None.
        kind: ``paired`` from the outcomes of the same samples, ``independent`` from both intervals as if the samples
            were different ones, ``none``.
        p_value: Probability of a difference at least as large if there were none, or None.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    kind: Kind = "none"
    p_value: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> Difference:
    """Return the difference ``other`` - ``one`` of two lines of results.jsonl.

    Args:
        one: Line of A.
        other: Line of B, of the same metric.
    """
    values = [row.get("value") for row in (one, other)]
    if not all(_is_number(value) for value in values):
        return Difference(None)
    first, second = (float(value) for value in values if value is not None)
    a, b = read_outcomes(one), read_outcomes(other)
    if a is not None and b is not None and a.samples == b.samples:
        if a.hits and b.hits:
            return paired_difference(a.values > 0, b.values > 0)
        return _of_scores(a.values, b.values, second - first)
    ends = [row.get(end) for row in (one, other) for end in ("low", "high")]
    if not all(_is_number(end) for end in ends):
        return Difference(second - first)
    low_a, high_a, low_b, high_b = (float(end) for end in ends if end is not None)
    value = second - first
    low = value - math.hypot(second - low_b, high_a - first)
    high = value + math.hypot(high_b - second, first - low_a)
    toward_zero = value - low if value > 0 else high - value
    p_value = float(2 * norm.sf(norm.ppf(0.975) * abs(value) / toward_zero)) if toward_zero > 0 else float(value == 0)
    return Difference(value, low, high, "independent", p_value)


def _of_scores(one: numpy.ndarray, other: numpy.ndarray, value: float) -> Difference:
    if len(one) < FEWEST:
        return Difference(value, kind="paired")
    return Difference(value, *mean_interval(other - one), "paired", mean_test(other - one))


def paired_difference(one: numpy.ndarray, other: numpy.ndarray) -> Difference:
    """Return the difference of two shares of the same samples.

    Args:
        one: (B,) bool, outcomes of A.
        other: (B,) bool, outcomes of B.
    """
    count = len(one)
    both, neither = int((one & other).sum()), int((~one & ~other).sum())
    only_b, only_a = int((~one & other).sum()), int((one & ~other).sum())
    share_b, share_a = (both + only_b) / count, (both + only_a) / count
    lows, highs = wilson_ends(numpy.array([share_a, share_b]), numpy.array(count), float(norm.ppf(0.975)))
    (low_a, low_b), (high_a, high_b) = (float(x) for x in lows), (float(x) for x in highs)
    product = float(both * neither - only_b * only_a)
    if product > 0:  # continuity correction of the correlation, Newcombe's method 10
        product = max(product - count / 2, 0.0)
    margins = (both + only_b) * (only_a + neither) * (both + only_a) * (only_b + neither)
    correlation = product / math.sqrt(margins) if margins else 0.0

    def width(left: float, right: float) -> float:
        return math.sqrt(max(0.0, left**2 - 2 * correlation * left * right + right**2))

    value = share_b - share_a
    low = value - width(share_b - low_b, high_a - share_a)
    high = value + width(high_b - share_b, share_a - low_a)
    p_value = float(binomtest(only_b, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return Difference(value, low, high, "paired", p_value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
