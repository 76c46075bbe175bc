"""Pictures of all aspect ratios in a few shapes of about the same number of pixels, so that batches lose no edges.

Each picture takes the shape that is nearest in the logarithm of its aspect ratio, is resized until it covers that, and
loses what sticks out on one axis. What it was and what it lost are six whole numbers, for the conditioning of SDXL
(2307.01952, section 2.2). The shapes are those of its appendix I where side is 1024 and multiple 64: sides are
multiples, and neither can grow by one more without exceeding the area.
"""

from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from leam_mm.data.image_decoding import open_picture
from leam_mm.errors import UserError

BUCKETS = "buckets.json"  # beside one shard folder for each shape: what they are
Shape = tuple[int, int]  # height, width


class PictureSize(NamedTuple):
    """What a picture was and what was cut off; a record keeps the six numbers as a list, ``picture_size``.

    Args:
        original_height: In pixels, as stored.
        original_width: In pixels, as stored.
        crop_top: Rows that were cut off above, in pixels of the resized picture.
        crop_left: Columns that were cut off on the left, in pixels of the resized picture.
        target_height: Of the result.
        target_width: Of the result.
    """

    original_height: int
    original_width: int
    crop_top: int
    crop_left: int
    target_height: int
    target_width: int


class AspectBuckets:
    """The shapes, and how a picture gets into one.

    Args:
        side: Of the square shape in pixels; all shapes have at most its area.
        multiple: Heights and widths are multiples of it: of the codec's downscale times the denoiser's patch_size.
        max_ratio: Largest ratio of the longer to the shorter side, at least 1. Pictures beyond it are cut to it.
    """

    def __init__(self, side: int, multiple: int = 64, max_ratio: float = 2.0) -> None:
        """See the class for the arguments."""
        if multiple < 1 or side < multiple or side % multiple:
            raise UserError(f"buckets of side {side} in multiples of {multiple}: give a side that is a multiple of it")
        if not max_ratio >= 1:
            raise UserError(f"buckets with max_ratio {max_ratio}: give a number from 1 on, longer over shorter side")
        self.side, self.multiple, self.max_ratio = side, multiple, max_ratio
        area = (side // multiple) ** 2
        # The longest of each width; of those that are equally long only the widest.
        longest = {area // short: short for short in range(1, side // multiple + 1)}
        pairs = [(short, long) for long, short in longest.items() if long <= max_ratio * short]
        both = {*pairs, *((long, short) for short, long in pairs)}
        self.shapes: list[Shape] = sorted((height * multiple, width * multiple) for height, width in both)

    def assign(self, width: int, height: int) -> Shape:
        """Height and width of the bucket of a picture: exact arithmetic, the same on every machine.

        Where two are equally near, the one with more pixels is taken, then the taller one.
        """
        if min(width, height) < 1:
            raise UserError(f"a picture of {width} x {height} pixels has no aspect ratio: leave it out")

        def distance(shape: Shape) -> tuple[Fraction, int, int]:
            products = sorted((width * shape[0], height * shape[1]))
            return (
                Fraction(products[1], products[0]),
                -shape[0] * shape[1],
                -shape[0],
            )  # exp of the logarithms' distance

        return min(self.shapes, key=distance)

    def cut(self, content: bytes, place: tuple[float, float] = (0.5, 0.5)) -> tuple[Tensor, PictureSize]:
        """Decode a picture, resize it until it covers its bucket, and cut off the rest.

        Args:
            content: Of a JPEG, PNG or WebP file.
            place: Share of what is cut off that lies above and left, each in [0, 1]; 0.5 cuts at the centre.

        Returns:
            image (3, H, W) uint8, and what it was.
        """
        try:
            file = open_picture(content)
            original = file.width, file.height
            height, width = self.assign(*original)
            scale = max(height / file.height, width / file.width)
            file.draft("RGB", (round(2 * scale * file.width), round(2 * scale * file.height)))  # JPEG: reduced
            picture = resize_cover(file.convert("RGB"), (height, width), place)
        except UserError:
            raise
        except Exception as error:  # Pillow raises many kinds on damaged and on hostile files
            raise UserError(f"unreadable image ({error}); run data_tools/check_shards.py on the folder") from None
        rows, columns = scale * original[1] - height, scale * original[0] - width  # one of them is 0
        size = PictureSize(original[1], original[0], round(place[0] * rows), round(place[1] * columns), height, width)
        return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))), size


def resize_cover(image: Image.Image, shape: Shape, place: tuple[float, float]) -> np.ndarray:
    """Resize a picture until it covers a shape and cut off the rest: (H, W, 3) uint8, bicubic without aliasing."""
    height, width = shape
    if image.size == (width, height):
        return np.asarray(image)
    scale = max(height / image.height, width / image.width)
    seen = min(width / scale, image.width), min(height / scale, image.height)
    left, top = place[1] * (image.width - seen[0]), place[0] * (image.height - seen[1])
    box = left, top, min(left + seen[0], image.width), min(top + seen[1], image.height)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0))


def folder_name(shape: Shape) -> str:
    """Name of the shard folder of a shape: ``512x768`` is 512 high."""
    return f"{shape[0]}x{shape[1]}"
