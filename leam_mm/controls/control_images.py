"""Small images that carry a number in their first pixel, as files and as shards, for controls."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor

from leam_mm.data.shard_index import ShardWriter

SIDE = 8


def numbered_png(number: int) -> bytes:
    """Return a PNG of 8 x 8 pixels of one colour, which is its number.

    Args:
        number: Below 65,536.
    """
    buffer = io.BytesIO()
    pixels = numpy.full((SIDE, SIDE, 3), (number % 256, number // 256, 0), numpy.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def numbered_image(number: int) -> Tensor:
    """Return the pixels (3, H, W) in [0, 1] of ``numbered_png``, as a generator gives them.

    Args:
        number: Below 65,536.
    """
    return torch.tensor([number % 256, number // 256, 0])[:, None, None].expand(3, SIDE, SIDE) / 255


def image_numbers(image: Tensor) -> Tensor:
    """Return the number (B,) that each image (B, 3, H, W) uint8 carries."""
    return image[:, 0, 0, 0].long() + 256 * image[:, 1, 0, 0].long()


def write_numbered_shards(
    folder: Path, count: int, languages: Sequence[str], caption: Callable[[str, int], str]
) -> Path:
    """Write shards of numbered images with one caption in each language.

    Args:
        folder: Shard folder.
        count: Number of images.
        languages: Codes.
        caption: Function of code and number.
    """
    with ShardWriter(folder, count) as writer:
        for number in range(count):
            captions = [
                {"text": caption(code, number), "language": code, "source": "generated", "machine_translated": False}
                for code in languages
            ]
            record = json.dumps({"captions": captions}, ensure_ascii=False).encode()
            writer.write(f"{number:06d}", {"png": numbered_png(number), "json": record})
    return folder
