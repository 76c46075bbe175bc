"""How well a score tells two groups apart: area under the curve, and hits at a fixed rate of false positives."""

import numpy
from scipy.stats import norm, rankdata

from leam_mm.audits.stored_samples import rate_interval

REPEATS = 1000


def area_under_curve(positive: numpy.ndarray, negative: numpy.ndarray) -> tuple[float, float, float]:
    """Return the probability that a positive scores above a negative, ties counted half, with its 95 % interval.

    The interval is that of DeLong, DeLong and Clarke-Pearson (1988). Where no pair overlaps its variance is zero; the
    ends are then those of a proportion of 1 in as many samples as the smaller group has.

    Args:
        positive: (N,) scores of the group that should score higher.
        negative: (M,) scores of the other group.

    Returns:
        Area, lower and upper end, in [0, 1].
    """
    n, m = len(positive), len(negative)
    if min(n, m) < 2:
        raise ValueError(f"area_under_curve: {n} and {m} scores, at least 2 of each are needed")
    ranks = rankdata(numpy.concatenate([positive, negative]))
    above = (ranks[:n] - rankdata(positive)) / m  # share of negatives below each positive
    below = 1 - (ranks[n:] - rankdata(negative)) / n  # share of positives above each negative
    area = float(above.mean())
    half = float(norm.ppf(0.975)) * float(numpy.sqrt(above.var(ddof=1) / n + below.var(ddof=1) / m))
    if half == 0 and area in (0.0, 1.0):
        return area, *rate_interval(round(area * min(n, m)), min(n, m))
    return area, max(0.0, area - half), min(1.0, area + half)


def hits_at(positive: numpy.ndarray, negative: numpy.ndarray, false_positives: float) -> float:
    """Return the share of positives above the threshold that at most this share of negatives exceed.

    Args:
        positive: (N,) scores.
        negative: (M,) scores.
        false_positives: Share of negatives above the threshold, in [0, 1).
    """
    allowed = int(false_positives * len(negative) + 1e-9)
    threshold = numpy.sort(negative)[len(negative) - 1 - allowed]
    return float((positive > threshold).mean())


def hits_interval(
    positive: numpy.ndarray, negative: numpy.ndarray, false_positives: float, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of ``hits_at``; both groups are drawn anew each time."""
    generator = numpy.random.default_rng(seed)
    draws = [
        hits_at(generator.choice(positive, len(positive)), generator.choice(negative, len(negative)), false_positives)
        for _ in range(REPEATS)
    ]
    low, high = numpy.quantile(draws, [0.025, 0.975])
    return float(low), float(high)
