"""Soft-TIFA: a prompt's score is the mean over its atoms of the judge's probability of the right answer.

The atoms are those of TIFA (Hu et al. 2303.11897); probabilities in their place, and the geometric mean, which demands
that all atoms are right at once, are those of GenEval 2 (Kamath et al. 2512.16853).
"""

import numpy


def right_probability(yes: numpy.ndarray, answer: numpy.ndarray) -> numpy.ndarray:
    """Return the probability of the right answer.

    Args:
        yes: (..., A) probability of "yes" for each atom, in [0, 1].
        answer: (A,) bool, whether "yes" is right.
    """
    return numpy.where(answer, yes, 1 - yes)


def arithmetic_mean(right: numpy.ndarray) -> numpy.ndarray:
    """Return the mean over atoms.

    Args:
        right: (..., A) probability of the right answer; NaN where a prompt has fewer atoms.

    Returns:
        (...) in [0, 1].
    """
    return numpy.nanmean(right, axis=-1)


def geometric_mean(right: numpy.ndarray) -> numpy.ndarray:
    """Return the geometric mean over atoms: 0 if one of them has probability 0.

    Args:
        right: (..., A) probability of the right answer; NaN where a prompt has fewer atoms.

    Returns:
        (...) in [0, 1], at most the arithmetic mean.
    """
    with numpy.errstate(divide="ignore"):  # log 0 is -inf, and its exponential 0
        return numpy.exp(numpy.nanmean(numpy.log(right), axis=-1))
