"""The interface of imperceptible marks in the pixels of generated images."""

from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Watermark(Protocol):
    """A mark in pixels that says "generated", and its detector.

    A detector alone may leave ``embed`` as the identity, such as that of a mark which the codec's decoder draws.
    """

    name: str  # for people, such as "spread spectrum"

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """Return the marked image.

        Args:
            pixels: (H, W, 3) uint8, RGB; not changed.

        Returns:
            (H, W, 3) uint8.
        """
        ...

    def score(self, pixels: np.ndarray) -> float:
        """Return how clearly an image carries the mark; larger is clearer.

        Args:
            pixels: (H, W, 3) uint8, RGB.
        """
        ...

    def false_positive_rate(self, score: float) -> float:
        """Return the probability, in [0, 1], that an image without the mark scores at least this."""
        ...


def check_pixels(pixels: np.ndarray) -> None:
    """Refuse anything but an RGB image.

    Raises:
        ValueError: The array is not (H, W, 3) uint8, or has an empty side.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise ValueError(f"a watermark takes (H, W, 3) uint8 with no empty side, not {pixels.shape} {pixels.dtype}")
