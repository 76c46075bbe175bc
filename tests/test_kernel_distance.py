"""Kernel distances: loops, closed forms, no bias, a shift is seen."""

import math

import numpy
import pytest
import torch

from leam_mm.distances.kernel_distance import gaussian_distance, kernel_distance, polynomial_mmd


def features(count: int, size: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.randn(count, size, generator=generator, dtype=torch.float64) @ mix + shift


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
