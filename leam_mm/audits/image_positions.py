"""Whether an image file says where it was taken: a position in EXIF (EXIF 3.0, 4.6.6) or in XMP."""

from PIL import ExifTags, Image

from leam_mm.data.exif_size import exif_block
from leam_mm.data.image_file import open_image
from leam_mm.data.image_limits import WEB_FORMATS
from leam_mm.data.xmp_positions import without_positions


def has_position(content: bytes) -> bool | None:
    """Return whether an image file holds a position; None if it cannot be read.

    Args:
        content: The file, which may be hostile.
    """
    try:
        with open_image(content, WEB_FORMATS) as image:
            if image.format == "PNG":
                image.load()  # chunks with EXIF or XMP may follow the pixels
            packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
            block = exif_block(image)
        packet = packet.encode() if isinstance(packet, str) else bytes(packet)
        if packet and without_positions(packet) != packet:
            return True
        if not block:
            return False
        exif = Image.Exif()
        exif.load(block)
        return bool(exif.get_ifd(ExifTags.IFD.GPSInfo))
    except Exception:  # Pillow raises many kinds on damaged and on hostile files
        return None
