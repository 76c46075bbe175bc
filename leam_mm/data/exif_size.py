"""Bound the work of reading EXIF or TIFF: each entry of a directory may claim the whole block again.

Pillow copies the values of all entries: an eXIf chunk of 1 MB with 65,535 entries (EXIF 3.0, 4.6.2; TIFF 6.0, section
2) would take 65 GB. It reads directories of one form in EXIF and in those that EXIF points to, in TIFF and its pages,
and in the list of images of a JPEG (CIPA DC-007), some of them while it opens the file. Their common reader is bounded.
"""

import io
from collections.abc import Iterator
from typing import IO, Literal

from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

UNITS = {
    **{1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4},
    **{16: 8, 17: 8, 18: 8},  # of BigTIFF, which Pillow reads in EXIF, too
}  # bytes of a value by its type
TEXTS = (1, 2, 7)  # types of bytes and text; each value of the others becomes an object of up to 600 bytes
MOST = 1_000_000  # bytes of all values that are no text
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
    """Return whether the first directory keeps the limits; a block that is no EXIF does."""
    while block.startswith(b"Exif\0\0"):  # as Pillow does
        block = block[6:]
    return block[:2] not in (b"II", b"MM") or _is_small(len(block), first_directory(block)[1])


def bound_directories() -> None:
    """Let Pillow read an empty directory in place of one beyond the limits, everywhere; no valid file has one."""
    load = ImageFileDirectory_v2.load
    if load.__module__ == __name__:
        return

    def load_small(directory: ImageFileDirectory_v2, fp: IO[bytes]) -> None:
        start, length = fp.tell(), fp.seek(0, io.SEEK_END)
        _, claims = _directory(fp, start, length, "little" if directory.prefix == b"II" else "big", directory._bigtiff)
        small = _is_small(length, claims)
        fp.seek(start)
        load(directory, fp if small else io.BytesIO(bytes(16)))

    ImageFileDirectory_v2.load = load_small  # type: ignore[assignment]


def first_directory(block: bytes, big: bool = False) -> tuple[int, Iterator[tuple[int, int]]]:
    """Return how many entries the first directory states, and the type and size in bytes of the value of each one.

    Args:
        block: It begins with ``II`` or ``MM``.
        big: Whether it has the wider numbers of BigTIFF.
    """
    order: Literal["little", "big"] = "little" if block[:2] == b"II" else "big"
    start = int.from_bytes(block[8:16] if big else block[4:8], order)
    return _directory(io.BytesIO(block), start, len(block), order, big)


def _is_small(length: int, claims: Iterator[tuple[int, int]]) -> bool:
    """Return whether values overlap so little that all fit into the block, and few are objects."""
    total = objects = 0
    for kind, size in claims:
        total += size
        objects += size * (kind not in TEXTS)
    return total <= length and objects <= MOST


def _directory(
    fp: IO[bytes], start: int, length: int, order: Literal["little", "big"], big: bool
) -> tuple[int, Iterator[tuple[int, int]]]:
    counted, width, entry = (8, 8, 20) if big else (2, 4, 12)
    fp.seek(min(start, length))
    stated = int.from_bytes(fp.read(counted), order)
    listed = fp.read(entry * min(stated, length // entry))

    def number(position: int, size: int) -> int:
        return int.from_bytes(listed[position : position + size], order)

    def claims() -> Iterator[tuple[int, int]]:
        for at in range(0, len(listed) - entry + 1, entry):
            kind = number(at + 2, 2)
            size = UNITS.get(kind, 0) * number(at + 4, width)
            place = number(at + 4 + width, width) if size > width else 0
            yield kind, min(size, max(0, length - place))

    return stated, claims()
