import struct

from leam_mm.data.exif_size import MOST, exif_is_small


def directory(entries: list[tuple[int, int]]) -> bytes:
    """An EXIF block of a little-endian TIFF whose entries (type, count) all claim the whole block."""
    rows = b"".join(struct.pack("<HHII", 0x9000 + k, kind, count, 8) for k, (kind, count) in enumerate(entries))
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + rows + bytes(4)


def test_entries_are_counted_before_anything_is_read() -> None:
    assert exif_is_small(b"") and exif_is_small(b"no EXIF at all")
    assert exif_is_small(directory([(3, 1)] * 4))
    many = directory([(1, 1 << 30)] * 400)
    assert len(many) * 400 > MOST and not exif_is_small(many)
    for kind in (13, 16):  # types of TIFF and BigTIFF that Pillow reads in EXIF, too
        assert not exif_is_small(directory([(kind, 1 << 27)] * 400))
