"""Confidence intervals of proportions and of statistics of independent samples."""

import math
from collections.abc import Callable

import numpy
from scipy.stats import binomtest

FEWEST = 6  # values: with fewer, even the whole range of the sample covers the median with less than 95 %


def wilson_interval(successes: int, samples: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of a proportion (Wilson 1927), valid also near 0 and 1 and for few samples.

    Args:
        successes: Number of hits, 0 <= successes <= samples.
        samples: Number of independent trials; with 0 the interval is (0, 1): nothing is known.
        confidence: Coverage, between 0 and 1.

    Returns:
        Lower and upper end, both in [0, 1].
    """
    if samples == 0:
        return 0.0, 1.0
    interval = binomtest(successes, samples).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_interval(
    values: numpy.ndarray,
    statistic: Callable[[numpy.ndarray], float],
    seed: int = 0,
    repeats: int = 1000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval (Efron 1979) over the first axis, that of independent samples.

    Rows are drawn whole, so columns that belong together (one image in all languages) stay together. Draws never leave
    the range of the sample, and the range of n values covers the median with probability 1 - 2^(1 - n): below 95 % for
    fewer than ``FEWEST`` values, which get no interval.

    Args:
        values: (B, ...) one row for each independent sample.
        statistic: Function of such an array.
        seed: Seed of the draws.
        repeats: Number of draws.
        confidence: Coverage, between 0 and 1.

    Returns:
        Lower and upper percentile of the statistic over the draws; NaN, "not measured", for fewer than ``FEWEST``
        values.
    """
    if len(values) == 0:
        raise ValueError("bootstrap_interval: no samples")
    if len(values) < FEWEST:
        return math.nan, math.nan
    generator = numpy.random.default_rng(seed)
    draws = [statistic(values[generator.integers(0, len(values), len(values))]) for _ in range(repeats)]
    low, high = numpy.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
