"""Distances: closed forms, oracles, merging in any order, identical sets."""

import math

import numpy
import pytest
import torch

from leam_mm.evaluators.frechet import (
    FeatureMoments,
    frechet_distance,
    frechet_distance_of_features,
    gaussian_distance,
    kernel_distance,
    polynomial_mmd,
    precision_recall,
)


def features(count: int, size: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.randn(count, size, generator=generator, dtype=torch.float64) @ mix + shift


def test_gaussians_with_a_known_distance() -> None:
    # Commuting covariances: |m1 - m2|^2 + sum (sqrt a - sqrt b)^2.
    a, b = torch.tensor([4.0, 9.0, 1.0]).double(), torch.tensor([1.0, 16.0, 0.0]).double()
    first = FeatureMoments(11, torch.zeros(3).double(), torch.diag(a) * 10)
    second = FeatureMoments(6, torch.tensor([1.0, 2.0, -2.0]).double(), torch.diag(b) * 5)
    assert frechet_distance(first, second) == pytest.approx(9 + 1 + 1 + 1, rel=1e-12)
    assert frechet_distance(second, first) == pytest.approx(12, rel=1e-12)


@pytest.mark.parametrize(("count1", "count2"), [(300, 200), (10, 200), (200, 10), (8, 9)])
def test_both_forms_agree_with_the_matrix_root(count1: int, count2: int) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    first, second = features(count1, 16, 1), features(count2, 16, 2, shift=0.5)
    s1, s2 = numpy.cov(first.numpy(), rowvar=False), numpy.cov(second.numpy(), rowvar=False)
    gap = first.mean(dim=0) - second.mean(dim=0)
    oracle = float(gap.square().sum()) + numpy.trace(s1 + s2) - 2 * numpy.trace(linalg.sqrtm(s1 @ s2)).real
    exact = frechet_distance_of_features(first, second)
    assert exact == pytest.approx(oracle, rel=1e-9 if min(count1, count2) > 16 else 1e-5)
    assert frechet_distance(FeatureMoments.of(first), FeatureMoments.of(second)) == pytest.approx(exact, rel=1e-9)


def test_identical_sets_have_distance_zero() -> None:
    for count in (8, 100):
        x = features(count, 16, 3)
        assert frechet_distance_of_features(x, x) == pytest.approx(0, abs=1e-9)
        assert frechet_distance_of_features(x, x + 2) == pytest.approx(64, rel=1e-9)


def test_moments_merge_in_any_grouping() -> None:
    x = features(97, 8, 4, shift=1e4)
    whole = FeatureMoments.of(x)
    parts = [FeatureMoments.of(part) for part in (x[:1], x[1:40], x[40:41], x[41:])]
    left = parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3])
    right = parts[0].merge(parts[1].merge(parts[2].merge(parts[3])))
    for merged in (left, right, parts[3].merge(parts[2]).merge(parts[1].merge(parts[0]))):
        assert merged.count == 97
        torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-13, atol=0)
        torch.testing.assert_close(merged.covariance, torch.cov(x.T), rtol=1e-9, atol=1e-9)


def test_one_sample_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="two samples"):
        FeatureMoments.of(torch.ones(1, 3)).covariance.sum()
    with pytest.raises(ValueError, match="two samples"):
        frechet_distance_of_features(torch.ones(1, 3), torch.ones(5, 3))


def test_polynomial_mmd_against_loops() -> None:
    x, y = features(5, 3, 5), features(4, 3, 6)

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return (float(a @ b) / 3 + 1) ** 3

    xx = sum(kernel(x[i], x[j]) for i in range(5) for j in range(5) if i != j) / 20
    yy = sum(kernel(y[i], y[j]) for i in range(4) for j in range(4) if i != j) / 12
    xy = sum(kernel(a, b) for a in x for b in y) / 20
    assert polynomial_mmd(x, y) == pytest.approx(xx + yy - 2 * xy, rel=1e-10)


def test_kernel_distance_is_unbiased_and_sees_a_shift() -> None:
    draws = [
        kernel_distance(torch.randn(60, 4).double(), torch.randn(60, 4).double(), 1, 60)
        for _ in (torch.manual_seed(seed) for seed in range(200))
    ]
    assert abs(numpy.mean(draws)) < 4 * numpy.std(draws) / math.sqrt(200)
    assert min(draws) < 0
    x = features(80, 4, 7)
    assert kernel_distance(x, x + 3, 10, 40) > 10 * abs(kernel_distance(x[:40], x[40:], 10, 40))
    assert kernel_distance(x, x + 1, 5, 20, seed=1) == kernel_distance(x, x + 1, 5, 20, seed=1)


def test_precision_and_recall_of_modes() -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(60, 2, generator=generator)
    right = torch.randn(60, 2, generator=generator) + 100
    assert precision_recall(left, left) == (1.0, 1.0)
    assert precision_recall(left, right) == (0.0, 0.0)
    # A generator that draws one of two modes is precise and forgets half.
    precision, recall = precision_recall(torch.cat([left, right]), left + 1e-6)
    assert precision == 1.0
    assert recall == pytest.approx(0.5, abs=0.02)
    assert precision_recall(left, right, chunk=7) == precision_recall(left, right)


def test_precision_of_a_point_on_the_line() -> None:
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    # Second neighbour's distance: 2, 1, 1, 2, so the balls cover -2 to 5.
    inside = torch.tensor([[-2.0], [5.0], [1.5], [5.1]])
    assert precision_recall(real, inside, neighbours=2)[0] == 0.75
    with pytest.raises(ValueError, match="more than 3 samples"):
        precision_recall(real[:3], inside)


def test_gaussian_distance_is_its_formula_and_known_for_points() -> None:
    one, other = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0]])
    assert gaussian_distance(one, other) == pytest.approx(2000 * (1 - math.exp(-25 / 200)), rel=1e-12)
    assert gaussian_distance(one, one) == 0
    generator = torch.Generator().manual_seed(0)
    first = torch.nn.functional.normalize(torch.randn(40, 8, generator=generator, dtype=torch.float64), dim=1)
    second = torch.nn.functional.normalize(torch.randn(30, 8, generator=generator, dtype=torch.float64) + 0.5, dim=1)

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.exp(-(a[:, None] - b[None]).square().sum(2) / 200).mean()

    expected = 1000 * (kernel(first, first) + kernel(second, second) - 2 * kernel(first, second))
    assert gaussian_distance(first, second, chunk=7) == pytest.approx(float(expected), rel=1e-9)
    with pytest.raises(ValueError, match="samples in both sets"):
        gaussian_distance(first[:0], second)
