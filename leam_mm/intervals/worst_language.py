"""Confidence intervals of the worst of several languages, and of worst over mean.

The lower end is the smallest lower end of any language: the truly worst one is above its own with the coverage of one
interval. The upper end is the smallest upper end of intervals that hold for all languages at once, since which one is
worst is seen in the same samples. Languages that are certainly not the worst are left out of it (Romano, Shaikh and
Wolf 2014, "A practical two-step method for testing moment inequalities", Econometrica 82, 1979-2002). The interval is
conservative: with many equal languages its coverage is above the stated one.
"""

from collections.abc import Callable

import numpy
from scipy.stats import norm

from leam_mm.intervals.intervals import effective_samples, wilson_ends

DRAWS = 4000
TAIL = 0.025  # of a 95 % interval, on each side
FIRST = TAIL / 10  # of it, for leaving out languages

Ends = Callable[[float], tuple[numpy.ndarray, numpy.ndarray]]


def worst_interval(values: numpy.ndarray, seed: int = 0, draws: int = DRAWS) -> tuple[float, float]:
    """Return the 95 % interval of the smallest mean.

    Args:
        values: (B, languages) values in [0, 1], one row for each independent sample.
        seed: Seed of the draws.
        draws: Number of draws of the largest deviation of all languages.
    """
    share, samples = effective_samples(values)
    return _of_smallest(lambda z: wilson_ends(share, samples, z), values - share, seed, draws)


def worst_mean_interval(values: numpy.ndarray, seed: int = 0, draws: int = DRAWS) -> tuple[float, float]:
    """Return the 95 % interval of the smallest mean of values without bounds.

    Args:
        values: (B, languages), one row for each independent sample, at least two.
        seed: Seed of the draws.
        draws: Number of draws.
    """
    mean, error = values.mean(axis=0), values.std(axis=0, ddof=1) / numpy.sqrt(len(values))
    return _of_smallest(lambda z: (mean - z * error, mean + z * error), values - mean, seed, draws)


def worst_ratio_interval(values: numpy.ndarray, seed: int = 0, draws: int = DRAWS) -> tuple[float, float]:
    """Return the 95 % interval of the smallest mean over the mean of all, which is at most 1.

    A language's ratio has a Wilson interval. Its number of samples is the one that gives the variance of the linear
    part of the ratio: what a value exceeds the ratio times its row's mean.

    Args:
        values: (B, languages) values in [0, 1], not all 0.
        seed: Seed of the draws.
        draws: Number of draws.
    """
    count, languages = values.shape
    share, row = values.mean(axis=0), values.mean(axis=1)
    mean = float(row.mean())
    excess = values - row[:, None] * (share / mean)
    # As in effective_samples: few values that are not all equal say little about the variance.
    telling = numpy.minimum((values < 1).sum(axis=0), (values > 0).sum(axis=0))
    binary = share * (1 - share)
    variance = (telling * (excess**2).mean(axis=0) + binary * (1 - 1 / languages)) / (telling + 1)
    samples = numpy.where(binary > 0, binary * count / numpy.where(variance > 0, variance, 1.0), count)

    def ends(z: float) -> tuple[numpy.ndarray, numpy.ndarray]:
        low, high = wilson_ends(share, samples, z)
        return low / mean, high / mean

    low, high = _of_smallest(ends, excess, seed, draws)
    return min(low, 1.0), min(high, 1.0)


def _of_smallest(ends: Ends, deviations: numpy.ndarray, seed: int, count: int) -> tuple[float, float]:
    """Return the interval of the smallest of several parameters from intervals of each at any quantile.

    Args:
        ends: Lower and upper ends for a quantile.
        deviations: (B, N) of the samples, for the correlation of the estimates.
        seed: Seed of the draws.
        count: Number of draws.
    """
    low = ends(float(norm.ppf(1 - TAIL)))[0].min()
    draws = _correlated_draws(deviations, seed, count)
    below, above = ends(float(numpy.quantile(numpy.abs(draws).max(axis=1), 1 - FIRST)))
    possible = below <= above.min()
    quantile = float(numpy.quantile(draws[:, possible].max(axis=1), 1 - TAIL + FIRST))
    return float(low), float(ends(max(quantile, 0.0))[1][possible].min())


def _correlated_draws(deviations: numpy.ndarray, seed: int, count: int) -> numpy.ndarray:
    """Return (count, N) standard normal draws with the correlation of the columns; constant columns are independent."""
    spread = deviations.std(axis=0)
    scaled = numpy.where(spread > 1e-12, deviations / numpy.where(spread > 1e-12, spread, 1.0), 0.0)
    correlation = scaled.T @ scaled / len(scaled)
    numpy.fill_diagonal(correlation, 1.0)
    value, vector = numpy.linalg.eigh(correlation)
    root = vector * numpy.sqrt(numpy.maximum(value, 0.0))
    return numpy.random.default_rng(seed).normal(size=(count, len(root))) @ root.T
