"""Precision, recall, density and coverage: modes, points on a line, loops, duplicates."""

import math

import pytest
import torch

from leam_mm.distances.precision_recall import NeighbourShares, precision_recall


def test_precision_and_recall_of_modes() -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(60, 2, generator=generator)
    right = torch.randn(60, 2, generator=generator) + 100
    same = precision_recall(left, left)
    assert (same.precision, same.recall, same.coverage) == (1.0, 1.0, 1.0)
    assert precision_recall(left, right) == NeighbourShares(0.0, 0.0, 0.0, 0.0)
    # A generator that draws one of two modes is precise and forgets half.
    half = precision_recall(torch.cat([left, right]), left + 1e-6)
    assert half.precision == 1.0
    assert half.recall == half.coverage == pytest.approx(0.5, abs=0.02)
    assert precision_recall(left, right, chunk=7) == precision_recall(left, right)


def test_precision_of_a_point_on_the_line() -> None:
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    # Second neighbour's distance: 2, 1, 1, 2, so the balls cover -2 to 5.
    inside = torch.tensor([[-2.0], [5.0], [1.5], [5.1]])
    assert precision_recall(real, inside, neighbours=2).precision == 0.75
    with pytest.raises(ValueError, match="more than 3 samples"):
        precision_recall(real[:3], inside)


def test_all_four_against_loops() -> None:
    generator = torch.Generator().manual_seed(1)
    real, made = torch.randn(30, 3, generator=generator), torch.randn(25, 3, generator=generator) * 1.3 + 0.4

    def radius(points: torch.Tensor, row: int, k: int) -> float:
        return sorted(float((points[row] - other).norm()) for other in points)[k]

    def near(point: torch.Tensor, centres: torch.Tensor, row: int, k: int) -> bool:
        return float((point - centres[row]).norm()) <= radius(centres, row, k)

    found = precision_recall(real, made, chunk=7)
    precise = sum(any(near(point, real, row, 3) for row in range(30)) for point in made) / 25
    recalled = sum(any(near(point, made, row, 3) for row in range(25)) for point in real) / 30
    balls = sum(near(point, real, row, 5) for point in made for row in range(30))
    covered = sum(any(near(point, real, row, 5) for point in made) for row in range(30)) / 30
    assert (found.precision, found.recall, found.coverage) == pytest.approx((precise, recalled, covered))
    assert found.density == pytest.approx(balls / (5 * 25))
    assert 0 < found.coverage < 1 and 0 < found.precision < 1


def test_density_of_one_distribution_is_about_one_and_outliers_do_not_raise_it() -> None:
    generator = torch.Generator().manual_seed(2)
    real, made = torch.randn(400, 4, generator=generator), torch.randn(400, 4, generator=generator)
    assert precision_recall(real, made).density == pytest.approx(1, abs=0.1)
    # Six real outliers far away have huge balls, into which everything falls: precision believes them.
    far = torch.cat([real, 40 * torch.eye(6, 4) + 40 * torch.randn(6, 4, generator=generator)])
    noise = 30 * torch.randn(400, 4, generator=generator)
    assert precision_recall(far, noise).precision > 0.7
    assert precision_recall(far, noise).density < 0.4
    assert precision_recall(far, noise).coverage < 0.02


def test_duplicates_are_at_distance_zero() -> None:
    generator = torch.Generator().manual_seed(3)
    point = 1e3 * torch.randn(1, 50, generator=generator)
    shares = precision_recall(point.repeat(8, 1), point.repeat(8, 1))
    assert (shares.precision, shares.recall, shares.coverage) == (1, 1, 1)
    assert precision_recall(point.repeat(8, 1), point.repeat(8, 1) + 1e-2).precision == 0


def test_sets_too_small_for_density_do_not_measure_it() -> None:
    shares = precision_recall(torch.eye(5), torch.eye(5))
    assert shares.precision == 1 and math.isnan(shares.density) and math.isnan(shares.coverage)
