"""Bound the work of reading EXIF or TIFF: each entry of a directory may claim the whole block again.

Pillow copies the values of all entries of the first directory: an eXIf chunk of 1 MB with 65,535 entries (EXIF 3.0,
4.6.2; TIFF 6.0, section 2) would take 65 GB.
"""

from collections.abc import Iterator
from typing import Literal

from PIL import Image

UNITS = {
    **{1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4},
    **{16: 8, 17: 8, 18: 8},  # of BigTIFF, which Pillow reads in EXIF, too
}  # bytes of a value by its type
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
    while block.startswith(b"Exif\0\0"):  # as Pillow does
        block = block[6:]
    return block[:2] not in (b"II", b"MM") or sum(first_directory(block)[1]) <= MOST


def read_small_exif_only() -> None:
    """Let Pillow ignore EXIF beyond the limit everywhere: it reads that of a JPEG or AVIF when it opens the file."""
    load = Image.Exif.load
    if load.__module__ == __name__:
        return

    def load_small(exif: Image.Exif, data: bytes) -> None:
        load(exif, data if exif_is_small(data or b"") else b"")

    Image.Exif.load = load_small  # type: ignore[assignment]


def first_directory(block: bytes, big: bool = False) -> tuple[int, Iterator[int]]:
    """Return how many entries the first directory states, and the bytes that the value of each one claims.

    Args:
        block: It begins with ``II`` or ``MM``.
        big: Whether it has the wider numbers of BigTIFF.
    """
    order: Literal["little", "big"] = "little" if block[:2] == b"II" else "big"

    def number(position: int, size: int) -> int:
        return int.from_bytes(block[position : position + size], order)

    offset, counted, entry = (8, 8, 20) if big else (4, 2, 12)
    start = number(offset, offset)
    stated, first = number(start, counted), start + counted
    places = range(first, first + entry * min(stated, max(0, len(block) - first) // entry), entry)
    claims = (min(UNITS.get(number(at + 2, 2), 0) * number(at + 4, offset), len(block)) for at in places)
    return stated, claims
