"""Bias of a ranking: over-represented groups among the first results (Geyik et al. 1905.01989, section 4)."""

import numpy


def max_skew(ranked: numpy.ndarray, share: numpy.ndarray, top: int) -> float:
    """Return the largest log of a group's share among the first k over its share of all (MaxSkew@k); 0 is fair.

    Args:
        ranked: (B,) number of the group of each result, best first.
        share: (groups,) share of each group of all images, above 0.
        top: k.
    """
    first = numpy.bincount(ranked[:top], minlength=len(share)) / min(top, len(ranked))
    return float(numpy.log(first / share, where=first > 0, out=numpy.full(len(share), -numpy.inf)).max())


def divergence(ranked: numpy.ndarray, share: numpy.ndarray) -> float:
    """Return the normalised discounted cumulative Kullback-Leibler divergence of the ranking (NDKL); 0 is fair.

    Args:
        ranked: (B,) number of the group of each result, best first.
        share: (groups,) share of each group of all images, above 0.
    """
    place = numpy.arange(1, len(ranked) + 1)
    found = numpy.cumsum(numpy.eye(len(share))[ranked], axis=0) / place[:, None]
    logs = numpy.log(found / share, where=found > 0, out=numpy.zeros_like(found))
    weight = 1 / numpy.log2(place + 1)
    return float((weight * (found * logs).sum(axis=1)).sum() / weight.sum())
