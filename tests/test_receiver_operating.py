"""Area under the curve and hits at a fixed rate of false positives, against closed forms and simulation."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm

from leam_mm.audits.receiver_operating import area_under_curve, hits_at, hits_interval
from leam_mm.audits.stored_samples import rate_interval, rate_slice


def groups(shift: float, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(shift, 1, count), generator.normal(0, 1, count)


def test_the_area_is_the_statistic_of_mann_and_whitney_with_ties_too() -> None:
    generator = np.random.default_rng(0)
    for size in (5, 40):
        positive, negative = generator.integers(0, 6, size), generator.integers(0, 5, size + 3)
        expected = mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative))
        area, low, high = area_under_curve(positive, negative)
        assert area == pytest.approx(expected) and low < area < high


def test_the_interval_covers_the_area_of_two_gaussians() -> None:
    for shift in (0.0, 1.0):
        truth = norm.cdf(shift / np.sqrt(2))
        found = [area_under_curve(*groups(shift, 60, seed)) for seed in range(300)]
        coverage = np.mean([low <= truth <= high for _, low, high in found])
        assert 0.92 <= coverage <= 0.98


def test_groups_without_an_overlap_have_an_interval_that_is_no_point() -> None:
    area, low, high = area_under_curve(np.arange(10, 20), np.arange(10))
    assert area == 1 and high == 1 and low == pytest.approx(0.025 ** (1 / 10))
    assert area_under_curve(np.arange(10), np.arange(10, 20))[2] < 1


def test_equal_scores_tell_nothing() -> None:
    assert area_under_curve(np.ones(9), np.ones(7))[0] == 0.5
    assert hits_at(np.ones(9), np.ones(100), 0.01) == 0


def test_hits_follow_the_threshold_of_the_negatives() -> None:
    negative = np.arange(100.0)
    assert hits_at(np.array([98.5, 99.5, 97.5]), negative, 0.01) == pytest.approx(2 / 3)  # one negative is above 98
    assert hits_at(np.array([98.5, 99.5, 97.5]), negative, 0.0) == pytest.approx(1 / 3)
    assert hits_at(negative, negative, 0.1) == pytest.approx(0.1)


def test_the_interval_of_hits_covers_the_share_of_shifted_gaussians() -> None:
    truth = 1 - norm.cdf(norm.ppf(0.95) - 1)
    inside = []
    for seed in range(30):
        low, high = hits_interval(*groups(1.0, 300, seed), 0.05, seed)
        inside.append(low <= truth <= high)
    assert np.mean(inside) >= 0.85


def test_a_rate_of_none_and_of_all_has_an_end() -> None:
    assert rate_interval(0, 50) == (0.0, 3 / 50)
    assert rate_interval(50, 50) == (pytest.approx(0.025 ** (1 / 50)), 1.0)
    assert rate_interval(0, 0) == (0.0, 1.0) and rate_slice(0, 0)["value"] is None


def test_too_few_scores_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least 2 of each"):
        area_under_curve(np.ones(1), np.ones(5))
