import io
import struct

import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from toys.image_bombs import claiming, pointed_exif

from leam_mm.data.exif_size import MOST, bound_directories, exif_is_small

bound_directories()


def directory(entries: list[tuple[int, int]]) -> bytes:
    """An EXIF block of a little-endian TIFF whose entries (type, count) all claim the whole block."""
    rows = b"".join(struct.pack("<HHII", 0x9000 + k, kind, count, 8) for k, (kind, count) in enumerate(entries))
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + rows + bytes(4)


def test_entries_are_counted_before_anything_is_read() -> None:
    assert exif_is_small(b"") and exif_is_small(b"no EXIF at all")
    assert exif_is_small(directory([(3, 1)] * 4))
    assert not exif_is_small(directory([(1, 1 << 30)] * 400))
    for kind in (13, 16):  # types of TIFF and BigTIFF that Pillow reads in EXIF, too
        assert not exif_is_small(directory([(kind, 1 << 27)] * 400))


def test_a_value_that_is_cut_off_claims_what_is_left_of_it() -> None:
    block = directory([(7, 50_000)]) + bytes(100)
    assert exif_is_small(block)
    assert not exif_is_small(directory([(7, 50_000)] * 2) + bytes(100))


def test_numbers_are_fewer_than_bytes_because_each_becomes_an_object() -> None:
    for kind, small in ((7, True), (2, True), (5, False), (4, False), (6, False)):
        assert exif_is_small(directory([(kind, MOST + 8)]) + bytes(8 * MOST)) is small


@pytest.mark.parametrize("pointer", [ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo])
def test_directories_to_which_exif_points_are_bounded(pointer: int) -> None:
    for entries, kept in ((1, 1), (2, 0)):
        exif = Image.Exif()
        exif.load(pointed_exif(pointer, entries, 7, 900) + bytes(900))
        assert exif[ExifTags.Base.Orientation] == 3 and len(exif.get_ifd(pointer)) == kept


@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])  # Pillow reads no other BigTIFF
def test_directories_of_tiff_are_bounded(order: str, big: bool) -> None:
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}H", 43 if big else 42)
    head += struct.pack(f"{order}HHQ", 8, 0, 16) if big else struct.pack(f"{order}I", 8)
    for entries, kept in ((1, 1), (3, 0)):
        rows = claiming(entries, 7, 600, order)
        if big:
            rows = struct.pack(f"{order}Q", entries) + b"".join(
                struct.pack(f"{order}HHQQ", 0x9000 + number, 7, 600, 8) for number in range(entries)
            )
        found = ImageFileDirectory_v2(head)
        stream = io.BytesIO(head + rows + bytes(700))
        stream.seek(len(head))
        found.load(stream)
        assert len(found) == kept
