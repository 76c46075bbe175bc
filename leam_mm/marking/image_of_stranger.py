"""Image files whose marks are read: bounded in size, opened with the limits of leam_mm/data/image_file.py."""

from pathlib import Path

import numpy as np
from PIL import Image

from leam_mm.data.image_file import open_image
from leam_mm.data.image_limits import WEB_FORMATS
from leam_mm.data.upright_image import read_upright
from leam_mm.errors import UserError

MAX_BYTES = 100_000_000
MAX_SIDE = 4096  # pixels; larger images are reduced before watermarks are sought


def read_file(path: Path) -> bytes:
    """Return the content of an image file.

    Raises:
        UserError: It cannot be read, or is larger than ``MAX_BYTES``.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path} is no file: give an image")
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give an image file") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} has more than {MAX_BYTES} bytes: give a smaller image")
    return content


def image_format(content: bytes) -> str:
    """Return Pillow's name of the format.

    Raises:
        UserError: It is no image of ``WEB_FORMATS``, or exceeds a limit.
    """
    return _opened(content).format or ""


def image_texts(content: bytes) -> dict[str, str]:
    """Return the texts that a PNG carries, as far as they say where the image comes from."""
    found = _opened(content).info
    return {name: str(found[name])[:300] for name in ("DigitalSourceType", "Model", "Software") if name in found}


def image_pixels(content: bytes) -> np.ndarray:
    """Return an upright image of at most ``MAX_SIDE`` pixels a side: (H, W, 3) uint8.

    Raises:
        UserError: It is broken, or exceeds a limit.
    """
    image = read_upright(content)
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _opened(content: bytes) -> Image.Image:
    try:
        return open_image(content, WEB_FORMATS)
    except UserError:
        raise
    except Exception as error:  # Pillow raises many kinds on hostile files
        raise UserError(f"unreadable image ({type(error).__name__}): give JPEG, PNG or WebP") from None
