"""Pixels of an opened image as a person sees it: upright, sRGB, 8 bits, transparency on white.

16-bit grey is scaled (img2dataset's decoder turns it white), transparency is composited on white, colours are converted
to sRGB if a profile (ICC.1:2022) says so, and the EXIF orientation is applied.
"""

import io
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from leam_mm.data.image_file import open_image
from leam_mm.data.image_limits import MAX_PIXELS, WEB_FORMATS
from leam_mm.errors import UserError

ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by orientation (EXIF 3.0, 4.6.5.1.6)
BITS_PER_SAMPLE = 258  # tag of TIFF 6.0
PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # colour space of a profile -> mode of Pillow
MAX_PROFILE = 8_000_000  # bytes
STRIP = 1_000_000  # pixels that are converted at once
SAME_COLOURS = 3  # levels of 255; a profile that differs less from sRGB counts as sRGB


def read_upright(content: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file of a stranger, in any format of ``WEB_FORMATS``, to an upright RGB image.

    Raises:
        UserError: It has another format, is broken or exceeds a limit.
    """
    try:
        return upright_rgb(open_image(content, WEB_FORMATS, max_pixels), content, max_pixels)[0]
    except UserError:
        raise
    except Exception as error:  # Pillow raises many kinds on damaged and on hostile files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"unreadable image ({reason}): save it as JPEG, PNG or WebP") from None


def upright_rgb(image: Image.Image, raw: bytes, max_pixels: int) -> tuple[Image.Image, list[str]]:
    """Return the upright RGB image, and the names of the steps that changed it.

    Args:
        image: The opened image.
        raw: The file.
        max_pixels: Limit with which it was opened.

    Raises:
        Exception: The file is broken; Pillow raises many kinds.
    """
    transforms: list[str] = []
    if image.format == "PNG":  # verify() finds missing ends and wrong checksums, load() does not
        open_image(raw, ("PNG",), max_pixels).verify()
    if getattr(image, "is_animated", False):
        transforms.append("first_page" if image.format == "TIFF" else "first_frame")
    if image.mode == "F":
        raise ValueError("values are floats, whose range is not known; save it with 8 or 16 bits")
    turned = _tiff_orientation(image) if image.format == "TIFF" else 1  # load() applies it
    deep = image.format == "TIFF" and max(image.tag_v2.get(BITS_PER_SAMPLE, (8,))) == 16  # type: ignore[attr-defined]
    image.load()
    orientation = image.getexif().get(ORIENTATION, 1)
    deep = deep or (image.format == "PNG" and len(raw) > 24 and raw[24] == 16)  # bit depth in the IHDR chunk
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
    if turned in range(2, 9):
        transforms.append(f"orientation:{turned}")
    elif orientation in TURNS:  # ImageOps.exif_transpose would write the whole EXIF anew, in quadratic time
        image = image.transpose(TURNS[orientation])
        image.info = {}  # EXIF or XMP would turn it again
        transforms.append(f"orientation:{orientation}")
    return image, transforms


def _tiff_orientation(image: Image.Image) -> int:
    """Return the orientation that an opened TIFF states for itself."""
    value = image.tag_v2.get(ORIENTATION, 1)  # type: ignore[attr-defined]
    return value if isinstance(value, int) else 1


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
