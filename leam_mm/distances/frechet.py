"""Fréchet distance of two sets of features (FID with Inception's), exact and fast, in float64.

|m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^1/2 (Heusel et al. 1706.08500, eq. 6). No matrix root is computed:

- Both covariances are regular: with S1 = L L' (Cholesky), the last trace is the sum of the roots of the eigenvalues of
  L' S2 L, which is symmetric.
- One is singular, as with fewer samples than features: it is the nuclear norm of F1' F2 with S = F F', where F is the
  Cholesky factor, the centred samples, or the eigenvectors times the roots of the eigenvalues. The root of an
  eigenvalue that is only round-off would be wrong by half its digits; singular values are not.
"""

import logging
from functools import cache

import torch
from torch import Tensor

from leam_mm.distances.feature_statistics import BLOCK, FeatureMoments

log = logging.getLogger(__name__)

ROUND_OFF = 1e-10  # largest error of the Cholesky form, as a share of both traces, before the exact form replaces it


def frechet_distance(first: FeatureMoments, second: FeatureMoments) -> float:
    """Return the squared Fréchet distance of the Gaussians with these moments; biased upwards by about 1 / count.

    Args:
        first: Moments of one set of at least two samples.
        second: Moments of the other set.
    """
    covariances = first.covariance, second.covariance
    factors = [_cholesky(covariance) for covariance in covariances]
    traces = [covariance.trace() for covariance in covariances]
    root, error = None, 0.0
    if factors[0] is not None and factors[1] is not None:
        root, error = _root_trace(factors[0], covariances[1])
    if root is None or error > ROUND_OFF * float(traces[0] + traces[1]):
        _log_singular(len(first.mean))
        parts = [
            _spectral_factor(covariance) if factor is None else factor
            for covariance, factor in zip(covariances, factors, strict=True)
        ]
        root = torch.linalg.svdvals(parts[0].T @ parts[1]).sum()
    return distance_of_parts(first.mean, traces[0], second.mean, traces[1], root)


def frechet_distance_of_features(first: Tensor, second: Tensor) -> float:
    """Return the squared Fréchet distance of two feature sets (B, D); exact also for fewer samples than features."""
    first, second = first.double(), second.double()
    if min(len(first), len(second)) > first.shape[1]:
        return frechet_distance(FeatureMoments.of(first), FeatureMoments.of(second))
    factors = [_sample_factor(features) for features in (first, second)]
    root = torch.linalg.svdvals(factors[0].T @ factors[1]).sum()
    traces = [factor.square().sum() for factor in factors]
    return distance_of_parts(first.mean(dim=0), traces[0], second.mean(dim=0), traces[1], root)


def distance_of_parts(mean1: Tensor, trace1: Tensor, mean2: Tensor, trace2: Tensor, root: Tensor) -> float:
    """Return the distance from means (D,), traces of covariances, and the trace of the root of their product."""
    return max(0.0, float((mean1 - mean2).square().sum() + trace1 + trace2 - 2 * root))


@cache
def _log_singular(size: int) -> None:
    """Log once for each number of features."""
    log.info(
        "Fréchet distance: a covariance of %d features is nearly singular, singular values replace the eigenvalues "
        "of a product",
        size,
    )


def _cholesky(covariance: Tensor) -> Tensor | None:
    """Return the lower factor L (D, D) with L L' = covariance, or None where it is singular."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    return None if failed else factor


def _spectral_factor(covariance: Tensor) -> Tensor:
    """Return F (D, D) with F F' = covariance, from eigenvectors; eigenvalues that are only round-off count as zero."""
    value, vector = torch.linalg.eigh(covariance)
    value = torch.where(value > value[-1] * len(value) * torch.finfo(value.dtype).eps, value, 0.0)
    return vector * value.sqrt()


def _sample_factor(features: Tensor) -> Tensor:
    """Return F (D, R) with F F' = covariance of (B, D) features, R = min(B, D)."""
    count, size = features.shape
    if count < 2:
        raise ValueError(f"a covariance needs two samples, there is {count}")
    if count > size:
        covariance = FeatureMoments.of(features).covariance
        factor = _cholesky(covariance)
        return _spectral_factor(covariance) if factor is None else factor
    return (features - features.mean(dim=0)).T / (count - 1) ** 0.5


def _root_trace(factor: Tensor, covariance: Tensor) -> tuple[Tensor, float]:
    """Return the sum of the roots of the eigenvalues of L' S L, and a bound of its error.

    Only the lower half of the product is computed. Eigenvalues have an error of round-off times the largest one, which
    the root enlarges for small ones.

    Args:
        factor: L (D, D), lower triangle.
        covariance: S (D, D).
    """
    size = len(factor)
    starts = range(0, size, BLOCK)
    product = torch.empty_like(covariance)
    for start in starts:  # S L: columns of L are zero above the diagonal
        end = start + BLOCK
        product[:, start:end] = covariance[:, start:] @ factor[start:, start:end]
    whole = torch.zeros_like(covariance)
    for start in starts:
        end = start + BLOCK
        whole[start:end, :end] = factor[start:, start:end].T @ product[start:, :end]
    return roots(torch.linalg.eigvalsh(whole))


def roots(value: Tensor) -> tuple[Tensor, float]:
    """Return the sum of the roots of eigenvalues (D,) in rising order, and a bound of its error by round-off."""
    noise = torch.finfo(value.dtype).eps * value[-1]
    root = value.clamp(min=0).sqrt()
    return root.sum(), float((noise / (2 * root).clamp(min=noise.sqrt())).sum())
