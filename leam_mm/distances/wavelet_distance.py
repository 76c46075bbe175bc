"""Fréchet Wavelet Distance: images are compared by their wavelet packets, without any network.

Veeramacheneni et al. 2312.15289: mean over all packets of the Fréchet distance of their coefficients, all channels and
positions of a packet being the features. Published numbers use the Haar wavelet, level 4, images of 256 pixels and
values in [0, 1]. A network that was trained on ImageNet favours images like its own; packets do not.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from leam_mm.distances.feature_statistics import FeatureMoments
from leam_mm.distances.frechet import frechet_distance, frechet_distance_of_features
from leam_mm.errors import UserError

LEVEL = 4


def haar_packets(images: Tensor, level: int = LEVEL) -> Tensor:
    """Return the coefficients of all packets of the orthonormal Haar transform.

    Args:
        images: (B, C, H, W) floats; 2^level divides H and W.
        level: Number of times that every packet is split into four.

    Returns:
        (B, 4^level, C h w), h = H / 2^level; packet 0 holds the averages.
    """
    height, width = images.shape[-2:]
    if height % 2**level or width % 2**level:
        raise ValueError(f"wavelet packets of level {level} need sides divisible by {2**level}, not {height} x {width}")
    packets = images[:, None]  # (B, P, C, h, w)
    for _ in range(level):
        low, high = (packets[..., ::2, :] + sign * packets[..., 1::2, :] for sign in (1, -1))
        parts = [(rows[..., ::2] + sign * rows[..., 1::2]) / 2 for rows in (low, high) for sign in (1, -1)]
        packets = torch.stack(parts, dim=2).flatten(1, 2)
    return packets.flatten(2)


@dataclass(frozen=True)
class WaveletPackets:
    """Turns images into the coefficients of their packets.

    Args:
        size: Side in pixels to which images are resized (bilinear, antialiased): a multiple of 2^level;
            256 as published.
        level: Level of the packets.
    """

    size: int = 64
    level: int = LEVEL

    def __post_init__(self) -> None:
        """Refuse a size that cannot be split."""
        if self.size < 2**self.level or self.size % 2**self.level:
            raise UserError(f"wavelet size {self.size}: give a multiple of {2**self.level}; 256 is the published one")

    @property
    def protocol(self) -> str:
        """Everything that must be equal for two numbers to be comparable."""
        published = ", as published" if (self.size, self.level) == (256, LEVEL) else ""
        return f"Haar packets of level {self.level}, bilinear antialiased {self.size}, values in [0, 1]{published}"

    @property
    def features(self) -> int:
        """Coefficients of a packet of an RGB image."""
        return 3 * (self.size >> self.level) ** 2

    def extract(self, images: Iterable[Tensor]) -> Tensor:
        """Return (B, packets, features) float64 of B images (3, H, W) uint8, each of its own size."""
        resized = [self._resize(image) for image in images]
        return haar_packets(torch.stack(resized), self.level)

    def _resize(self, image: Tensor) -> Tensor:
        pixels = image.double() / 255
        if image.shape[-2:] == (self.size, self.size):
            return pixels
        side = (self.size, self.size)
        return functional.interpolate(pixels[None], side, mode="bilinear", antialias=True, align_corners=False)[0]


def wavelet_distance(first: Tensor, second: Tensor) -> float:
    """Return the mean Fréchet distance over packets of two sets of coefficients (B, P, D)."""
    packets = range(first.shape[1])
    return sum(frechet_distance_of_features(first[:, p], second[:, p]) for p in packets) / len(packets)


def wavelet_distance_of_moments(first: list[FeatureMoments], second: list[FeatureMoments]) -> float:
    """Return the same of the moments of each packet, whose memory does not grow with the number of images."""
    distances = [frechet_distance(one, other) for one, other in zip(first, second, strict=True)]
    return sum(distances) / len(distances)
