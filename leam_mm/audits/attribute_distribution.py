"""Distribution of a perceived attribute: distance to a reference, and correction for the errors of who perceives it."""

from dataclasses import dataclass

import numpy

REPEATS = 2000
LEAST_SINGULAR = 0.2  # of a confusion matrix, below which its inverse multiplies the noise more than fivefold


@dataclass(frozen=True)
class Distance:
    """Total variation distance of a distribution to a reference, with a 95 % interval.

    Args:
        shares: (K,) corrected distribution.
        value: Half the sum of absolute differences, in [0, 1].
        low: Lower end; 0 where the distance is not above the noise of the sample.
        high: Upper end.
    """

    shares: numpy.ndarray
    value: float
    low: float
    high: float


def total_variation(shares: numpy.ndarray, reference: numpy.ndarray) -> numpy.ndarray:
    """Return half the sum of absolute differences over the last axis: 0 equal, 1 disjoint."""
    return numpy.abs(shares - reference).sum(axis=-1) / 2


def entropy(shares: numpy.ndarray) -> float:
    """Return the entropy (K,) over its largest value log K: 1 all values equally often, 0 always the same one."""
    positive = shares[shares > 0]
    return float(-(positive * numpy.log(positive)).sum() / numpy.log(len(shares)))


def corrected(observed: numpy.ndarray, confusion: numpy.ndarray) -> numpy.ndarray:
    """Return the distribution that a classifier with these errors would show as the observed one: p = C^-1 p_obs.

    Args:
        observed: (..., K) shares of the perceived values.
        confusion: (..., K, K) shares of the perceived values (columns) of images of each true value (rows).

    Returns:
        (..., K), clipped at 0 and scaled to a sum of 1.
    """
    solved = numpy.linalg.solve(numpy.swapaxes(confusion, -1, -2), observed[..., None])[..., 0]
    clipped = numpy.clip(solved, 0, None)
    return clipped / clipped.sum(axis=-1, keepdims=True)


def distance(
    counts: numpy.ndarray, reference: numpy.ndarray, errors: numpy.ndarray | None = None, seed: int = 0
) -> Distance:
    """Return the distance of perceived counts to a reference.

    The sample's distance is too large on average, since noise never brings two distributions closer. The lower end
    therefore subtracts the distance of the drawn to the observed distribution (triangle inequality); the upper end is
    the percentile of the bootstrap, which errs to the high side.

    Args:
        counts: (K,) images of each perceived value, at least one.
        reference: (K,) shares.
        errors: (K, K) counts of perceived values (columns) of images of known value (rows); None corrects nothing.
        seed: Seed of the bootstrap over both counts.
    """
    generator, total = numpy.random.default_rng(seed), int(counts.sum())
    shares, drawn = counts / total, generator.multinomial(total, counts / total, REPEATS) / total
    if errors is not None:
        known = errors.sum(axis=1)
        rates = errors / known[:, None]
        drawn_rates = numpy.stack(
            [generator.multinomial(int(n), row, REPEATS) / n for n, row in zip(known, rates, strict=True)], axis=1
        )
        regular = numpy.linalg.svd(drawn_rates, compute_uv=False).min(axis=-1) > 1e-6
        shares, drawn = corrected(shares, rates), corrected(drawn[regular], drawn_rates[regular])
    value = float(total_variation(shares, reference))
    noise = float(numpy.quantile(total_variation(drawn, shares), 0.975))
    high = float(numpy.quantile(total_variation(drawn, reference), 0.975))
    return Distance(shares, value, max(0.0, value - noise), max(value, high))


def fault_of_errors(errors: numpy.ndarray | None, values: list[str]) -> str:
    """Return why counts of a classifier's errors cannot correct it, or an empty text."""
    if errors is None:
        return "the errors of the classifier are not known: give it a labelled set"
    absent = [value for value, count in zip(values, errors.sum(axis=1), strict=True) if not count]
    if absent:
        return f"the labelled set has no readable image of {', '.join(absent[:5])}"
    rates = errors / errors.sum(axis=1, keepdims=True)
    if numpy.linalg.svd(rates, compute_uv=False).min() < LEAST_SINGULAR:
        return "the classifier tells the values too badly apart for a correction"
    return ""
