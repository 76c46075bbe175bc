"""Image bytes to uint8 tensors: decoded at the size that is needed, cropped by the sample's own randomness."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from leam_mm.errors import UserError

MAX_PIXELS = 89_478_485
EXTENSIONS = ("jpg", "jpeg", "png", "webp")


class ImageDecoding:
    """Decode and crop; without arguments it is the deterministic transform of evaluation.

    Args:
        image_size: H = W of the result, in pixels.
        crop_scale: Area share of a random crop, (low, high) in (0, 1]; (1, 1) takes the centre square whole.
        shift: Largest random translation, as a share of the size; uncovered pixels repeat the edge.
        colour_jitter: Largest relative change of brightness, contrast and saturation, in [0, 1).
        greyscale: Chance that a sample loses its colours, in [0, 1].
    """

    def __init__(
        self,
        image_size: int,
        crop_scale: tuple[float, float] = (1.0, 1.0),
        shift: float = 0.0,
        colour_jitter: float = 0.0,
        greyscale: float = 0.0,
    ) -> None:
        """See the class for the arguments."""
        if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise UserError(f"crop_scale {crop_scale} must satisfy 0 < low <= high <= 1")
        self.image_size, self.crop_scale, self.shift = image_size, crop_scale, shift
        self.colour_jitter, self.greyscale = colour_jitter, greyscale

    def evaluation(self) -> "ImageDecoding":
        """The same size without randomness."""
        return ImageDecoding(self.image_size)

    def __call__(self, content: bytes, generator: np.random.Generator) -> Tensor:
        """Decode one image: bytes -> (3, H, W) uint8."""
        try:
            file = Image.open(io.BytesIO(content))
            if file.width * file.height > MAX_PIXELS:
                raise UserError(f"image of {file.width} x {file.height} pixels exceeds the limit of {MAX_PIXELS}")
            file.draft("RGB", (2 * self.image_size, 2 * self.image_size))  # JPEG: decode at a reduced scale
            image = file.convert("RGB")
        except UserError:
            raise
        except Exception as error:  # Pillow raises many kinds on damaged and on hostile files
            raise UserError(f"unreadable image ({error}); run data_tools/check_shards.py on the folder") from None
        pixels = self._augment(np.asarray(self._crop(image, generator)), generator)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    def _crop(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        if self.crop_scale != (1.0, 1.0):
            part = side * generator.uniform(*self.crop_scale) ** 0.5
            left, top = left + generator.uniform(0, side - part), top + generator.uniform(0, side - part)
            side = part
        if side == image.width == image.height == self.image_size:
            return image
        box = (left, top, left + side, top + side)
        return image.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)

    def _augment(self, pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        if self.shift:
            limit = round(self.shift * self.image_size)
            down, right = generator.integers(-limit, limit + 1, 2)
            padded = np.pad(pixels, ((limit, limit), (limit, limit), (0, 0)), mode="edge")
            pixels = padded[limit + down :, limit + right :][: self.image_size, : self.image_size]
        if self.colour_jitter or self.greyscale:
            grey = pixels @ np.array([0.299, 0.587, 0.114])
            saturation, contrast, brightness = 1 + self.colour_jitter * generator.uniform(-1, 1, 3)
            if generator.random() < self.greyscale:
                saturation = 0.0
            floats = grey[..., None] + saturation * (pixels - grey[..., None])
            floats = (grey.mean() + contrast * (floats - grey.mean())) * brightness
            pixels = np.clip(np.round(floats), 0, 255).astype(np.uint8)
        return pixels


def image_member(members: dict[str, bytes]) -> bytes:
    """The image among a sample's members."""
    for extension in EXTENSIONS:
        if extension in members:
            return members[extension]
    raise UserError(f"the sample has no image, only {sorted(members)}; expected one of {EXTENSIONS}")
