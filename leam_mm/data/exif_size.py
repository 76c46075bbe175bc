"""Bound the work of reading EXIF: each entry of a directory may claim the whole block again.

Pillow copies the values of all entries of the first directory: an eXIf chunk of 1 MB with 65,535 entries (EXIF 3.0,
4.6.2; TIFF 6.0, section 2) would take 65 GB.
"""

from PIL import Image

UNITS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # bytes of a value by its type
MOST = 1_000_000  # bytes of all values
PROFILE = "Raw profile type exif"  # text of a PNG that Pillow reads in place of an eXIf chunk


def exif_block(image: Image.Image) -> bytes:
    """Return the EXIF block of an opened image as Pillow finds it; empty without one."""
    block = image.info.get("exif")
    if block is None and PROFILE in image.info:
        try:
            block = bytes.fromhex("".join(str(image.info[PROFILE]).split("\n")[3:]))
        except ValueError:
            block = b""
    return block if isinstance(block, bytes) else b""


def exif_is_small(block: bytes) -> bool:
    """Return whether the values of the first directory fit into the limit; a block that is no EXIF is small."""
    block = block.removeprefix(b"Exif\0\0")
    order = {b"II": "little", b"MM": "big"}.get(block[:2])
    if order is None:
        return True

    def number(position: int, size: int) -> int:
        return int.from_bytes(block[position : position + size], "little" if order == "little" else "big")

    start = number(4, 4)
    total = 0
    for entry in range(min(number(start, 2), (len(block) - start) // 12)):
        position = start + 2 + 12 * entry
        total += min(UNITS.get(number(position + 2, 2), 0) * number(position + 4, 4), len(block))
    return total <= MOST
