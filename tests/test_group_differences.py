"""Differences between groups and bias of rankings: published numbers, closed forms, and coverage in simulation."""

import numpy
import pytest

from leam_mm.audits.group_differences import association, holm, largest_difference
from leam_mm.audits.ranking_bias import divergence, max_skew


def test_difference_of_two_groups_is_newcombes() -> None:
    # Newcombe 1998, table II, example (a), method 10: 56/70 against 48/80.
    value, low, high = largest_difference({"x": 56, "y": 48}, {"x": 70, "y": 80})
    assert (value, low, high) == (pytest.approx(0.2), pytest.approx(0.0524, abs=1e-4), pytest.approx(0.3339, abs=1e-4))


@pytest.mark.parametrize("rates", [(0.1, 0.1, 0.1, 0.1), (0.02, 0.05, 0.1, 0.3)])
def test_interval_of_the_largest_difference_covers(rates: tuple[float, ...]) -> None:
    generator, covered = numpy.random.default_rng(0), 0
    counts = dict.fromkeys("abcd", 200)
    for _ in range(300):
        hits = {group: int(generator.binomial(200, rate)) for group, rate in zip(counts, rates, strict=True)}
        value, low, high = largest_difference(hits, counts)
        assert low <= value <= high
        covered += low <= max(rates) - min(rates) <= high
    assert covered >= 285


def test_holm_is_that_of_the_textbook() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_association_has_the_effect_size_of_caliskan() -> None:
    generator = numpy.random.default_rng(0)
    score = numpy.array([1.0, 2.0, 3.0, 4.0, 11.0, 12.0])
    inside = score > 10
    size, p = association(score, inside, 4000, generator)
    assert size == pytest.approx((11.5 - 2.5) / score.std(ddof=1))
    assert p == pytest.approx(1 / 15, abs=0.02)  # of 15 ways to choose two of six, one is as far apart
    assert association(numpy.ones(6), inside, 10, generator) == (0.0, 1.0)
    equal = [association(generator.normal(size=60), numpy.arange(60) < 20, 99, generator)[1] for _ in range(200)]
    assert 0.01 <= numpy.mean(numpy.array(equal) <= 0.05) <= 0.1


def test_skew_and_divergence_of_a_ranking() -> None:
    share = numpy.array([0.5, 0.5])
    fair, unfair = numpy.tile([0, 1], 50), numpy.repeat([0, 1], 50)
    assert max_skew(fair, share, 10) == 0.0
    assert max_skew(unfair, share, 10) == pytest.approx(numpy.log(2))
    assert max_skew(unfair, share, 1000) == 0.0  # of all images, the shares are those of all
    assert 0 < divergence(fair, share) < 0.15 < divergence(unfair, share)
    # By hand: the first place has divergence log 2, the second none; weights 1 and 1 / log2(3).
    assert divergence(numpy.array([0, 1]), share) == pytest.approx(numpy.log(2) / (1 + 1 / numpy.log2(3)))
