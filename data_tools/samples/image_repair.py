"""Check and repair image files from the web: decodable, upright, RGB, 8 bit, within limits.

An image that needs no repair keeps its bytes, except for private metadata (private_metadata.py). Otherwise Pillow
decodes it, 16-bit grey is scaled (img2dataset's decoder turns it white), transparency is composited on white, colours
are converted to sRGB if a profile (ICC.1:2022) says so, the EXIF orientation is applied, and the image is encoded again
without metadata.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageCms, ImageOps

from data_tools.samples.exif_size import exif_block, exif_is_small
from data_tools.samples.private_metadata import strip_private
from data_tools.work.foreign_error import first_line
from leam_mm.data.image_file import ImageLimit, check_memory, open_image
from leam_mm.data.image_limits import MAX_PIXELS, WEB_FORMATS

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
ResizeMode = Literal["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"]
ImageFormat = Literal["png", "jpg", "webp"]
ORIENTATION = 0x0112
ENCODING_BYTES = {"png": 4, "jpg": 4, "webp": 12}  # of a pixel in memory, its own 4 included
PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # colour space of a profile -> mode of Pillow
MAX_PROFILE = 8_000_000  # bytes
STRIP = 1_000_000  # pixels that are converted at once
SAME_COLOURS = 3  # levels of 255; a profile that differs less from sRGB counts as sRGB


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
    try:
        image = open_image(raw, WEB_FORMATS, rule.max_pixels)
    except ImageLimit as limit:
        raise ImageFault(limit.rule, limit.value, str(limit)) from None
    except Exception as error:  # Pillow's parsers raise many kinds on hostile headers
        raise _fault("decode", raw[:16].hex(), "not an image we read", error) from None
    source_format, original = str(image.format), image.size
    if min(original) < rule.min_side:
        raise ImageFault("side", str(min(original)), f"a side shorter than {rule.min_side} pixels")
    try:
        image, transforms = _decode(
            image, raw, rule.max_pixels
        )  # the decoded file is not kept: both would exceed the memory
    except Exception as error:  # likewise for broken bodies
        raise _fault("decode", source_format, "broken image", error) from None
    content, extension = raw, EXTENSIONS.get(source_format, "")
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


def _fault(rule: str, value: str, reason: str, error: Exception) -> ImageFault:
    """Return the fault of an error of a library; no memory is a rule of its own."""
    if isinstance(error, MemoryError):
        return ImageFault("memory", value, f"{reason}: not enough memory")
    return ImageFault(rule, value, f"{reason}: {first_line(error)}")


def _decode(image: Image.Image, raw: bytes, max_pixels: int) -> tuple[Image.Image, list[str]]:
    """Return the upright RGB image, and the names of the steps that changed it."""
    transforms: list[str] = []
    if image.format == "PNG":  # verify() finds missing ends and wrong checksums, load() does not
        open_image(raw, ("PNG",), max_pixels).verify()
    if getattr(image, "is_animated", False):
        transforms.append("first_frame")
    image.load()
    orientation = image.getexif().get(ORIENTATION, 1) if exif_is_small(exif_block(image)) else 1
    deep = image.format == "PNG" and len(raw) > 24 and raw[24] == 16  # bit depth in the IHDR chunk
    if image.mode.startswith("I"):
        image = _by_strips(image, _eight_bits)
    if deep:
        transforms.append("depth:16")
    profile = image.info.get("icc_profile") or b""
    if image.mode in ("L", "CMYK"):
        image = _to_srgb(image, profile, transforms)
    if image.has_transparency_data:
        image = _by_strips(image, _flatten)
        transforms.append("flatten")
    elif image.mode != "RGB":
        transforms.append(f"rgb:{image.mode}")
        image = _by_strips(image, lambda strip: strip.convert("RGB"))
    if not any(name.startswith("icc:") for name in transforms):
        image = _to_srgb(image, profile, transforms)
    if orientation in range(2, 9):
        image.getexif()[ORIENTATION] = orientation
        image = ImageOps.exif_transpose(image)
        transforms.append(f"orientation:{orientation}")
    return image, transforms


def _by_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert an image strip by strip, so that never more than two whole images are in memory.

    Args:
        image: The image.
        convert: Conversion that treats each pixel alike.
    """
    rows = max(1, STRIP // image.width)
    if rows >= image.height:
        return convert(image)
    whole: Image.Image | None = None
    for top in range(0, image.height, rows):
        part = convert(image.crop((0, top, image.width, min(top + rows, image.height))))
        if whole is None:
            whole = Image.new(part.mode, image.size)
        whole.paste(part, (0, top))
    assert whole is not None
    return whole


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits."""
    value = np.asarray(image).astype(np.float64)
    return Image.fromarray(np.clip(np.rint(value / 257), 0, 255).astype(np.uint8), "L")


def _flatten(image: Image.Image) -> Image.Image:
    """Composite an image with transparency on white."""
    cover = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", cover.size, (255, 255, 255, 255)), cover).convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes, transforms: list[str]) -> Image.Image:
    """Convert an image from its colour profile to sRGB; return the same object if it has none or is in sRGB."""
    found = _profile_transform(profile) if profile else None
    if found is None or (found[1] is not None and found[0] != image.mode):
        return image
    name, transform = found[2], found[1]
    if transform is None:
        transforms.append("icc:unreadable")
        return image
    transforms.append(f"icc:{name}")

    def convert(strip: Image.Image) -> Image.Image:
        converted = ImageCms.applyTransform(strip, transform)
        assert converted is not None
        return converted

    return _by_strips(image, convert)


@lru_cache(maxsize=64)
def _profile_transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None, str] | None:
    """Return mode, transform to sRGB, and name of a profile; no transform if unreadable, None if it is sRGB."""
    try:
        if len(profile) > MAX_PROFILE:
            raise ValueError("too large")
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = opened.profile.xcolor_space.strip()
        mode = PROFILE_MODES[space]
        transform = ImageCms.buildTransform(
            opened,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode != "CMYK":
            levels = np.linspace(0, 255, 6).round().astype(np.uint8)
            grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
            probe = Image.fromarray(grid if mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
            seen = np.asarray(ImageCms.applyTransform(probe, transform)).astype(int)
            if np.abs(seen - np.asarray(probe.convert("RGB"))).max() <= SAME_COLOURS:
                return None
        name = ImageCms.getProfileDescription(opened).strip()
    except Exception:  # littlecms has no exceptions of its own
        return "", None, ""
    return mode, transform, "".join(letter for letter in name if letter.isalnum() or letter in " .-()")[:60] or space


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
