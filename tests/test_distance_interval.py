"""Intervals of distances between two sets."""

import math

import pytest
import torch

from leam_mm.evaluators.distance_interval import half_sample_interval


def test_half_sample_interval_of_a_mean() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(400, 1).double(), torch.randn(400, 1).double()

    def gap(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(a.mean() - b.mean())

    low, high = half_sample_interval(x, y, gap, gap(x, y), repeats=400)
    assert (low + high) / 2 == pytest.approx(gap(x, y))
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(2 / 400), rel=0.15)
    with pytest.raises(ValueError, match="repeats"):
        half_sample_interval(x, y, gap, 0.0, repeats=1)
