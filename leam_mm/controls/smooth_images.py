"""Smooth random images and shards of them, for controls of memorization and membership inference."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from leam_mm.data.shard_index import ShardWriter

SIDE = 32


def smooth_images(count: int, seed: int, side: int = SIDE) -> Tensor:
    """Return random images (B, 3, side, side) uint8 without fine detail."""
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return (interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1) * 255).round().to(torch.uint8)


def png(image: Tensor) -> bytes:
    """Return an image (3, H, W) uint8 as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write_image_shards(folder: Path, images: Tensor, texts: Sequence[str]) -> Path:
    """Write a shard folder of images (B, 3, H, W) uint8, each with one English caption."""
    with ShardWriter(folder, 1000, card=False) as writer:
        for number, (image, text) in enumerate(zip(images, texts, strict=True)):
            record = {"captions": [{"text": text, "language": "en", "source": "generated"}]}
            writer.write(f"{number:06d}", {"png": png(image), "json": json.dumps(record).encode()})
    return folder
