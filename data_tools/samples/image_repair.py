"""Check and repair image files from the web: decodable, upright, RGB, 8 bit, within limits.

An image that needs no repair keeps its bytes, except for private metadata (private_metadata.py). Otherwise Pillow
decodes it, 16-bit grey is scaled (img2dataset's decoder turns it white), transparency is composited on white, colours
are converted to sRGB if a profile (ICC.1:2022) says so, the EXIF orientation is applied, and the image is encoded again
without metadata. Drawings (SVG) are rasterised, their shorter side at the size of the rule.
"""

import hashlib
import io
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageOps

from data_tools.samples.private_metadata import strip_private
from data_tools.samples.svg_image import SvgFault, is_svg, rasterise
from data_tools.work.foreign_error import first_line
from leam_mm.data.image_file import ImageLimit, check_memory, open_image
from leam_mm.data.image_limits import MAX_PIXELS, WEB_FORMATS
from leam_mm.data.upright_image import upright_rgb

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
ResizeMode = Literal["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"]
ImageFormat = Literal["png", "jpg", "webp"]
ENCODING_BYTES = {"png": 4, "jpg": 4, "webp": 12}  # of a pixel in memory, its own 4 included


class ImageFault(Exception):
    """An image is refused: the rule, the value on which it decided, and the reason in words."""

    def __init__(self, rule: str, value: str, reason: str) -> None:
        """Keep rule and value for the ledger."""
        super().__init__(reason)
        self.rule, self.value, self.reason = rule, value, reason


@dataclass(frozen=True)
class ImageRule:
    """Requirements of images, and how they are resized and encoded.

    Args:
        size: Side in pixels that ``resize`` aims at.
        resize: ``no``; ``keep_ratio`` (shorter side down to size); ``keep_ratio_largest`` (longer side down to size);
            ``center_crop`` (exactly size x size, cropped); ``border`` (exactly size x size, padded with white).
        format: ``png``, ``jpg`` or ``webp``, for images that must be encoded again.
        max_pixels: Largest width times height to decode.
        max_bytes: Largest file to decode.
        min_side: Smallest side to keep, in pixels.
    """

    size: int = 256
    resize: ResizeMode = "no"
    format: ImageFormat = "png"
    max_pixels: int = MAX_PIXELS
    max_bytes: int = 50_000_000
    min_side: int = 1


@dataclass(frozen=True)
class RepairedImage:
    """An image file to store, and the names of the repairs."""

    extension: str
    content: bytes
    sha256: str
    width: int
    height: int
    original_width: int
    original_height: int
    transforms: list[str]


def repair_image(raw: bytes, rule: ImageRule) -> RepairedImage:
    """Decode, check and, if needed, repair one image.

    Raises:
        ImageFault: It is not an image, is broken, exceeds the limits, or a library fails on it.
    """
    if len(raw) > rule.max_bytes:
        raise ImageFault("bytes", str(len(raw)), f"larger than {rule.max_bytes} bytes")
    drawn = _rasterised(raw, rule) if is_svg(raw) else raw
    try:
        image = open_image(drawn, WEB_FORMATS, rule.max_pixels)
    except ImageLimit as limit:
        raise ImageFault(limit.rule, limit.value, str(limit)) from None
    except Exception as error:  # Pillow's parsers raise many kinds on hostile headers
        raise _fault("decode", raw[:16].hex(), "not an image we read", error) from None
    source_format, original = str(image.format), image.size
    if min(original) < rule.min_side:
        raise ImageFault("side", str(min(original)), f"a side shorter than {rule.min_side} pixels")
    try:
        # The decoded file is not kept: both would exceed the memory.
        image, transforms = upright_rgb(image, drawn, rule.max_pixels)
    except Exception as error:  # likewise for broken bodies
        raise _fault("decode", source_format, "broken image", error) from None
    content, extension = raw, EXTENSIONS.get(source_format, "")
    if drawn is not raw:
        transforms.insert(0, f"rasterise:{rule.size}")
    try:
        resized = resize_image(image, rule)
        if resized is not image:
            transforms.append(f"resize:{rule.resize}:{rule.size}")
        if transforms or not extension:
            extension = rule.format
            check_memory(ENCODING_BYTES[extension] * resized.width * resized.height, rule.max_pixels)
            content = encode_image(resized, extension)
            transforms.append(f"encode:{extension}")
        else:
            content, removed = strip_private(raw)
            transforms += [f"strip:{name}" for name in removed]
    except ImageLimit as limit:
        raise ImageFault(limit.rule, limit.value, str(limit)) from None
    except Exception as error:  # sides that a format cannot hold, or no memory for an encoder
        raise _fault("encode", rule.format, "cannot be resized or encoded", error) from None
    return RepairedImage(extension, content, hashlib.sha256(raw).hexdigest(), *resized.size, *original, transforms)


def _rasterised(raw: bytes, rule: ImageRule) -> bytes:
    try:
        return rasterise(raw, max(rule.size, rule.min_side), rule.max_pixels)
    except SvgFault as fault:
        raise ImageFault("svg", raw[:16].hex(), str(fault)) from None


def _fault(rule: str, value: str, reason: str, error: Exception) -> ImageFault:
    """Return the fault of an error of a library; no memory is a rule of its own."""
    if isinstance(error, MemoryError):
        return ImageFault("memory", value, f"{reason}: not enough memory")
    return ImageFault(rule, value, f"{reason}: {first_line(error)}")


def resize_image(image: Image.Image, rule: ImageRule) -> Image.Image:
    """Resize by the rule; return the same object if nothing is to be done."""
    width, height = image.size
    side, target = rule.size, (rule.size, rule.size)
    if rule.resize == "no" or (rule.resize in ("center_crop", "border") and image.size == target):
        return image
    if rule.resize == "center_crop":
        return ImageOps.fit(image, target, Image.Resampling.LANCZOS)
    if rule.resize == "border":
        return ImageOps.pad(image, target, Image.Resampling.LANCZOS, color=(255, 255, 255))
    reference = min(width, height) if rule.resize == "keep_ratio" else max(width, height)
    if reference <= side:
        return image
    smaller = (max(1, round(width * side / reference)), max(1, round(height * side / reference)))
    return image.resize(smaller, Image.Resampling.LANCZOS)


def encode_image(image: Image.Image, extension: str) -> bytes:
    """Encode without any metadata, which the image loses, too; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    image.info = {}  # a clean copy would be another whole image in memory
    if extension == "jpg":
        image.save(buffer, "JPEG", quality=95)
    elif extension == "webp":
        image.save(buffer, "WEBP", quality=95)
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()
