"""Open an image file of a stranger: a few formats only, and only if decoding it fits into limits.

Pillow recognises some forty formats, among them PostScript, which it hands to Ghostscript. All images of the project
are therefore opened here. A file of 10 kB may hold 89 million pixels, and a decoder may need 16 bytes for each: the
memory for decoding is estimated from the header first.
"""

import io
import re
import warnings

from PIL import Image

from leam_mm.data.exif_size import bound_directories, first_directory
from leam_mm.data.image_limits import (
    BYTES_PER_PIXEL,
    LEAST_MEMORY,
    MAX_PIXELS,
    MAX_SCANS,
    MAX_SEGMENTS,
    MAX_TAGS,
    SHARD_FORMATS,
)
from leam_mm.data.image_parts import parts_fault
from leam_mm.errors import UserError

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+")  # two of them wrong, and read by Pillow
START_OF_SCAN = b"\xff\xda"  # marker of JPEG (ITU-T T.81, B.1.1.3); data of a scan cannot contain it
ONE_BY_ONE = (0xC0, 0xC1)  # frames of JPEG of which a decoder reads one scan if it holds all components
FEW_SEGMENTS = 4_000_000  # bytes of a JPEG that cannot hold enough of them to take seconds
NO_FRAMES = (0xC4, 0xC8, 0xCC)  # tables among the markers of frames
BYTES = {
    "1": 1,
    "L": 1,
    "P": 1,
    "I;16": 3,
    "I;16B": 3,
    "I;16L": 3,
}  # of a pixel by Pillow's mode, "I;16" with its copy of 8 bits; else 4
TIFF_BYTES = 8  # of a pixel: what libtiff holds of one strip or tile, which may be the whole image, 16 bits a channel
WEBP_BYTES = 16  # of a pixel: two canvases of libwebp's animation decoder, Pillow's copy and its image

# Beyond the limit Pillow first warns; here it is refused.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
bound_directories()


class ImageLimit(UserError):
    """An image exceeds a limit: the rule, the value on which it decided, and a message."""

    def __init__(self, rule: str, value: object, message: str) -> None:
        """Keep rule and value for the ledger."""
        super().__init__(message)
        self.rule, self.value = rule, str(value)


def open_image(content: bytes, formats: tuple[str, ...] = SHARD_FORMATS, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image with Pillow, which reads its header only.

    Args:
        content: The file.
        formats: Pillow's names of the formats that are recognised.
        max_pixels: Largest width times height.

    Raises:
        ImageLimit: Decoding it would take too much memory or work.
        OSError: It has none of the formats. Pillow raises other types on hostile headers.
    """
    check_canvas(content, max_pixels)
    check_tags(content)
    check_segments(content)
    Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2  # Pillow refuses twice as many, before its plugins allocate them
    try:
        image = Image.open(io.BytesIO(content), formats=formats)
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        raise _too_many_pixels(pixels[0] if pixels else "too many", max_pixels) from None
    finally:
        # Pillow applies it to crops of other images, too.
        Image.MAX_IMAGE_PIXELS = max(MAX_PIXELS, (max_pixels + 1) // 2)
    check_size(*image.size, max_pixels)
    if image.format in ("JPEG", "MPO"):
        check_scans(content)
    check_memory(decoding_bytes(image, content), max_pixels)
    return image


def check_canvas(content: bytes, max_pixels: int) -> None:
    """Refuse an extended WebP by the size of its canvas, which Pillow 12 allocates before it compares it.

    Source: RFC 9649, section 2.7.1.
    """
    if content[:4] == b"RIFF" and content[8:16] == b"WEBPVP8X" and len(content) >= 30:
        width, height = (int.from_bytes(content[at : at + 3], "little") + 1 for at in (24, 27))
        check_size(width, height, max_pixels)


def check_tags(content: bytes) -> None:
    """Refuse a TIFF of thousands of tags, or of tags whose values overlap: Pillow copies each value.

    Source: TIFF 6.0, section 2; BigTIFF counts tags with eight bytes. Pillow 12 takes a big-endian BigTIFF for a TIFF.
    """
    if content[:4] not in TIFF_STARTS:
        return
    for big in {b"II+\0": (True,), b"MM\0+": (False, True)}.get(content[:4], (False,)):
        tags, claims = first_directory(content, big)
        if tags > MAX_TAGS:
            raise ImageLimit("tags", tags, f"TIFF of {tags} tags exceeds the limit of {MAX_TAGS}")
        if (claimed := sum(size for _, size in claims)) > len(content):
            raise ImageLimit("tags", claimed, f"TIFF of {len(content)} bytes has tags of {claimed}")


def check_segments(content: bytes) -> None:
    """Refuse a PNG or GIF of too many parts, and a large JPEG of thousands of EXIF segments.

    Pillow joins these one by one, in quadratic time.
    """
    if found := parts_fault(content):
        raise ImageLimit("parts", found[0], f"{found[0]} {found[1]} exceed the limit")
    if len(content) <= FEW_SEGMENTS or not content.startswith(b"\xff\xd8"):
        return
    if (segments := content.count(b"Exif\0\0")) > MAX_SEGMENTS:
        raise ImageLimit("tags", segments, f"JPEG of {segments} EXIF segments exceeds the limit of {MAX_SEGMENTS}")


def check_memory(needed: int, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse an image that needs more memory than decoding as many pixels as are allowed."""
    if needed > (limit := max(LEAST_MEMORY, BYTES_PER_PIXEL * max_pixels)):
        raise ImageLimit("memory", needed, f"the image needs {needed} bytes of memory, the limit is {limit}")


def check_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse an image that would fill the memory."""
    if width * height > max_pixels:
        raise _too_many_pixels(width * height, max_pixels)


def _too_many_pixels(pixels: object, max_pixels: int) -> ImageLimit:
    return ImageLimit("pixels", pixels, f"image of {pixels} pixels exceeds the limit of {max_pixels}")


def check_scans(content: bytes) -> None:
    """Refuse a JPEG of thousands of scans, which takes minutes to decode."""
    if (scans := scans_of(content)) > MAX_SCANS:
        raise ImageLimit("scans", scans, f"JPEG of {scans} scans exceeds the limit of {MAX_SCANS}")


def scans_of(content: bytes) -> int:
    """Return the number of scans that a decoder of a JPEG reads; counting them in all files would cost 5 % of it."""
    position, frame, components = 2, 0, 0
    while position + 10 <= len(content) and content[position] == 0xFF:
        marker, length = content[position + 1], int.from_bytes(content[position + 2 : position + 4])
        if 0xC0 <= marker <= 0xCF and marker not in NO_FRAMES:
            frame, components = marker, content[position + 9]
        if marker == START_OF_SCAN[1]:
            if frame in ONE_BY_ONE and content[position + 4] == components:
                return 1
            break
        position += 2 + length
    return content.count(START_OF_SCAN)


def check_jpeg(content: bytes, pixels: int) -> None:
    """Apply the limits of ``open_image`` to a JPEG for another decoder; Pillow opens it only if it is large."""
    check_scans(content)
    if WEBP_BYTES * pixels > BYTES_PER_PIXEL * MAX_PIXELS:
        open_image(content)


def decoding_bytes(image: Image.Image, content: bytes) -> int:
    """Estimate the memory that decoding an opened image and converting it to RGB take.

    Args:
        image: The image, not decoded yet.
        content: The file.
    """
    stored = decoding = BYTES.get(image.mode, 4)
    if image.format in ("WEBP", "AVIF"):
        decoding = WEBP_BYTES
    elif image.format == "TIFF":
        decoding += TIFF_BYTES
    elif image.format == "GIF":
        stored += 4  # what replaces the first frame, which Pillow prepares with it
    elif image.format in ("JPEG", "MPO") and scans_of(content) > 1:
        decoding += 2 * len(image.getbands())  # coefficients of all scans, 16 bits each
    plain = image.mode == "RGB" and not image.info.keys() & {"icc_profile", "transparency", "exif"}
    return image.width * image.height * max(decoding, stored if plain else stored + 4)
