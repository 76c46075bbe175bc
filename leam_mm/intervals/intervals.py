"""Confidence intervals of proportions, of means, and of other statistics of independent samples.

Their coverage is measured by tests/benchmarks/interval_coverage.py.
"""

import math
from collections.abc import Callable

import numpy
from scipy.stats import beta, binomtest, chi2, norm, t

FEWEST = 6  # values: with fewer, even the whole range of the sample covers the median with less than 95 %


def wilson_interval(successes: int, samples: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of a proportion (Wilson 1927), valid also near 0 and 1 and for few samples.

    With one to three hits or misses the end near 0 or 1 is that of a Poisson number, where Wilson's covers too little
    (Brown, Cai and DasGupta 2001, "Interval estimation for a binomial proportion", Statistical Science 16, 101-133,
    section 4.1.1).

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
    few, tail, misses = 3 if samples > 50 else 2, 1 - confidence, samples - successes
    low, high = float(interval.low), float(interval.high)
    if misses and 0 < successes <= few:
        low = min(low, float(chi2.ppf(tail, 2 * successes)) / 2 / samples)
    if successes and 0 < misses <= few:
        high = max(high, 1 - float(chi2.ppf(tail, 2 * misses)) / 2 / samples)
    return low, high


def wilson_ends(share: numpy.ndarray, samples: numpy.ndarray, z: float) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return the ends of Wilson intervals of many shares.

    Args:
        share: (N,) in [0, 1].
        samples: (N,) number of trials, or effective number of clustered ones.
        z: Quantile of the normal distribution, or of another one in its place.
    """
    centre = (share + z * z / (2 * samples)) / (1 + z * z / samples)
    half = z / (1 + z * z / samples) * numpy.sqrt(share * (1 - share) / samples + (z / (2 * samples)) ** 2)
    return numpy.maximum(centre - half, 0.0), numpy.minimum(centre + half, 1.0)


def mean_interval(values: numpy.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of a mean: Student's t, corrected for skewness by the cubic transformation of Hall (1992).

    "On the removal of skewness by transformation", Journal of the Royal Statistical Society B 54, 221-228. For
    symmetric values it is the interval of Student.

    Args:
        values: (B,) independent samples.
        confidence: Coverage, between 0 and 1.

    Returns:
        Lower and upper end; NaN, "not measured", for fewer than ``FEWEST`` values.
    """
    if len(values) == 0:
        raise ValueError("mean_interval: no samples")
    if len(values) < FEWEST:
        return math.nan, math.nan
    values = numpy.asarray(values, dtype=float)
    mean, deviation = float(values.mean()), float(values.std())
    if deviation <= 1e-12 * abs(mean):
        return mean, mean
    skewness = float(((values - mean) ** 3).mean()) / deviation**3 / math.sqrt(len(values))
    quantile = float(t.ppf((1 + confidence) / 2, len(values) - 1))
    error = deviation / math.sqrt(len(values) - 1)

    def inverse(y: float) -> float:
        # Of g(x) = x + a x^2 / 3 + a^2 x^3 / 27 + a / 6, with a = skewness / sqrt(B).
        if abs(skewness) < 1e-6:
            return y
        return float(numpy.cbrt(1 + skewness * (y - skewness / 6)) - 1) * 3 / skewness

    return mean - error * inverse(quantile), mean - error * inverse(-quantile)


def mean_test(values: numpy.ndarray) -> float:
    """Return the two-sided p value of a mean of zero: the one at which `mean_interval` begins to exclude zero.

    Args:
        values: (B,) independent samples, at least two.
    """
    values = numpy.asarray(values, dtype=float)
    mean, deviation, count = float(values.mean()), float(values.std()), len(values)
    if deviation <= 1e-12 * abs(mean) or deviation == 0:
        return 0.0 if mean else 1.0
    skewness = float(((values - mean) ** 3).mean()) / deviation**3 / math.sqrt(count)
    ratio = mean * math.sqrt(count - 1) / deviation
    ratio += skewness * ratio**2 / 3 + skewness**2 * ratio**3 / 27 + skewness / 6
    return float(2 * t.sf(abs(ratio), count - 1))


def share_interval(values: numpy.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of a mean of values in [0, 1], such as an image's share of hits over languages.

    With 0 and 1 alone it is the Wilson interval. Otherwise it is the smallest interval that contains both
    `mean_interval` and the Wilson interval of the effective number of samples, the latter since few values that differ
    from 0 or 1 say little about their spread.

    Args:
        values: (B,) independent samples, in [0, 1].
        confidence: Coverage, between 0 and 1.

    Returns:
        Lower and upper end, both in [0, 1].
    """
    values = numpy.asarray(values, dtype=float)
    if len(values) == 0 or numpy.isin(values, (0.0, 1.0)).all():
        return wilson_interval(int(values.sum()), len(values), confidence)
    share, samples = effective_samples(values[:, None])
    quantile = float(t.ppf((1 + confidence) / 2, max(len(values) - 1, 1)))
    low, high = (float(end[0]) for end in wilson_ends(share, samples, quantile))
    skewed = mean_interval(values, confidence)
    if not math.isnan(skewed[0]):
        low, high = max(0.0, min(low, skewed[0])), min(1.0, max(high, skewed[1]))
    return low, high


def effective_samples(values: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return means and effective numbers of samples: of 0 and 1, so many would have a mean of equal variance.

    The variance is drawn towards that of 0 and 1 with the weight of one sample, against as many samples as are below 1,
    or above 0 if those are fewer: where nearly all are equal, their variance says little.

    Args:
        values: (B, N) in [0, 1].

    Returns:
        Means (N,), and numbers (N,) of at least B.
    """
    count, share = len(values), values.mean(axis=0)
    binary = share * (1 - share)
    telling = numpy.minimum((values < 1).sum(axis=0), (values > 0).sum(axis=0))
    variance = (telling * values.var(axis=0) + binary) / (telling + 1)
    measured = numpy.where(variance > 0, binary * count / numpy.where(variance > 0, variance, 1.0), count)
    return share, numpy.maximum(measured, count)


def clustered_interval(
    share: float, samples: int, design_effect: float, quantile: float, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the interval of a proportion whose trials depend on each other (Korn and Graubard 1998).

    "Confidence intervals for proportions with small expected number of positive counts estimated from survey data",
    Survey Methodology 24, 193-201: the exact interval of Clopper and Pearson of the effective number of trials.

    Args:
        share: The proportion, in [0, 1].
        samples: Number of trials.
        design_effect: Variance of the proportion over that of independent trials; less than 1 counts as 1.
        quantile: Of Student's distribution, for the degrees of freedom with which the design effect was estimated.
        confidence: Coverage, between 0 and 1.

    Returns:
        Lower and upper end, both in [0, 1].
    """
    normal = float(norm.ppf((1 + confidence) / 2))
    effective = min(samples, samples / max(design_effect, 1.0) * (normal / quantile) ** 2)
    hits, tail = share * effective, (1 - confidence) / 2
    low = float(beta.ppf(tail, hits, effective - hits + 1)) if hits > 0 else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, effective - hits)) if hits < effective else 1.0
    return low, high


def bootstrap_interval(
    values: numpy.ndarray,
    statistic: Callable[[numpy.ndarray], float],
    seed: int = 0,
    repeats: int = 1000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return the expanded percentile bootstrap interval over the first axis, that of independent samples.

    Percentiles (Efron 1979) are as far out as makes the interval of a mean as wide as Student's (Hesterberg 2015, "What
    teachers should know about the bootstrap", The American Statistician 69, 371-386, section 5.3). For means,
    `mean_interval` and `share_interval` cover better, and for a minimum it does not hold at all. Rows are drawn whole,
    so columns that belong together (one image in all languages) stay together.

    Args:
        values: (B, ...) one row for each independent sample.
        statistic: Function of such an array.
        seed: Seed of the draws.
        repeats: Number of draws.
        confidence: Coverage, between 0 and 1.

    Returns:
        Lower and upper percentile of the statistic over the draws; NaN, "not measured", for fewer than ``FEWEST``
        values: draws never leave the range of the sample, which covers the median of n values with probability
        1 - 2^(1 - n).
    """
    if len(values) == 0:
        raise ValueError("bootstrap_interval: no samples")
    if len(values) < FEWEST:
        return math.nan, math.nan
    generator = numpy.random.default_rng(seed)
    draws = [statistic(values[generator.integers(0, len(values), len(values))]) for _ in range(repeats)]
    count = len(values)
    tail = float(norm.cdf(-math.sqrt(count / (count - 1)) * t.ppf((1 + confidence) / 2, count - 1)))
    low, high = numpy.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)
