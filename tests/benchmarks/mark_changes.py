"""What happens to images between a generator and a detector, as functions of the pixels (H, W, 3) uint8 alone."""

from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image, ImageFilter

from leam_mm.marking.image_changes import reencoded

Change = Callable[[np.ndarray], np.ndarray]
BICUBIC = Image.Resampling.BICUBIC


def resized(pixels: np.ndarray, factor: float, back: bool) -> np.ndarray:
    """Resize by a factor, and back to the old size if wanted."""
    picture = Image.fromarray(pixels)
    small = picture.resize((round(picture.width * factor), round(picture.height * factor)), BICUBIC)
    return np.asarray(small.resize(picture.size, BICUBIC) if back else small)


def cropped(pixels: np.ndarray, share: float, back: bool) -> np.ndarray:
    """Keep a part of each side, one third of the rest off the left and top; resize to the old size if wanted."""
    height, width = pixels.shape[:2]
    tall, wide = round(height * share), round(width * share)
    top, left = (height - tall) // 3, (width - wide) // 3
    part = np.ascontiguousarray(pixels[top : top + tall, left : left + wide])
    return np.asarray(Image.fromarray(part).resize((width, height), BICUBIC)) if back else part


def screenshot(pixels: np.ndarray) -> np.ndarray:
    """Shown at 1.17 times its size with a gamma of 1.1, captured, and saved as a JPEG of quality 80."""
    picture = Image.fromarray(pixels)
    shown = picture.resize((round(picture.width * 1.17) | 1, round(picture.height * 1.17) | 1), BICUBIC)
    gamma = np.round(255 * (np.asarray(shown) / 255) ** 1.1).astype(np.uint8)
    return reencoded(gamma, "JPEG", 80)


def blurred(pixels: np.ndarray) -> np.ndarray:
    """Gaussian blur of one pixel."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1)))


def noisy(pixels: np.ndarray) -> np.ndarray:
    """Gaussian noise of five levels."""
    noise = np.random.default_rng(int(pixels.astype(np.int64).sum())).normal(0, 5, pixels.shape)
    return np.clip(np.round(pixels + noise), 0, 255).astype(np.uint8)


def rotated(pixels: np.ndarray) -> np.ndarray:
    """Rotate by two degrees; the corners become black."""
    return np.asarray(Image.fromarray(pixels).rotate(2, BICUBIC))


CHANGES: dict[str, Change] = {
    "none": lambda pixels: pixels,
    **{f"JPEG {quality}": partial(reencoded, kind="JPEG", quality=quality) for quality in (90, 70, 50)},
    "WebP 80": partial(reencoded, kind="WEBP", quality=80),
    "resize 0.5 and back": partial(resized, factor=0.5, back=True),
    "resize 0.5": partial(resized, factor=0.5, back=False),
    "crop 0.7": partial(cropped, share=0.7, back=False),
    "crop 0.7, resize back": partial(cropped, share=0.7, back=True),
    "screenshot": screenshot,
    "blur, 1 px": blurred,
    "noise, 5 levels": noisy,
    "mirror": lambda pixels: np.ascontiguousarray(pixels[:, ::-1]),
    "rotate 2 degrees": rotated,
}
