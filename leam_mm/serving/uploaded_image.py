"""Images that people upload: checked before anything decodes them."""

from pathlib import Path

from PIL import Image

from leam_mm.data.image_file import ImageLimit
from leam_mm.data.upright_image import read_upright
from leam_mm.errors import UserError
from leam_mm.serving.refusal import Refusal

MAX_UPLOAD = 20_000_000  # bytes
MAX_PIXELS = 40_000_000  # decoding takes about six bytes for each


def check_upload(path: Path | str | None, limit: int = MAX_UPLOAD) -> Path:
    """Return the path of an uploaded image that can be decoded within the limits of leam_mm/data/image_file.py.

    Args:
        path: The uploaded file; None if there is none.
        limit: Most bytes.

    Raises:
        Refusal: There is no file, it is too large, or it is no image.
    """
    read_upload(path, limit)
    return Path(str(path))


def read_upload(path: Path | str | None, limit: int = MAX_UPLOAD) -> Image.Image:
    """Return the pixels of an uploaded image, upright and in RGB; see ``check_upload``."""
    if path is None:
        raise Refusal("no_image")
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError:
        raise Refusal("no_image") from None
    if len(content) > limit:
        raise Refusal("large_file", megabytes=limit // 1_000_000)
    try:
        return read_upright(content, MAX_PIXELS)
    except ImageLimit:
        raise Refusal("large_image", megapixels=MAX_PIXELS // 1_000_000) from None
    except UserError:
        raise Refusal("not_an_image") from None
