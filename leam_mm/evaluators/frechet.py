"""Distances between two sets of features: Fréchet, kernel (KID, CMMD), precision and recall. Pure maths in float64.

Fréchet distance (Heusel et al. 1706.08500, eq. 6), kernel distance (Bińkowski et al. 1801.01401, section 4), CMMD
(Jayasumana et al. 2401.09603, section 4), improved precision and recall (Kynkäänniemi et al. 1904.06991, eq. 1 and 2).
tr sqrt(S1 S2) is computed as the nuclear norm of F1' F2 with S = F F': real, never negative, and exact where there are
fewer samples than features, unlike a matrix root.
"""

from dataclasses import dataclass

import numpy
import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureMoments:
    """Count, mean and centred second moment of features; can be merged in any order (Chan et al. 1979).

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
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

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

    def factor(self) -> Tensor:
        """Return a matrix F (D, R) with F F' = covariance."""
        value, vector = torch.linalg.eigh(self.covariance)
        # The square root would enlarge eigenvalues that are only round-off by a factor of 1e8.
        value = torch.where(value > value[-1] * len(value) * torch.finfo(value.dtype).eps, value, 0.0)
        return vector * value.sqrt()


def frechet_distance(first: FeatureMoments, second: FeatureMoments) -> float:
    """Return the squared Fréchet distance of the Gaussians with these moments; biased upwards by about 1 / count.

    Args:
        first: Moments of one set of at least two samples.
        second: Moments of the other set.
    """
    return _distance(first.mean, first.factor(), second.mean, second.factor())


def frechet_distance_of_features(first: Tensor, second: Tensor) -> float:
    """Return the squared Fréchet distance of two feature sets (B, D); exact also for fewer samples than features."""
    first, second = first.double(), second.double()
    return _distance(first.mean(dim=0), _sample_factor(first), second.mean(dim=0), _sample_factor(second))


def _sample_factor(features: Tensor) -> Tensor:
    count, size = features.shape
    if count < 2:
        raise ValueError(f"a covariance needs two samples, there is {count}")
    if count > size:
        return FeatureMoments.of(features).factor()
    return (features - features.mean(dim=0)).T / (count - 1) ** 0.5


def _distance(mean1: Tensor, factor1: Tensor, mean2: Tensor, factor2: Tensor) -> float:
    root = torch.linalg.svdvals(factor1.T @ factor2).sum()
    value = (mean1 - mean2).square().sum() + factor1.square().sum() + factor2.square().sum() - 2 * root
    return max(0.0, float(value))


def kernel_distance(
    first: Tensor, second: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> float:
    """Return the kernel distance: unbiased squared MMD with kernel (x'y / D + 1)^3, mean over random subsets.

    Args:
        first: (B, D) features.
        second: (B', D) features.
        subsets: Number of subsets.
        subset_size: Samples in each, at most all.
        seed: Seed of the choice; generator and order of draws are those of torch-fidelity, so equal seeds choose alike.

    Returns:
        The distance; it may be a little below 0, since it is unbiased.
    """
    size = min(subset_size, len(first), len(second))
    if size < 2:
        raise ValueError(f"a kernel distance needs two samples, there are {size}")
    chosen = numpy.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        rows1 = chosen.choice(len(first), size, replace=False)
        rows2 = chosen.choice(len(second), size, replace=False)
        values.append(polynomial_mmd(first[rows1], second[rows2]))
    return float(numpy.mean(values))


def polynomial_mmd(first: Tensor, second: Tensor) -> float:
    """Return the unbiased squared MMD of (B, D) and (B', D) features, kernel (x'y / D + 1)^3 (1801.01401, eq. 4)."""
    first, second = first.double(), second.double()
    size = first.shape[1]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / size + 1) ** 3

    within = [
        (k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1)) for k in (kernel(first, first), kernel(second, second))
    ]
    return float(within[0] + within[1] - 2 * kernel(first, second).mean())


def gaussian_distance(
    first: Tensor, second: Tensor, width: float = 10.0, scale: float = 1000.0, chunk: int = 1024
) -> float:
    """Return the squared MMD with kernel exp(-|x - y|^2 / 2 width^2), times ``scale``: CMMD, for unit embeddings.

    The published estimator includes the kernel of each sample with itself: it is biased upwards by about 1 / count.

    Args:
        first: (B, D) features.
        second: (B', D) features.
        width: sigma of the kernel.
        scale: Makes the number readable.
        chunk: Rows of a kernel matrix held at once.
    """
    if not len(first) or not len(second):
        raise ValueError(f"a distance needs samples in both sets, there are {len(first)} and {len(second)}")
    first, second = first.double(), second.double()

    def mean(a: Tensor, b: Tensor) -> float:
        # expm1, since at this width all kernels are near 1 and the result is made of their differences.
        parts = [torch.expm1(-torch.cdist(part, b).square() / (2 * width**2)).sum() for part in a.split(chunk)]
        return float(torch.stack(parts).sum()) / (len(a) * len(b))

    return scale * (mean(first, first) + mean(second, second) - 2 * mean(first, second))


def precision_recall(real: Tensor, generated: Tensor, neighbours: int = 3, chunk: int = 1024) -> tuple[float, float]:
    """Return the share of generated samples near real ones, and of real samples near generated ones.

    Near means inside the ball around a sample of the other set whose radius is the distance to its k-th neighbour.

    Args:
        real: (B, D) features.
        generated: (B', D) features.
        neighbours: k; each set needs more than k samples.
        chunk: Rows of the distance matrix held at once.

    Returns:
        Precision and recall, in [0, 1].
    """
    if min(len(real), len(generated)) <= neighbours:
        raise ValueError(f"precision needs more than {neighbours} samples, there are {len(real)} and {len(generated)}")
    real, generated = real.double(), generated.double()
    return _covered(generated, real, neighbours, chunk), _covered(real, generated, neighbours, chunk)


def _covered(query: Tensor, centre: Tensor, neighbours: int, chunk: int) -> float:
    # The smallest distance is that to itself, so the (k + 1)-th smallest is the k-th neighbour. Distances are computed
    # exactly and not by matrix products, since duplicates must have distance zero.
    radius = torch.cat([_distances(part, centre).kthvalue(neighbours + 1).values for part in centre.split(chunk)])
    inside = [(_distances(part, centre) <= radius).any(dim=1) for part in query.split(chunk)]
    return float(torch.cat(inside).double().mean())


def _distances(first: Tensor, second: Tensor) -> Tensor:
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
