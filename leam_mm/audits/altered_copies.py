"""Altered copies of images: the positive controls of a search for copies."""

from collections.abc import Callable
from typing import Any

import simplejpeg
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from leam_mm.evaluators.sample_losses import decode_latents, encode_images

NOISE = 8.0  # standard deviation, of 255 levels
QUALITY = 75  # of JPEG
# Copies as a generator would make them: through its codec, or nearly exact. The others are for information.
DECIDING = ("codec", "noise")


def altered_copies(images: Tensor, module: Any, seed: int) -> dict[str, Tensor]:
    """Return copies of images by the name of what was done to them.

    Args:
        images: (B, 3, H, W) uint8.
        module: A LatentDiffusionModule, whose codec encodes and decodes; without a codec these copies are left out.
        seed: Seed of the noise.

    Returns:
        noise (standard deviation 8 of 255), jpeg (quality 75), shift (by one pixel), crop (of one pixel in 32 at each
        side, resized back) and codec; (B, 3, H, W) uint8 each.
    """
    noise = NOISE * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    made: dict[str, Callable[[], Tensor]] = {
        "noise": lambda: _whole(images + noise),
        "jpeg": lambda: torch.stack([_compressed(image) for image in images]),
        "shift": lambda: pad(images[..., :-1].float(), (1, 0, 0, 0), mode="replicate").to(torch.uint8),
        "crop": lambda: _cropped(images),
    }
    found = {name: make() for name, make in made.items()}
    if getattr(module, "codec", None) is not None:
        found["codec"] = decode_latents(module, encode_images(module, images))
    return found


def _whole(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


def _compressed(image: Tensor) -> Tensor:
    content = simplejpeg.encode_jpeg(image.permute(1, 2, 0).contiguous().numpy(), quality=QUALITY)
    return torch.from_numpy(simplejpeg.decode_jpeg(content)).permute(2, 0, 1)


def _cropped(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    top, left = max(1, height // 32), max(1, width // 32)
    inner = images[..., top : height - top, left : width - left].float()
    return _whole(interpolate(inner, (height, width), mode="bicubic", antialias=True, align_corners=False))
