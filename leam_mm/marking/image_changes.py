"""Random changes of images that a mark has to survive, for training: gradients pass through all of them.

Encoding as JPEG or WebP and rounding to bytes are done for real in the forward pass; the backward pass treats them as
the identity (the straight-through estimator of 1308.3432).
"""

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from leam_mm.data.image_file import open_image
from leam_mm.errors import UserError

LEAST_SIDE = 16  # pixels; no change makes an image smaller


@dataclass(frozen=True)
class ImageChanges:
    """A random chain: a change of the geometry, one of the colours, an encoding, and rounding to bytes.

    Args:
        unchanged: Share of draws that only round to bytes, in [0, 1].
        crop: Smallest side of a crop, as a share of the side.
        scale: Smallest and largest factor of a resize.
        angle: Largest rotation in degrees.
        flip: Share of draws that are mirrored, in [0, 1].
        brightness: Largest relative change of brightness, contrast and gamma, in [0, 1).
        noise: Largest standard deviation of Gaussian noise, in levels of 255.
        quality: Smallest and largest quality of JPEG and WebP.
    """

    unchanged: float = 0.15
    crop: float = 0.55
    scale: tuple[float, float] = (0.45, 1.4)
    angle: float = 4.0
    flip: float = 0.3
    brightness: float = 0.3
    noise: float = 6.0
    quality: tuple[int, int] = (45, 95)

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (0 < self.crop <= 1 and 0 < self.scale[0] <= self.scale[1] and 1 <= self.quality[0] <= self.quality[1]):
            raise UserError(
                f"crop {self.crop}, scale {self.scale}, quality {self.quality} of ImageChanges: give a crop in (0, 1] "
                "and ranges above 0 with the smaller number first"
            )

    def __call__(self, image: Tensor, generator: np.random.Generator) -> Tensor:
        """Apply one random chain to all images of a batch.

        Args:
            image: (B, 3, H, W), about [-1, 1].
            generator: Source of all random numbers.

        Returns:
            (B, 3, h, w) in [-1, 1], on the 256 levels of a byte.
        """
        image = image.clamp(-1, 1)
        if generator.random() >= self.unchanged:
            image = self._geometry(image, generator)
            image = self._colours(image, generator).clamp(-1, 1)
            image = self._encoding(image, generator)
        return rounded(image)

    def _geometry(self, image: Tensor, generator: np.random.Generator) -> Tensor:
        if generator.random() < self.flip:
            image = image.flip(-1)
        kind, (height, width) = generator.integers(5), image.shape[-2:]
        if kind == 1:
            return _crop(image, generator.uniform(self.crop, 1), generator)
        if kind == 2:
            return resized(_crop(image, generator.uniform(self.crop, 1), generator), height, width)
        if kind == 3:
            factor = math.exp(generator.uniform(*np.log(self.scale)))
            small = resized(image, max(LEAST_SIDE, round(height * factor)), max(LEAST_SIDE, round(width * factor)))
            return small if generator.random() < 0.5 else resized(small, height, width)
        if kind == 4:
            return rotated(image, generator.uniform(-self.angle, self.angle))
        return image

    def _colours(self, image: Tensor, generator: np.random.Generator) -> Tensor:
        kind, change = generator.integers(5), 1 + self.brightness * generator.uniform(-1, 1)
        if kind == 1:
            return (image + 1) * change - 1
        if kind == 2:
            return ((image + 1) / 2).clamp(min=1e-3) ** change * 2 - 1
        if kind == 3:
            return blurred(image, generator.uniform(0.3, 1.0))
        if kind == 4:
            noise = generator.standard_normal(tuple(image.shape), dtype=np.float32)
            return image + torch.from_numpy(noise).to(image) * (generator.uniform(0, self.noise) / 127.5)
        return image

    def _encoding(self, image: Tensor, generator: np.random.Generator) -> Tensor:
        kind, quality = generator.random(), int(generator.integers(self.quality[0], self.quality[1] + 1))
        if kind < 0.3:
            return image
        return encoded(image, "JPEG" if kind < 0.85 else "WEBP", quality)


def _crop(image: Tensor, share: float, generator: np.random.Generator) -> Tensor:
    height, width = (max(min(side, LEAST_SIDE), round(side * share)) for side in image.shape[-2:])
    top = int(generator.integers(image.shape[-2] - height + 1))
    left = int(generator.integers(image.shape[-1] - width + 1))
    return image[..., top : top + height, left : left + width]


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """Resize images (B, 3, H, W) to (B, 3, height, width), bilinear with antialiasing."""
    return functional.interpolate(image, (height, width), mode="bilinear", antialias=True)


def rotated(image: Tensor, degrees: float) -> Tensor:
    """Rotate images (B, 3, H, W) about their centre; pixels from outside repeat the edge."""
    angle, (height, width) = math.radians(degrees), image.shape[-2:]
    sine, cosine = math.sin(angle), math.cos(angle)
    matrix = image.new_tensor([[cosine, -sine * height / width, 0], [sine * width / height, cosine, 0]])
    grid = functional.affine_grid(matrix.expand(len(image), 2, 3), list(image.shape), align_corners=False)
    return functional.grid_sample(image, grid, padding_mode="border", align_corners=False)


def blurred(image: Tensor, deviation: float) -> Tensor:
    """Blur images (B, 3, H, W) with a Gaussian of a standard deviation in pixels, cut at 5 x 5 pixels."""
    place = torch.arange(-2, 3, device=image.device, dtype=image.dtype)
    line = (-place.square() / (2 * deviation**2)).exp()
    kernel = torch.outer(line, line) / line.sum() ** 2
    padded = functional.pad(image, (2, 2, 2, 2), mode="replicate")
    return functional.conv2d(padded, kernel.expand(3, 1, 5, 5), groups=3)


def rounded(image: Tensor) -> Tensor:
    """Round images in [-1, 1] to the 256 levels of a byte; gradients pass unchanged."""
    levels = ((image.detach() + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1
    return image + (levels - image).detach()


def encoded(image: Tensor, kind: str, quality: int) -> Tensor:
    """Encode images as lossy files and decode them; gradients pass unchanged.

    Args:
        image: (B, 3, H, W) in [-1, 1].
        kind: Pillow's name of the format, ``JPEG`` or ``WEBP``.
        quality: Of the encoder, 1 to 100.

    Returns:
        (B, 3, H, W) in [-1, 1].
    """
    pixels = ((image.detach() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    found = torch.from_numpy(np.stack([reencoded(one, kind, quality) for one in pixels])).permute(0, 3, 1, 2)
    return image + (found.to(image) / 127.5 - 1 - image).detach()


def reencoded(pixels: np.ndarray, kind: str, quality: int) -> np.ndarray:
    """Return the pixels (H, W, 3) uint8 of an image after a lossy file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=quality)
    return np.asarray(open_image(buffer.getvalue()).convert("RGB"))
