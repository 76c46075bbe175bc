"""Count, mean and covariance of features: what a Fréchet distance needs of a set of any size.

Statistics of parts are merged by the update of Chan, Golub and LeVeque (1979), whose result does not depend on the
order to 12 digits: parts may come from batches, from files or from several ranks.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 512  # columns of a symmetric product that are computed at once


@dataclass(frozen=True)
class FeatureMoments:
    """Count, mean and centred second moment of features; can be merged in any order.

    Args:
        count: Number of samples.
        mean: (D,) float64.
        moment: (D, D) float64, sum of the outer products of the centred samples.
    """

    count: int
    mean: Tensor
    moment: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "FeatureMoments":
        """Return the moments of (B, D) features, B >= 1."""
        features = features.double()
        mean = features.mean(dim=0)
        return cls(len(features), mean, gram(features - mean))

    @classmethod
    def of_batches(cls, batches: Iterable[Tensor]) -> "FeatureMoments":
        """Return the moments of all batches (B, D) together; only one of them is in memory at a time."""
        stream = MomentStream()
        for features in batches:
            stream.add(features)
        return stream.moments()

    def merge(self, other: "FeatureMoments") -> "FeatureMoments":
        """Return the moments of both sets together."""
        count = self.count + other.count
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        moment = self.moment + other.moment + torch.outer(shift, shift) * (self.count * other.count / count)
        return FeatureMoments(count, mean, moment)

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance (D, D); needs two samples."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two samples, there is {self.count}")
        return self.moment / (self.count - 1)


class MomentStream:
    """Moments of features that arrive in batches: memory for one covariance, however many samples there are."""

    def __init__(self) -> None:
        """Start without any sample."""
        self.count = 0
        self.mean, self.moment = torch.empty(0), torch.empty(0, 0)

    def add(self, features: Tensor) -> None:
        """Include a batch (B, D), B >= 1, of the same D each time."""
        features = features.double()
        own = features.mean(dim=0)
        if not self.count:
            self.mean, self.moment = torch.zeros_like(own), features.new_zeros(len(own), len(own))
        shift, whole = own - self.mean, self.count + len(features)
        add_gram(self.moment, features - own)
        self.moment.addr_(shift, shift, alpha=self.count * len(features) / whole)
        self.mean += shift * (len(features) / whole)
        self.count = whole

    def moments(self) -> FeatureMoments:
        """Return the moments of all batches; the stream must not be used after it."""
        if not self.count:
            raise ValueError("there are no features")
        return FeatureMoments(self.count, self.mean, self.moment)


def gram(features: Tensor) -> Tensor:
    """Return X' X (D, D) of X (B, D): half the products of a plain matrix product, since it is symmetric."""
    size = features.shape[1]
    return add_gram(features.new_zeros(size, size), features)


def add_gram(total: Tensor, features: Tensor) -> Tensor:
    """Add X' X of X (B, D) to a symmetric (D, D) in place, and return it."""
    size = features.shape[1]
    for start in range(0, size, BLOCK):
        end = min(start + BLOCK, size)
        rows = features[:, start:end].T
        total[start:end, start:end].addmm_(rows, features[:, start:end])
        if end < size:
            product = rows @ features[:, end:]
            total[start:end, end:] += product
            total[end:, start:end] += product.T
    return total
