"""Kernel distances of two sets of features: KID (cubic kernel, unbiased) and CMMD (Gaussian kernel). In float64.

KID: Bińkowski et al. 1801.01401, section 4. CMMD: Jayasumana et al. 2401.09603, section 4.
"""

import numpy
import torch
from torch import Tensor


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
