"""Confidence interval of a distance between two sets of features, from random halves of both."""

from collections.abc import Callable

import numpy
import torch
from torch import Tensor


def half_sample_interval(
    first: Tensor,
    second: Tensor,
    statistic: Callable[[Tensor, Tensor], float],
    value: float,
    seed: int = 0,
    repeats: int = 20,
) -> tuple[float, float]:
    """Return the interval of a distance from random halves of both sets (delete-half jackknife, Shao and Wu 1989).

    Halves vary as much as the whole would over new data; their common shift, the bias of a smaller sample, is removed.
    A bootstrap would draw samples twice, and a duplicate is its own nearest neighbour.

    Args:
        first: (B, D) features.
        second: (B', D) features.
        statistic: Function of two such sets.
        value: The statistic of the whole sets, centre of the interval.
        seed: Seed of the draws.
        repeats: Number of draws, at least two.

    Returns:
        Ends of a 95 % interval, from the normal distribution since few draws give no percentiles.
    """
    if repeats < 2:
        raise ValueError(f"half_sample_interval: repeats is {repeats}; give at least two")
    generator = torch.Generator().manual_seed(seed)
    draws = []
    for _ in range(repeats):
        half1 = torch.randperm(len(first), generator=generator)[: len(first) // 2]
        half2 = torch.randperm(len(second), generator=generator)[: len(second) // 2]
        draws.append(statistic(first[half1], second[half2]))
    half_width = 1.96 * float(numpy.std(draws, ddof=1))
    return value - half_width, value + half_width
