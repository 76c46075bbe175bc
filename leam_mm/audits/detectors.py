"""Detectors that audits take by path: of text in images, and of faces."""

from typing import Any, Protocol

import numpy as np
from PIL import Image


class TextDetector(Protocol):
    """Reads text in images (OCR)."""

    def __call__(self, image: Image.Image) -> list[str]:
        """Return the texts in an image, one entry a line.

        Args:
            image: In RGB, upright.
        """


class FaceDetector(Protocol):
    """Finds faces, as data_tools/vetting/face_cascade.py does."""

    def find(self, images: list[np.ndarray]) -> list[list[Any]]:
        """Return one entry for each face, for each image.

        Args:
            images: (H, W, 3) uint8 in RGB; sizes may differ.
        """
