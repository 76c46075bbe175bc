"""Fréchet distances of the halves of random splits, for an interval: what the splits share is computed once.

With more samples than features in a half, the samples are divided into 12 random blocks, and a half is six of them: its
moments are sums of the blocks' moments. The splits are columns of the design of Plackett and Burman (1946) for 12 runs,
so that each halves the blocks and any two are orthogonal. With fewer samples, the products of all samples of one set
with those of the other are computed once, and each half takes its rows and columns.
"""

import numpy
import torch
from scipy.linalg import LinAlgError, eigh, eigvalsh
from torch import Tensor

from leam_mm.distances.feature_statistics import FeatureMoments, gram
from leam_mm.distances.frechet import (
    ROUND_OFF,
    distance_of_parts,
    frechet_distance,
    frechet_distance_of_features,
    roots,
)
from leam_mm.intervals.distance_interval import split_rows, values_of_halves

SPLITS = 10
BLOCKS = 12
DESIGN = "++-+++---+-"  # Plackett and Burman 1946: the runs are its 11 rotations, and one of minus signs alone
CHUNK = 1 << 16  # entries of each block that are combined at once


def frechet_of_halves(first: Tensor, second: Tensor, seed: int = 0, paired: bool = False) -> numpy.ndarray:
    """Return the Fréchet distances (SPLITS, 2) of both pairs of halves of each split.

    Args:
        first: (B, D) features.
        second: (B', D) features.
        seed: Seed of the splits.
        paired: Whether row n of both sets belongs together, so that a half holds both or none.
    """
    first, second = first.double(), second.double()
    counts, size = [len(first), len(second)], first.shape[1]
    if min(counts) // BLOCKS * BLOCKS // 2 > size:
        return _of_blocks(first, second, seed, paired)
    if max(counts) // 2 <= size:
        return _of_products(first, second, seed, paired)
    if paired:
        both = torch.cat([first, second], dim=1)
        return values_of_halves(
            both, both, lambda half, _: frechet_distance_of_features(half[:, :size], half[:, size:]), seed, 2 * SPLITS
        )
    return values_of_halves(first, second, frechet_distance_of_features, seed, 2 * SPLITS)


def _of_blocks(first: Tensor, second: Tensor, seed: int, paired: bool) -> numpy.ndarray:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(len(first), generator=generator)]
    rows.append(rows[0] if paired else torch.randperm(len(second), generator=generator))
    sets = [_Blocks(features, own) for features, own in zip((first, second), rows, strict=True)]
    return numpy.array(
        [[_distance(*(each.half(split, sign) for each in sets)) for sign in (1, -1)] for split in range(SPLITS)]
    )


def block_signs() -> Tensor:
    """Return (BLOCKS, BLOCKS): a row of ones, then the blocks' signs in 11 splits; the rows are orthogonal."""
    row = torch.tensor([1.0 if sign == "+" else -1.0 for sign in DESIGN], dtype=torch.float64)
    runs = torch.stack([*(row.roll(shift) for shift in range(len(row))), -torch.ones_like(row)])
    return torch.cat([torch.ones(1, BLOCKS, dtype=torch.float64), runs.T])


class _Blocks:
    """Sums over random blocks of equal size of centred samples and of their outer products, combined by the signs.

    Args:
        features: (B, D) float64.
        rows: (B,) order of the samples; up to BLOCKS - 1 at its end are left out.
    """

    def __init__(self, features: Tensor, rows: Tensor) -> None:
        """Sum the blocks."""
        size, block = features.shape[1], len(rows) // BLOCKS
        self.count = block * BLOCKS // 2
        # Centred once by the mean of all, so that sums lose no digits.
        self.mean = features.mean(dim=0)
        sums, products = features.new_empty(BLOCKS, size), features.new_empty(BLOCKS, size, size)
        for number in range(BLOCKS):
            part = features[rows[number * block : (number + 1) * block]] - self.mean
            sums[number] = part.sum(dim=0)
            products[number] = gram(part)
        signs = block_signs()
        for chunk in products.view(BLOCKS, -1).split(CHUNK, dim=1):  # in place: blocks of 2,048 features take 0.4 GB
            chunk.copy_(signs @ chunk)
        self.sums, self.products = signs @ sums, products

    def half(self, split: int, sign: int) -> FeatureMoments:
        """Return the moments of the blocks that have a sign in a split."""
        total = (self.sums[0] + sign * self.sums[split + 1]) / 2
        moment = torch.add(self.products[0], self.products[split + 1], alpha=sign).div_(2)
        moment.addr_(total, total, alpha=-1 / self.count)
        return FeatureMoments(self.count, self.mean + total / self.count, moment)


def _distance(first: FeatureMoments, second: FeatureMoments) -> float:
    """Return the Fréchet distance by one call of LAPACK's dsygv, faster than ``frechet_distance`` with equal digits."""
    covariances = first.covariance, second.covariance
    traces = [covariance.trace() for covariance in covariances]
    try:
        values = eigh(
            covariances[1].numpy(), covariances[0].numpy(), type=2, driver="gv", eigvals_only=True, check_finite=False
        )
    except LinAlgError:  # singular
        return frechet_distance(first, second)
    root, error = roots(torch.from_numpy(values))
    if error > ROUND_OFF * float(sum(traces)):
        return frechet_distance(first, second)
    return distance_of_parts(first.mean, traces[0], second.mean, traces[1], root)


def _of_products(first: Tensor, second: Tensor, seed: int, paired: bool) -> numpy.ndarray:
    """Return the distances of halves with no more samples than features.

    The root's trace is the nuclear norm of the products of centred samples, over count - 1. Subtracting the means of
    rows and columns of the products centres both sets.
    """
    first, second = (part - first.mean(dim=0) for part in (first, second))  # near 0, so that products lose no digits
    products = first @ second.T
    found = []
    for halves in split_rows(len(first), None if paired else len(second), seed, SPLITS):
        found.append([_of_rows(first[one], second[other], products[one][:, other]) for one, other in halves])
    return numpy.array(found)


def _of_rows(first: Tensor, second: Tensor, products: Tensor) -> float:
    centred = products - products.mean(dim=0)
    centred -= centred.mean(dim=1, keepdim=True)
    traces = [part.var(dim=0).sum() for part in (first, second)]
    scale = ((len(first) - 1) * (len(second) - 1)) ** 0.5
    squares = gram(centred if len(first) > len(second) else centred.T)
    # The smallest eigenvalue is zero, since the mean is subtracted.
    root, error = roots(torch.from_numpy(eigvalsh(squares.numpy(), overwrite_a=True, check_finite=False))[1:])
    if error > ROUND_OFF * scale * float(sum(traces)):
        root = torch.linalg.svdvals(centred).sum()
    return distance_of_parts(first.mean(dim=0), traces[0], second.mean(dim=0), traces[1], root / scale)
