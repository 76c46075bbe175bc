"""Representation alignment (REPA, Yu et al. 2410.06940): tokens of a denoiser beside an image encoder's. Pure maths."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

SMALL = 1e-6


def alignment(projected: Tensor, feature: Tensor) -> Tensor:
    """Minus the mean cosine between tokens and features of the same places (eq. 8 of 2410.06940).

    Args:
        projected: (B, N, D), any float type; half precision is widened.
        feature: (B, N, D), of the clean picture.

    Returns:
        (B,) in [-1, 1], at least in float32; -1 where all point the same way.
    """
    projected, feature = (part if part.element_size() >= 4 else part.float() for part in (projected, feature))
    return -F.cosine_similarity(projected, feature.to(projected), dim=-1).mean(1)


def resample_features(feature: Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Features of one grid at the places of another, both over the whole picture.

    Bilinear in between, and where the new grid is coarser a mean over what lies beneath, weighted by a triangle
    (antialiased): one rule for both directions and for grids that do not divide. The same grid changes nothing.

    Args:
        feature: (B, N, D), row after row.
        grid: (h, w), N = h w.
        wanted: (h', w').

    Returns:
        (B, h' w', D).
    """
    if grid == wanted:
        return feature
    # torch 2.15's own antialiased interpolation gives wrong numbers where a side becomes 1; these are small anyway.
    rows, columns = (_triangles(*sizes, feature) for sizes in zip(grid, wanted, strict=True))
    picture = rearrange(feature, "B (h w) D -> B h w D", h=grid[0], w=grid[1])
    return rearrange(torch.einsum("ih, jw, bhwd -> bijd", rows, columns, picture), "B i j D -> B (i j) D")


def _triangles(size: int, wanted: int, like: Tensor) -> Tensor:
    """Weights (wanted, size) of the old places for each new one: triangles, as wide as the coarser grid's cells."""
    scale = size / wanted
    old, new = (torch.arange(count, dtype=torch.float64) + 0.5 for count in (size, wanted))
    weights = (1 - (old - scale * new[:, None]).abs() / max(scale, 1.0)).clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).to(like)


def spread_features(feature: Tensor, share: float) -> Tensor:
    """Spatial normalisation (iREPA, 2512.10794): what all places have in common fades, how they differ stands out.

    (x - share E[x]) / std[x], mean and deviation over the places of one picture, channel by channel.

    Args:
        feature: (B, N, D), N above 1.
        share: Of the mean that is taken away, in [0, 1] (0.6 in the authors' code).
    """
    mean, deviation = feature.mean(1, keepdim=True), feature.std(1, keepdim=True)
    return (feature - share * mean) / (deviation + SMALL)
