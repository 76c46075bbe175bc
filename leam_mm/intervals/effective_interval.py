"""Intervals of averaged shares: Wilson's, with the number of samples that the variance of the average amounts to.

The variance is that of a mean over classes, or over draws of a training set, so trials are not alike. An average with
variance V counts as p (1 - p) / V independent trials (Korn and Graubard 1998, "Confidence intervals for proportions
with small expected number of positive counts estimated from survey data", equation 2).
"""

import math

import numpy
from scipy.stats import norm
from scipy.stats import t as student


def effective_interval(share: float, variance: float, alike: float, freedom: float = math.inf) -> tuple[float, float]:
    """Return the 95 % interval of an average share.

    Args:
        share: The average, in [0, 1].
        variance: Its estimated variance; 0 where all trials agree.
        alike: Number of independent trials that it counts as where the variance is 0.
        freedom: Degrees of freedom of the variance, at least 1; infinite for one that is known well.

    Returns:
        Lower and upper end, both in [0, 1].
    """
    trials = share * (1 - share) / variance if variance > 0 else alike
    quantile = float(norm.ppf(0.975) if math.isinf(freedom) else student.ppf(0.975, max(1.0, freedom)))
    square = quantile**2 / trials
    middle = (share + square / 2) / (1 + square)
    half = quantile / (1 + square) * math.sqrt(share * (1 - share) / trials + square / (4 * trials))
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))  # rounding must not exclude it


def mean_of_classes(hits: numpy.ndarray, label: numpy.ndarray) -> tuple[float, float, float]:
    """Return the mean over classes of the share of hits, and its interval over images of the same classes.

    Args:
        hits: (B,) share of hits of each image, in [0, 1].
        label: (B,) class of each image; classes without images do not count.

    Returns:
        Value, lower and upper end.
    """
    _, own, count = numpy.unique(label, return_inverse=True, return_counts=True)
    share = numpy.bincount(own, hits) / count
    value = float(share.mean())
    # Unbiased variance of each class's share; a class with one image takes the spread of an average class.
    variance = numpy.where(count > 1, share * (1 - share) / numpy.maximum(count - 1, 1), value * (1 - value))
    alike = len(count) ** 2 / float((1 / count).sum())
    return value, *effective_interval(value, float(variance.sum()) / len(count) ** 2, alike)


def mean_of_draws(hits: numpy.ndarray) -> tuple[float, float, float]:
    """Return the mean share of hits over draws of a training set, and its interval over draws and images.

    The variance is that of a two-way layout without repetition (Scheffé 1959, section 7.4): images, draws, and the
    rest. The degrees of freedom are Satterthwaite's (1946).

    Args:
        hits: (B, draws) whether an image is right in a draw; at least two draws.

    Returns:
        Value, lower and upper end.
    """
    images, draws = hits.shape
    if images < 2:
        return float(hits.mean()), 0.0, 1.0
    value, by_image, by_draw = hits.mean(), hits.mean(axis=1), hits.mean(axis=0)
    rest = hits - by_image[:, None] - by_draw + value
    of_rest = float((rest**2).sum()) / ((images - 1) * (draws - 1))
    of_images, of_draws = draws * float(by_image.var(ddof=1)), images * float(by_draw.var(ddof=1))
    spread = of_images**2 / (images - 1)
    if of_draws > of_rest:
        spread += of_draws**2 / (draws - 1) + of_rest**2 / ((images - 1) * (draws - 1))
    total = of_images + max(0.0, of_draws - of_rest)
    freedom = total**2 / spread if spread > 0 else math.inf
    return float(value), *effective_interval(float(value), total / (images * draws), images, freedom)
