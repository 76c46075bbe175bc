"""Image bytes to uint8 tensors, decoded at the scale that the crop needs and cropped at random."""

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from leam_mm.data.image_file import check_jpeg, open_image
from leam_mm.data.image_limits import MEMBER_EXTENSIONS
from leam_mm.errors import UserError

CROP_ATTEMPTS = 10
Box = tuple[float, float, float, float]  # left, top, width, height


class ImageDecoding:
    """Decode and crop an image; with defaults this is the deterministic transform of evaluation.

    The evaluation transform equals Pillow's to the bit. With any augmentation a JPEG is decoded by libjpeg-turbo at
    half, a quarter or an eighth of its size if the crop needs no more pixels, and resized by torch: several times
    faster, with an average difference of about one level of 255. Other formats are decoded by Pillow.

    Args:
        image_size: H = W of the result, in pixels.
        crop_scale: Range of the area share of a random crop, in (0, 1]; (1, 1) takes the whole centre square.
        shift: Largest random translation, as a share of the size; uncovered pixels repeat the edge.
        colour_jitter: Largest relative change of brightness, contrast and saturation, in [0, 1).
        greyscale: Probability that an image becomes grey, in [0, 1].
        crop_aspect: Range of width over height of a random crop, log-uniform; the crop lies anywhere and its area is a
            share of the whole image, as in torchvision's RandomResizedCrop. None crops squares in the centre square.
    """

    def __init__(
        self,
        image_size: int,
        crop_scale: tuple[float, float] = (1.0, 1.0),
        shift: float = 0.0,
        colour_jitter: float = 0.0,
        greyscale: float = 0.0,
        crop_aspect: tuple[float, float] | None = None,
    ) -> None:
        """See the class for the arguments."""
        if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise UserError(f"crop_scale {crop_scale} must satisfy 0 < low <= high <= 1")
        if crop_aspect is not None and not 0 < crop_aspect[0] <= crop_aspect[1]:
            raise UserError(f"crop_aspect {crop_aspect} must satisfy 0 < low <= high")
        self.image_size, self.crop_scale, self.shift = image_size, crop_scale, shift
        self.colour_jitter, self.greyscale, self.crop_aspect = colour_jitter, greyscale, crop_aspect

    def evaluation(self) -> "ImageDecoding":
        """Return the decoding of the same size without augmentation."""
        return ImageDecoding(self.image_size)

    def __call__(self, content: bytes, generator: np.random.Generator) -> Tensor:
        """Decode one image: bytes -> (3, H, W) uint8."""
        random = self.crop_scale != (1.0, 1.0) or self.crop_aspect is not None
        try:
            if not (random or self.shift or self.colour_jitter or self.greyscale):
                pixels = self._evaluate(content)
            else:
                pixels = self._augment(self._train(content, generator), generator)
        except UserError:
            raise
        except Exception as error:  # Pillow raises many kinds on damaged and on hostile files
            raise UserError(f"unreadable image ({error}); run data_tools/check_shards.py on the folder") from None
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    def _evaluate(self, content: bytes) -> np.ndarray:
        """Return the resized centre square of an image: (H, W, 3)."""
        file = open_image(content)
        file.draft("RGB", (2 * self.image_size, 2 * self.image_size))  # JPEG: decode at a reduced scale
        return self.centre_square(file.convert("RGB"))

    def centre_square(self, image: Image.Image) -> np.ndarray:
        """Return the resized centre square of an RGB image: (H, W, 3) uint8."""
        side = float(min(image.size))
        return self._resize(image, ((image.width - side) / 2, (image.height - side) / 2, side, side))

    def _train(self, content: bytes, generator: np.random.Generator) -> np.ndarray:
        """Return a resized random crop of an image: (H, W, 3)."""
        size = jpeg_size(content)
        box = None if size is None else self._box(*size, generator)
        if size is not None and box is not None:
            decoded = decode_jpeg(content, size, self.image_size / max(1.0, min(box[2:])))
            if decoded is not None:
                return resize_crop(*decoded, box, self.image_size)
        image = open_image(content).convert("RGB")
        return self._resize(image, box or self._box(*image.size, generator))

    def _resize(self, image: Image.Image, box: Box) -> np.ndarray:
        left, top, width, height = box
        if width == height == image.width == image.height == self.image_size:
            return np.asarray(image)
        edges, size = (left, top, left + width, top + height), (self.image_size, self.image_size)
        return np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=edges, reducing_gap=2.0))

    def _box(self, width: int, height: int, generator: np.random.Generator) -> Box:
        """Draw the crop, in pixels of the whole picture."""
        if self.crop_aspect is not None:
            return self._free_box(width, height, generator)
        side = float(min(width, height))
        left, top = (width - side) / 2, (height - side) / 2
        if self.crop_scale != (1.0, 1.0):
            part = side * generator.uniform(*self.crop_scale) ** 0.5
            left, top = left + generator.uniform(0, side - part), top + generator.uniform(0, side - part)
            side = part
        return left, top, side, side

    def _free_box(self, width: int, height: int, generator: np.random.Generator) -> Box:
        low, high = np.log(self.crop_aspect or (1.0, 1.0))
        for _ in range(CROP_ATTEMPTS):
            area = width * height * generator.uniform(*self.crop_scale)
            aspect = float(np.exp(generator.uniform(low, high)))
            wide, tall = (area * aspect) ** 0.5, (area / aspect) ** 0.5
            if wide <= width and tall <= height:
                return generator.uniform(0, width - wide), generator.uniform(0, height - tall), wide, tall
        # No crop fitted: take the largest one at the centre with an allowed aspect.
        aspect = min(max(width / height, np.exp(low)), np.exp(high))
        wide, tall = min(width, height * aspect), min(height, width / aspect)
        return (width - wide) / 2, (height - tall) / 2, wide, tall

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


def jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG that `decode_jpeg` supports; None for others (PNG, WebP, CMYK, damaged)."""
    if content[:2] != b"\xff\xd8":
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return None
    check_jpeg(content, width * height)
    return (width, height) if colours in ("YCbCr", "Gray", "RGB") else None


def decode_jpeg(content: bytes, size: tuple[int, int], scale: float) -> tuple[np.ndarray, int] | None:
    """Decode a JPEG at full, half, quarter or eighth size, the smallest that is at least ``scale``.

    Returns:
        (h, w, 3) uint8 of whole pixels of the reduced image, and the reduction factor 1, 2, 4 or 8; None if
        libjpeg-turbo warns of anything, so that Pillow decides.
    """
    width, height = size
    factor = next((factor for factor in (8, 4, 2) if factor * scale <= 1), 1)
    try:
        if factor == 1:
            return simplejpeg.decode_jpeg(content), 1
        least = {"min_height": -(-height // factor), "min_width": -(-width // factor)}
        pixels = simplejpeg.decode_jpeg(content, **least, min_factor=factor)
        return pixels[: max(1, height // factor), : max(1, width // factor)], factor
    except ValueError:
        return None


def resize_crop(pixels: np.ndarray, factor: int, box: Box, side: int) -> np.ndarray:
    """Crop a box and resize it to a square, bicubic with antialiasing: (H, W, 3) -> (side, side, 3) uint8.

    Args:
        pixels: The whole image, reduced.
        factor: Reduction factor of ``pixels``.
        box: Box in the unreduced image; its edges are rounded to reduced pixels, at least one per axis.
        side: Side of the result in pixels.
    """
    height, width = pixels.shape[:2]
    left, top = min(round(box[0] / factor), width - 1), min(round(box[1] / factor), height - 1)
    right = min(max(round((box[0] + box[2]) / factor), left + 1), width)
    bottom = min(max(round((box[1] + box[3]) / factor), top + 1), height)
    crop = pixels[top:bottom, left:right]
    if crop.shape[:2] == (side, side):
        return crop
    image = torch.from_numpy(crop).permute(2, 0, 1)[None]  # (1, 3, h, w), channels last for the fast kernel
    return interpolate(image, (side, side), mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()


def image_member(members: dict[str, bytes]) -> bytes:
    """Return the image among a sample's members."""
    for extension in MEMBER_EXTENSIONS:
        if extension in members:
            return members[extension]
    raise UserError(f"the sample has no image, only {sorted(members)}; expected one of {MEMBER_EXTENSIONS}")
