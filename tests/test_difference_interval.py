"""Difference of two results: paired and independent intervals against published tables, and their coverage."""

import math

import numpy
import pytest
from toys.pages import metric_row

from leam_mm.intervals.difference_interval import difference, paired_difference
from leam_mm.intervals.intervals import wilson_interval
from leam_mm.intervals.outcomes import write_outcomes


def test_the_paired_interval_is_that_of_newcombes_table() -> None:
    """Newcombe 1998 (Statistics in Medicine 17, 2635), table III, method 10: 36, 12, 2, 0 of 50: 0.0569 to 0.3404."""
    one = numpy.array([True] * 36 + [False] * 12 + [True] * 2)  # A: right in 38
    other = numpy.array([True] * 48 + [False] * 2)  # B: right in 48
    found = paired_difference(one, other)
    assert found.kind == "paired" and found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.0569, 0.3404), abs=6e-5)


def test_the_independent_interval_is_that_of_newcombes_table() -> None:
    """Newcombe 1998 (Statistics in Medicine 17, 873), table II, method 10: 56/70 - 48/80: 0.0524 to 0.3339."""

    def row(hits: int, count: int) -> dict:
        low, high = wilson_interval(hits, count)
        return metric_row("x", hits / count, low=low, high=high)

    found = difference(row(48, 80), row(56, 70))
    assert found.kind == "independent" and found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=6e-5)


def test_paired_intervals_cover_as_often_as_they_say() -> None:
    rng = numpy.random.default_rng(0)
    covered, shorter = 0, 0
    for _ in range(400):
        hard = rng.random(200)
        one, other = hard + rng.normal(0, 0.1, 200) > 0.40, hard + rng.normal(0, 0.1, 200) > 0.35
        found = paired_difference(one, other)
        rows = [metric_row("x", hits.mean(), low=None, high=None) for hits in (one, other)]
        for row, hits in zip(rows, (one, other), strict=True):
            half = 1.96 * math.sqrt(hits.mean() * (1 - hits.mean()) / 200)
            row |= {"low": hits.mean() - half, "high": hits.mean() + half}
        independent = difference(*rows)
        assert found.low is not None and found.high is not None
        assert independent.low is not None and independent.high is not None
        covered += found.low <= 0.05 <= found.high
        shorter += found.high - found.low < independent.high - independent.low
    assert 370 <= covered <= 396 and shorter == 400


def test_scores_of_the_same_samples_are_compared_in_pairs() -> None:
    rng = numpy.random.default_rng(0)
    hard = rng.normal(0, 1, 50)
    one, other = hard + rng.normal(0, 0.1, 50), hard + 0.1 + rng.normal(0, 0.1, 50)
    keys = [str(number) for number in range(50)]
    rows = [metric_row("x", float(v.mean()), low=-9, high=9, outcomes=write_outcomes(v, keys)) for v in (one, other)]
    found = difference(*rows)
    half = 2.01 * (other - one).std(ddof=1) / math.sqrt(50)
    assert found.kind == "paired" and found.low is not None and found.high is not None
    assert found.value == pytest.approx((other - one).mean(), abs=1e-4)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.03) and found.excludes_zero
    rows[1]["outcomes"] = write_outcomes(other, keys[::-1])
    assert difference(*rows).kind == "independent"
