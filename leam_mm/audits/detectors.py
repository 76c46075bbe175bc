"""Detectors that audits take by path: of text in images, and of faces.

Annotations are Any and parameters have no names: jsonargparse accepts a class by path only if those of its methods are
equal to those here.
"""

from typing import Any, Protocol


class TextDetector(Protocol):
    """Reads text in images (OCR)."""

    def __call__(self, image: Any, /) -> Any:
        """Return the texts in an image, a list with one entry a line.

        Args:
            image: A PIL image in RGB, upright.
        """


class FaceDetector(Protocol):
    """Finds faces, as data_tools/vetting/face_cascade.py does."""

    def find(self, images: Any, /) -> Any:
        """Return for each image a list with one entry for each face.

        Args:
            images: List of (H, W, 3) uint8 in RGB; sizes may differ.
        """
