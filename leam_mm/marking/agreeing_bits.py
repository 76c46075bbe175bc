"""How likely an unmarked image agrees with a message in so many bits.

If the bits read from unmarked images are fair and independent, the number that agrees with a fixed message is binomial
(2303.15435, equation 2). Bits that are correlated agree or disagree together: the variance of the number is larger, and
so are its tails. The beta-binomial distribution has one number for this, which is measured on unmarked images.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import betabinom, binom, chi2


@dataclass(frozen=True)
class AgreeingBits:
    """Distribution of the number of agreeing bits of unmarked images.

    Args:
        bits: k, bits of the message.
        dispersion: Variance of the number, divided by the binomial's k/4; 1 for independent bits, k if all are equal.
    """

    bits: int
    dispersion: float = 1.0

    def tail(self, agreeing: float) -> float:
        """Return the probability that an unmarked image agrees in at least so many bits."""
        least = int(np.ceil(agreeing))
        correlation = (self.dispersion - 1) / (self.bits - 1)
        if correlation <= 1e-9:
            return float(binom.sf(least - 1, self.bits, 0.5))
        shape = (1 / min(correlation, 0.999) - 1) / 2
        return float(betabinom.sf(least - 1, self.bits, shape, shape))

    def least(self, rate: float) -> int:
        """Return the smallest number of agreeing bits with a false positive rate of at most `rate`.

        Returns:
            0 to k; k + 1 if even agreement in all bits is likelier than that.
        """
        return next((count for count in range(self.bits + 1) if self.tail(count) <= rate), self.bits + 1)


def measured_dispersion(agreeing: np.ndarray, bits: int, confidence: float = 0.95) -> float:
    """Return an upper bound of the dispersion, from unmarked images that were not used for the whitening.

    Args:
        agreeing: (N,) numbers of agreeing bits.
        bits: k.
        confidence: Of the one-sided bound, which takes the numbers as normal (chi-squared distribution).

    Returns:
        At least 1; deviations of the mean from k/2 count as variance.
    """
    squares = float(np.square(np.asarray(agreeing, np.float64) - bits / 2).sum())
    bound = squares / float(chi2.ppf(1 - confidence, len(agreeing)))
    return min(max(1.0, bound / (bits / 4)), float(bits))
