"""Largest difference of rates between groups, with an interval for all pairs; p values corrected for their number."""

import math
from collections.abc import Mapping, Sequence
from itertools import permutations

import numpy

from leam_mm.intervals.intervals import wilson_interval


def largest_difference(
    hits: Mapping[str, int], counts: Mapping[str, int], alpha: float = 0.05
) -> tuple[float, float, float]:
    """Return the largest difference of two groups' rates, with an interval for the largest true difference.

    Each pair has a score interval (Newcombe 1998, method 10) at alpha over the number of pairs, so that all of them
    hold at once. No true difference is then above the largest upper end, and the largest true one is at least the
    largest lower end.

    Args:
        hits: Successes of each group.
        counts: Samples of each group, above 0; two groups at least.
        alpha: One minus the coverage.

    Returns:
        Difference of the largest and the smallest rate, lower and upper end, all in [0, 1].
    """
    confidence = 1 - alpha / math.comb(len(counts), 2)
    rate = {group: hits[group] / counts[group] for group in counts}
    ends = {group: wilson_interval(hits[group], counts[group], confidence) for group in counts}
    lows, highs = [0.0], []
    for one, other in permutations(counts, 2):
        difference = rate[one] - rate[other]
        lows.append(difference - math.hypot(rate[one] - ends[one][0], ends[other][1] - rate[other]))
        highs.append(difference + math.hypot(ends[one][1] - rate[one], rate[other] - ends[other][0]))
    return max(rate.values()) - min(rate.values()), max(lows), min(max(highs), 1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values corrected for their number (Holm 1979): below alpha, a rejection keeps the family's error."""
    order = sorted(range(len(p_values)), key=lambda number: p_values[number])
    corrected, most = [0.0] * len(p_values), 0.0
    for place, number in enumerate(order):
        most = max(most, min(1.0, (len(p_values) - place) * p_values[number]))
        corrected[number] = most
    return corrected


def association(
    score: numpy.ndarray, inside: numpy.ndarray, draws: int, generator: numpy.random.Generator
) -> tuple[float, float]:
    """Return effect size and two-sided permutation p value of a difference of means (Caliskan et al. 2017).

    Args:
        score: (B,) association of each image: mean cosine to the pleasant texts minus that to the unpleasant ones.
        inside: (B,) bool, images of the group; the others are compared with.
        draws: Number of permutations; the smallest p value is 1 / (draws + 1).
        generator: Draws the permutations.

    Returns:
        d, the difference of the means over the standard deviation of all, and p.
    """
    deviation = float(score.std(ddof=1))
    count, total = int(inside.sum()), float(score.sum())
    rest = len(score) - count

    def difference(own: float) -> float:
        return own / count - (total - own) / rest

    observed = difference(float(score[inside].sum()))
    drawn = [difference(float(generator.permutation(score)[:count].sum())) for _ in range(draws)]
    beyond = sum(abs(value) >= abs(observed) - 1e-12 for value in drawn)
    return (observed / deviation if deviation else 0.0), (beyond + 1) / (draws + 1)
