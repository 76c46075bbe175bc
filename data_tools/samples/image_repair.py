"""Check and repair image files from the web: decodable, upright, RGB, 8 bit, within limits.

An image that needs no repair keeps its bytes. Otherwise Pillow decodes it, 16-bit grey is scaled (img2dataset's decoder
turns it white), transparency is composited on white, colours are converted to sRGB if a profile (ICC.1:2022) says so,
the EXIF orientation is applied, and the image is encoded again without metadata.
"""

import hashlib
import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageCms, ImageOps

from leam_mm.data.image_limits import MAX_PIXELS

DECODERS = ["JPEG", "PNG", "WEBP", "GIF", "BMP"]
EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
ResizeMode = Literal["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"]
ImageFormat = Literal["png", "jpg", "webp"]
ORIENTATION = 0x0112
PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # colour space of a profile -> mode of Pillow
MAX_PROFILE = 8_000_000  # bytes
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
        ImageFault: It is not an image, is broken, or exceeds the limits.
    """
    if len(raw) > rule.max_bytes:
        raise ImageFault("bytes", str(len(raw)), f"larger than {rule.max_bytes} bytes")
    Image.MAX_IMAGE_PIXELS = None  # the limit below applies before any pixel is decoded
    try:
        image = Image.open(io.BytesIO(raw), formats=DECODERS)
    except Exception as error:  # Pillow's parsers raise many kinds on hostile headers
        raise ImageFault("decode", raw[:16].hex(), f"not an image we read: {_first_line(error)}") from None
    source_format, original = str(image.format), image.size
    pixels = original[0] * original[1]
    if pixels > rule.max_pixels:
        raise ImageFault("pixels", str(pixels), f"more than {rule.max_pixels} pixels")
    if min(original) < rule.min_side:
        raise ImageFault("side", str(min(original)), f"a side shorter than {rule.min_side} pixels")
    try:
        upright, transforms = _decode(image, raw)
    except Exception as error:  # likewise for broken bodies
        raise ImageFault("decode", source_format, f"broken image: {_first_line(error)}") from None
    resized = resize_image(upright, rule)
    if resized is not upright:
        transforms.append(f"resize:{rule.resize}:{rule.size}")
    content, extension = raw, EXTENSIONS.get(source_format, "")
    if transforms or not extension:
        extension = rule.format
        content = encode_image(resized, extension)
        transforms.append(f"encode:{extension}")
    return RepairedImage(extension, content, hashlib.sha256(raw).hexdigest(), *resized.size, *original, transforms)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _decode(image: Image.Image, raw: bytes) -> tuple[Image.Image, list[str]]:
    """Return the upright RGB image, and the names of the steps that changed it."""
    transforms: list[str] = []
    if image.format == "PNG":  # verify() finds missing ends and wrong checksums, load() does not
        Image.open(io.BytesIO(raw), formats=["PNG"]).verify()
    if getattr(image, "n_frames", 1) > 1:
        transforms.append("first_frame")
    image.load()
    orientation = image.getexif().get(ORIENTATION, 1)
    deep = image.format == "PNG" and len(raw) > 24 and raw[24] == 16  # bit depth in the IHDR chunk
    if image.mode.startswith("I"):
        value = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.clip(np.rint(value / 257), 0, 255).astype(np.uint8), "L")
    if deep:
        transforms.append("depth:16")
    profile = image.info.get("icc_profile") or b""
    if image.mode in ("L", "CMYK"):
        image = _to_srgb(image, profile, transforms)
    if image.has_transparency_data:
        cover = image.convert("RGBA")
        white = Image.new("RGBA", cover.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, cover).convert("RGB")
        transforms.append("flatten")
    elif image.mode != "RGB":
        transforms.append(f"rgb:{image.mode}")
        image = image.convert("RGB")
    if not any(name.startswith("icc:") for name in transforms):
        image = _to_srgb(image, profile, transforms)
    if orientation in range(2, 9):
        image.getexif()[ORIENTATION] = orientation
        image = ImageOps.exif_transpose(image)
        transforms.append(f"orientation:{orientation}")
    return image, transforms


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
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None
    return converted


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
    """Encode without any metadata; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    clean = Image.frombytes("RGB", image.size, image.tobytes())
    if extension == "jpg":
        clean.save(buffer, "JPEG", quality=95)
    elif extension == "webp":
        clean.save(buffer, "WEBP", quality=95)
    else:
        clean.save(buffer, "PNG")
    return buffer.getvalue()
