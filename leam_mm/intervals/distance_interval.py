"""Confidence interval of a distance between two sets of features, or of a share that depends on both, from halves.

All intervals are for the value at this number of images. Distances such as Fréchet's are biased upwards at any finite
number, so the interval says how much the value would vary over other images, and not where the distance of unlimited
images is.
"""

from collections.abc import Callable, Iterator

import numpy
import torch
from scipy.stats import t
from torch import Tensor

from leam_mm.intervals.intervals import clustered_interval

FINITE = "the interval is for the value at this number of images, which is biased against that of unlimited images"


def values_of_halves(
    first: Tensor,
    second: Tensor,
    statistic: Callable[[Tensor, Tensor], float],
    seed: int = 0,
    repeats: int = 20,
) -> numpy.ndarray:
    """Return a statistic of random halves of both sets, (repeats / 2, 2): both pairs of halves of each split.

    Args:
        first: (B, D) features.
        second: (B', D) features; given twice the same tensor, halves are those of pairs.
        statistic: Function of two such sets.
        seed: Seed of the draws.
        repeats: Number of halves, an even number of at least four.
    """
    if repeats < 4 or repeats % 2:
        raise ValueError(f"repeats is {repeats}; give an even number of at least four")
    found = []
    for halves in split_rows(len(first), None if first is second else len(second), seed, repeats // 2):
        found.append([statistic(first[one], second[other]) for one, other in halves])
    return numpy.array(found)


def split_rows(
    count1: int, count2: int | None, seed: int, splits: int
) -> Iterator[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:
    """Yield random splits of both sets into two pairs of halves; each pair holds rows of the first and second set.

    Args:
        count1: Number of rows of the first set.
        count2: Number of rows of the second set; None for pairs, whose rows are those of the first set.
        seed: Seed of the draws.
        splits: Number of splits.
    """
    generator = torch.Generator().manual_seed(seed)
    half1, half2 = count1 // 2, (count1 if count2 is None else count2) // 2
    for _ in range(splits):
        rows1 = torch.randperm(count1, generator=generator)
        rows2 = rows1 if count2 is None else torch.randperm(count2, generator=generator)
        yield (rows1[:half1], rows2[:half2]), (rows1[half1 : 2 * half1], rows2[half2 : 2 * half2])


def interval_of_halves(values: numpy.ndarray, value: float) -> tuple[float, float]:
    """Return the 95 % interval of a distance from its values on halves (half-sampling, Shao and Wu 1989).

    Both sets are split into halves, and the two pairs of halves give two values. The difference of the two varies over
    splits as the whole would over new data, plus twice the variance of the quadratic part, which alone is left where
    both sets have one distribution. The mean of the two varies by the quadratic part alone, and its variance is
    subtracted. A bootstrap would draw samples twice, and a duplicate is its own nearest neighbour.

    Args:
        values: (splits, 2), at least two splits; see ``values_of_halves``.
        value: The statistic of the whole sets, centre of the interval.

    Returns:
        Ends of the interval, by Student's distribution since there are few splits.
    """
    half_width = float(t.ppf(0.975, len(values) - 1)) * _variance(values) ** 0.5
    return value - half_width, value + half_width


def share_interval_of_halves(values: numpy.ndarray, value: float, samples: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of samples near the other set, such as precision and recall.

    The variance over halves gives the number of independent samples that the share is worth, whose exact interval holds
    near 0 and 1, too: with no hit it ends where the interval of as many independent samples does.

    Args:
        values: (splits, 2) in [0, 1]; see ``values_of_halves``.
        value: The share of the whole sets.
        samples: Number of samples in the smaller set.

    Returns:
        Ends of the interval, in [0, 1].
    """
    share = float(numpy.clip(values.mean(), 0.0, 1.0))
    binary = share * (1 - share)
    effect = float(values.var(ddof=1)) * samples / binary if binary > 0 else 1.0
    return clustered_interval(value, samples, effect, float(t.ppf(0.975, values.size - 1)))


def _variance(values: numpy.ndarray) -> float:
    """Return the variance of the whole from the values of both halves."""
    differs = float((((values[:, 0] - values[:, 1]) / 2) ** 2).mean())
    quadratic = float(values.mean(axis=1).var(ddof=1))
    return max(differs / 2, differs - quadratic)
