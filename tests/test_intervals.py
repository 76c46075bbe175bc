"""Intervals of proportions and of means against closed forms."""

import math
from statistics import NormalDist

import numpy
import pytest
from scipy.stats import binom

from leam_mm.evaluators.evaluator import Metric
from leam_mm.intervals.intervals import bootstrap_interval, wilson_interval


def test_wilson_interval_known_values() -> None:
    # Newcombe 1998, table I: 81 of 263 -> 0.2553 to 0.3662; 0 of 20 -> 0 to 0.1611; 1 of 29 -> to 0.1718.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((-math.log(0.95) / 29, 0.1718), abs=5e-5)  # not from 0.0061
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="must not be greater"):
        wilson_interval(11, 10)


@pytest.mark.parametrize("samples", [1, 10, 97, 1536])
def test_wilson_interval_is_its_formula(samples: int) -> None:
    z = NormalDist().inv_cdf(0.975)
    for successes in {0, 1, samples // 3, samples - 1, samples}:
        share = successes / samples
        centre = (share + z * z / (2 * samples)) / (1 + z * z / samples)
        half = z / (1 + z * z / samples) * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples))
        low, high = wilson_interval(successes, samples)
        if 3 < successes < samples - 3 or successes in (0, samples):
            assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-12, rel=0)
        assert 0 <= low <= share <= high <= 1


def test_wilson_interval_covers_exactly() -> None:
    """Summed over all numbers of hits: at least 93 % wherever five misses or more are expected, and 92 % elsewhere."""
    for samples in (64, 100, 616):
        ends = numpy.array([wilson_interval(hits, samples) for hits in range(samples + 1)])
        for share in numpy.linspace(0.5, 0.9995, 80):
            chance = binom.pmf(numpy.arange(samples + 1), samples, share)
            held = float(chance[(ends[:, 0] <= share) & (share <= ends[:, 1])].sum())
            assert held > (0.93 if samples * (1 - share) >= 5 else 0.92), (samples, share, held)


def test_bootstrap_interval_of_a_mean_matches_the_normal_one() -> None:
    values = numpy.random.default_rng(1).normal(5, 2, 400)
    low, high = bootstrap_interval(values, lambda part: float(part.mean()), seed=3, repeats=2000)
    half = 1.96 * values.std(ddof=1) / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)
    assert (low, high) == bootstrap_interval(values, lambda part: float(part.mean()), seed=3, repeats=2000)


def test_bootstrap_interval_keeps_rows_together() -> None:
    column = numpy.random.default_rng(0).normal(size=50)
    pairs = numpy.stack([column, column], axis=1)
    assert bootstrap_interval(pairs, lambda part: float((part[:, 0] - part[:, 1]).mean()), repeats=50) == (0.0, 0.0)


def test_few_values_have_no_interval() -> None:
    assert all(numpy.isnan(end) for end in bootstrap_interval(numpy.arange(5.0), numpy.mean))
    low, high = bootstrap_interval(numpy.arange(6.0), numpy.mean)
    assert 0 <= low < 2.5 < high <= 5
    row = Metric("x", 1.0, *bootstrap_interval(numpy.arange(2.0), numpy.mean), "", 2).as_dict()
    assert row["low"] is None and row["high"] is None
