"""Intervals of distances between two sets."""

import math

import pytest
import torch

from leam_mm.intervals.distance_interval import interval_of_halves, share_interval_of_halves, values_of_halves


def test_interval_of_a_mean() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(400, 1).double(), torch.randn(400, 1).double()

    def gap(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(a.mean() - b.mean())

    low, high = interval_of_halves(values_of_halves(x, y, gap, repeats=400), gap(x, y))
    assert (low + high) / 2 == pytest.approx(gap(x, y))
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(2 / 400), rel=0.15)
    for repeats in (2, 5):
        with pytest.raises(ValueError, match="repeats"):
            values_of_halves(x, y, gap, repeats=repeats)


def test_interval_of_equal_sets_is_as_wide_as_the_distance_varies() -> None:
    """The squared distance of the means of n normals of 16 features is 2 / n times a chi-squared of 16 degrees."""
    torch.manual_seed(0)

    def squared(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a.mean(0) - b.mean(0)).square().sum())

    widths = []
    for seed in range(60):
        x, y = torch.randn(100, 16).double(), torch.randn(100, 16).double()
        low, high = interval_of_halves(values_of_halves(x, y, squared, seed), squared(x, y))
        widths.append(((high - low) / 2 / 2.262) ** 2)
    assert sum(widths) / len(widths) == pytest.approx(
        1.2 * 32 * (2 / 100) ** 2, rel=0.3
    )  # three times as much without the correction


def test_pairs_are_split_together() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 1).double()
    seen = []

    def same(a: torch.Tensor, b: torch.Tensor) -> float:
        seen.append(torch.equal(a, b))
        return 0.0

    assert interval_of_halves(values_of_halves(x, x, same), 0.0) == (0.0, 0.0)
    assert all(seen) and len(seen) == 20


def test_interval_of_a_share_near_zero_and_one() -> None:
    x, far = torch.arange(100.0)[:, None], torch.arange(100.0)[:, None] + 1000

    def near(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((torch.cdist(b, a).min(dim=1).values < 5).double().mean())

    assert near(x, far) == 0
    low, high = share_interval_of_halves(values_of_halves(x, far, near), 0.0, 100)
    assert low == 0 and high == pytest.approx(1 - 0.025 ** (1 / (100 * (1.96 / 2.093) ** 2)), rel=1e-2)
    low, high = share_interval_of_halves(values_of_halves(x, x.clone(), near), 1.0, 100)
    assert high == 1 and 0.85 < low < 0.97
