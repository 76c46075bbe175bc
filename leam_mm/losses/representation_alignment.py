"""Representation alignment (REPA, Yu et al. 2410.06940): similarity of a denoiser's tokens and an image encoder's."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

SMALL = 1e-6


def alignment(projected: Tensor, feature: Tensor) -> Tensor:
    """Return minus the mean cosine similarity of tokens and features at the same positions (eq. 8 of 2410.06940).

    Args:
        projected: (B, N, D), any float type; half precision is converted to float32.
        feature: (B, N, D), features of the clean image.

    Returns:
        (B,) in [-1, 1], at least float32; -1 if all directions agree.
    """
    projected, feature = (part if part.element_size() >= 4 else part.float() for part in (projected, feature))
    return -F.cosine_similarity(projected, feature.to(projected), dim=-1).mean(1)


def resample_features(feature: Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Resample features from one grid to another over the same image: bilinear, antialiased if the new grid is coarser.

    The same grid returns the features unchanged.

    Args:
        feature: (B, N, D), in row-major order.
        grid: (h, w), N = h w.
        wanted: (h', w').

    Returns:
        (B, h' w', D).
    """
    if grid == wanted:
        return feature
    # torch 2.15's own antialiased interpolation gives wrong values if a side becomes 1.
    rows, columns = (_triangles(*sizes, feature) for sizes in zip(grid, wanted, strict=True))
    cells = rearrange(feature, "B (h w) D -> B h w D", h=grid[0], w=grid[1])
    return rearrange(torch.einsum("ih, jw, bhwd -> bijd", rows, columns, cells), "B i j D -> B (i j) D")


def _triangles(size: int, wanted: int, like: Tensor) -> Tensor:
    """Return weights (wanted, size) of the old positions for each new one: triangles as wide as the coarser cells."""
    scale = size / wanted
    old, new = (torch.arange(count, dtype=torch.float64) + 0.5 for count in (size, wanted))
    weights = (1 - (old - scale * new[:, None]).abs() / max(scale, 1.0)).clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).to(like)


def spread_features(feature: Tensor, share: float) -> Tensor:
    """Normalise features over the positions of each image (spatial normalisation of iREPA, 2512.10794).

    (x - share E[x]) / std[x], with mean and deviation over the positions, per channel.

    Args:
        feature: (B, N, D), N above 1.
        share: Share of the mean that is subtracted, in [0, 1] (0.6 in the authors' code).
    """
    mean, deviation = feature.mean(1, keepdim=True), feature.std(1, keepdim=True)
    return (feature - share * mean) / (deviation + SMALL)
