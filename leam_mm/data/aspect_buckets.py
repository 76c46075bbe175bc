"""Aspect-ratio buckets: images of all ratios in a few shapes of about the same area, so that little is cropped.

Each image is assigned to the shape nearest in the logarithm of its aspect ratio, resized until it covers that shape,
and cropped along one axis. Original size, crop and target size are six integers for the conditioning of SDXL
(2307.01952, section 2.2). With side 1024 and multiple 64 the shapes are those of its appendix I: sides are multiples,
and neither can grow by one multiple without exceeding the area.
"""

from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from leam_mm.data.image_file import open_image
from leam_mm.errors import UserError

BUCKETS = "buckets.json"  # lists the shard folders of the shapes beside it
Shape = tuple[int, int]  # height, width


class ImageSize(NamedTuple):
    """Original size, crop and target size of an image; a record stores them as the list ``picture_size``.

    Args:
        original_height: In pixels, as stored.
        original_width: In pixels, as stored.
        crop_top: Rows cropped at the top, in pixels of the resized image.
        crop_left: Columns cropped on the left, in pixels of the resized image.
        target_height: Height of the result.
        target_width: Width of the result.
    """

    original_height: int
    original_width: int
    crop_top: int
    crop_left: int
    target_height: int
    target_width: int


class AspectBuckets:
    """A set of shapes, and the resizing of an image to one of them.

    Args:
        side: Side of the square shape in pixels; no shape has a larger area.
        multiple: Divisor of all heights and widths: the codec's downscale times the denoiser's patch_size.
        max_ratio: Largest ratio of the longer to the shorter side, at least 1. Images beyond it are cropped to it.
    """

    def __init__(self, side: int, multiple: int = 64, max_ratio: float = 2.0) -> None:
        """See the class for the arguments."""
        if multiple < 1 or side < multiple or side % multiple:
            raise UserError(f"buckets of side {side} in multiples of {multiple}: give a side that is a multiple of it")
        if not max_ratio >= 1:
            raise UserError(f"buckets with max_ratio {max_ratio}: give at least 1, the longer over the shorter side")
        self.side, self.multiple, self.max_ratio = side, multiple, max_ratio
        area = (side // multiple) ** 2
        # The longest shape of each width; among equally long ones only the widest.
        longest = {area // short: short for short in range(1, side // multiple + 1)}
        pairs = [(short, long) for long, short in longest.items() if long <= max_ratio * short]
        both = {*pairs, *((long, short) for short, long in pairs)}
        self.shapes: list[Shape] = sorted((height * multiple, width * multiple) for height, width in both)

    def assign(self, width: int, height: int) -> Shape:
        """Return height and width of the bucket of an image, in exact arithmetic.

        Of two equally near shapes the one with more pixels is taken, then the taller one.
        """
        if min(width, height) < 1:
            raise UserError(f"an image of {width} x {height} pixels has no aspect ratio: remove it")

        def distance(shape: Shape) -> tuple[Fraction, int, int]:
            products = sorted((width * shape[0], height * shape[1]))
            ratio = Fraction(products[1], products[0])  # exp of the distance of the logarithms
            return ratio, -shape[0] * shape[1], -shape[0]

        return min(self.shapes, key=distance)

    def cut(self, content: bytes, offset: tuple[float, float] = (0.5, 0.5)) -> tuple[Tensor, ImageSize]:
        """Decode an image, resize it until it covers its bucket, and crop it.

        Args:
            content: Bytes of a JPEG, PNG or WebP file.
            offset: Share of the cropped rows that lie at the top, and of the columns on the left, each in [0, 1];
                0.5 keeps the centre.

        Returns:
            image (3, H, W) uint8, and its sizes.
        """
        try:
            file = open_image(content)
            original = file.width, file.height
            height, width = self.assign(*original)
            scale = max(height / file.height, width / file.width)
            file.draft("RGB", (round(2 * scale * file.width), round(2 * scale * file.height)))  # reduces JPEG
            pixels = resize_cover(file.convert("RGB"), (height, width), offset)
        except UserError:
            raise
        except Exception as error:  # Pillow raises many kinds on damaged and on hostile files
            raise UserError(f"unreadable image ({error}); run data_tools/check_shards.py on the folder") from None
        rows, columns = scale * original[1] - height, scale * original[0] - width  # one of them is 0
        size = ImageSize(original[1], original[0], round(offset[0] * rows), round(offset[1] * columns), height, width)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), size


def resize_cover(image: Image.Image, shape: Shape, offset: tuple[float, float]) -> np.ndarray:
    """Resize an image until it covers a shape and crop it: (H, W, 3) uint8, bicubic with antialiasing."""
    height, width = shape
    if image.size == (width, height):
        return np.asarray(image)
    scale = max(height / image.height, width / image.width)
    kept = min(width / scale, image.width), min(height / scale, image.height)
    left, top = offset[1] * (image.width - kept[0]), offset[0] * (image.height - kept[1])
    box = left, top, min(left + kept[0], image.width), min(top + kept[1], image.height)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0))


def folder_name(shape: Shape) -> str:
    """Return the name of the shard folder of a shape; ``512x768`` is 512 high."""
    return f"{shape[0]}x{shape[1]}"
