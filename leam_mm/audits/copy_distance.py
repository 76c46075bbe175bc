"""Distances in which a copy of an image is near it although it was re-encoded, and other images are far."""

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from leam_mm.evaluators.image_features import ImageFeatures


class CopyDistance:
    """Base class: the distance of two images is the largest Euclidean distance of their parts.

    Attributes:
        name: Name in results.
    """

    name: str = ""

    def parts(self, images: Tensor) -> Tensor:
        """Return the parts of images.

        Args:
            images: (B, 3, H, W) uint8.

        Returns:
            (T, B, D) float32.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define parts")

    def between(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the distances (N, M) of two sets of parts (T, N, D) and (T, M, D)."""
        found = torch.cdist(one[0], other[0])
        for row, column in zip(one[1:], other[1:], strict=True):
            found = torch.maximum(found, torch.cdist(row, column))
        return found


class LowFrequencies(CopyDistance):
    """Root mean squared difference of the low spatial frequencies, which noise and compression change little.

    Images are reduced to 32 x 32; of the cosine transform of each channel, the lowest frequencies are kept.

    Args:
        kept: Number of frequencies in each direction, at most 32.
    """

    SIDE = 32

    def __init__(self, kept: int = 8) -> None:
        """See the class for the arguments."""
        self.kept, self.name = kept, f"low_frequencies_{kept}"

    def parts(self, images: Tensor) -> Tensor:
        """Return (1, B, 3 * kept^2), scaled so that distances are in units of the pixel range."""
        x = reduced(images, self.SIDE)
        basis = _cosines(self.SIDE, self.kept)
        coefficients = torch.einsum("ah,bchw,dw->bcad", basis, x, basis)
        return coefficients.flatten(1)[None] / math.sqrt(x[0].numel())


class Tiles(CopyDistance):
    """Largest root mean squared difference of 16 tiles (Carlini et al. 2023, 2301.13188, section 4.2).

    A large uniform background, which makes two different images near, cannot hide a different foreground.
    """

    name = "tiles"
    ACROSS = 4
    SIDE = 64  # larger images are reduced

    def parts(self, images: Tensor) -> Tensor:
        """Return (16, B, D), scaled so that distances are in units of the pixel range."""
        side = min(self.SIDE, images.shape[-1] // self.ACROSS * self.ACROSS)
        x = reduced(images, side)
        step = side // self.ACROSS
        tiles = x.unfold(2, step, step).unfold(3, step, step)  # (B, 3, 4, 4, step, step)
        tiles = tiles.permute(2, 3, 0, 1, 4, 5).reshape(self.ACROSS**2, len(x), -1)
        return tiles / math.sqrt(tiles.shape[-1])


class FeatureAngle(CopyDistance):
    """Distance of the features of a network, scaled to length 1; its square is 2 - 2 cos.

    Args:
        features: The network, for example one trained to find copies.
    """

    def __init__(self, features: ImageFeatures) -> None:
        """See the class for the arguments."""
        self.features, self.name = features, type(features).__name__

    def parts(self, images: Tensor) -> Tensor:
        """Return (1, B, D)."""
        return normalize(self.features.extract(images).float(), dim=1)[None]


def reduced(images: Tensor, side: int) -> Tensor:
    """Return images (B, 3, H, W) uint8 as (B, 3, side, side) float in [0, 1]."""
    x = images.float() / 255
    if x.shape[-2:] == (side, side):
        return x
    return interpolate(x, (side, side), mode="bilinear", antialias=True, align_corners=False)


@cache
def _cosines(side: int, kept: int) -> Tensor:
    """Return the first rows (kept, side) of the orthonormal cosine transform."""
    row, column = torch.arange(kept)[:, None], torch.arange(side) + 0.5
    basis = torch.cos(math.pi * row * column / side) * math.sqrt(2 / side)
    basis[0] /= math.sqrt(2)
    return basis
