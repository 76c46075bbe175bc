"""Confidence interval of a distance between two sets of features, or of a share that depends on both, from halves.

All intervals are for the value at this number of images. Distances such as Fréchet's are biased upwards at any finite
number, so the interval says how much the value would vary over other images, and not where the distance of unlimited
images is.
"""

from collections.abc import Callable

import numpy
import torch
from scipy.stats import t
from torch import Tensor

from leam_mm.intervals.intervals import clustered_interval

FINITE = "the interval is for the value at this number of images, which is biased against that of unlimited images"


def half_sample_interval(
    first: Tensor,
    second: Tensor,
    statistic: Callable[[Tensor, Tensor], float],
    value: float,
    seed: int = 0,
    repeats: int = 20,
) -> tuple[float, float]:
    """Return the 95 % interval of a distance from random halves of both sets (half-sampling, Shao and Wu 1989).

    Both sets are split into halves, and the two pairs of halves give two values. The difference of the two varies over
    splits as the whole would over new data, plus twice the variance of the quadratic part, which alone is left where
    both sets have one distribution. The mean of the two varies by the quadratic part alone, and its variance is
    subtracted. A bootstrap would draw samples twice, and a duplicate is its own nearest neighbour.

    Args:
        first: (B, D) features.
        second: (B', D) features; given twice the same tensor, halves are those of pairs.
        statistic: Function of two such sets.
        value: The statistic of the whole sets, centre of the interval.
        seed: Seed of the draws.
        repeats: Number of halves, an even number of at least four.

    Returns:
        Ends of the interval, by Student's distribution since there are few draws.
    """
    values = _of_halves(first, second, statistic, seed, repeats)
    half_width = float(t.ppf(0.975, len(values) - 1)) * _variance(values) ** 0.5
    return value - half_width, value + half_width


def half_sample_share_interval(
    first: Tensor,
    second: Tensor,
    statistic: Callable[[Tensor, Tensor], float],
    value: float,
    seed: int = 0,
    repeats: int = 20,
) -> tuple[float, float]:
    """Return the 95 % interval of a share of samples near the other set, such as precision and recall.

    The variance over halves gives the number of independent samples that the share is worth, whose exact interval holds
    near 0 and 1, too: with no hit it ends where the interval of as many independent samples does.

    Args:
        first: (B, D) features.
        second: (B', D) features.
        statistic: Function of two such sets, in [0, 1].
        value: The statistic of the whole sets.
        seed: Seed of the draws.
        repeats: Number of halves, an even number of at least four.

    Returns:
        Ends of the interval, in [0, 1].
    """
    values = _of_halves(first, second, statistic, seed, repeats)
    samples, share = min(len(first), len(second)), float(numpy.clip(values.mean(), 0.0, 1.0))
    binary = share * (1 - share)
    effect = float(values.var(ddof=1)) * samples / binary if binary > 0 else 1.0
    return clustered_interval(value, samples, effect, float(t.ppf(0.975, values.size - 1)))


def _of_halves(
    first: Tensor, second: Tensor, statistic: Callable[[Tensor, Tensor], float], seed: int, repeats: int
) -> numpy.ndarray:
    """Return the values (repeats / 2, 2) of both pairs of halves of each split."""
    if repeats < 4 or repeats % 2:
        raise ValueError(f"repeats is {repeats}; give an even number of at least four")
    generator = torch.Generator().manual_seed(seed)
    count1, count2, paired = len(first) // 2, len(second) // 2, first is second
    found = []
    for _ in range(repeats // 2):
        rows1 = torch.randperm(len(first), generator=generator)
        rows2 = rows1 if paired else torch.randperm(len(second), generator=generator)
        parts = [(rows1[:count1], rows2[:count2]), (rows1[count1 : 2 * count1], rows2[count2 : 2 * count2])]
        found.append([statistic(first[one], second[other]) for one, other in parts])
    return numpy.array(found)


def _variance(values: numpy.ndarray) -> float:
    """Return the variance of the whole from the values of both halves."""
    differs = float((((values[:, 0] - values[:, 1]) / 2) ** 2).mean())
    quadratic = float(values.mean(axis=1).var(ddof=1))
    return max(differs / 2, differs - quadratic)
