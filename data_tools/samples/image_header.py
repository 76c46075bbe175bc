"""Format and size of an image from the first bytes of its file, without a decoder: JPEG, PNG and WebP."""

START_OF_FRAME = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # markers (ITU-T T.81, table B.1)
WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
OTHERS = (
    (b"GIF8", 0, "gif"),
    (b"BM", 0, "bmp"),
    (b"II*\0", 0, "tiff"),
    (b"MM\0*", 0, "tiff"),
    (b"ftypavif", 4, "avif"),
    (b"ftypheic", 4, "heic"),
    (b"\xff\x0a", 0, "jxl"),
    (b"JXL ", 4, "jxl"),
    (b"<", 0, "text"),
    (b"{", 0, "text"),
)


def image_header(content: bytes) -> tuple[str, int, int] | None:
    """Return ``jpg``, ``png`` or ``webp``, width and height; None for all else, and for a damaged header.

    A JPEG's size is as stored, before a rotation that its EXIF may ask for.
    """
    if content[:2] == b"\xff\xd8":
        size = _jpeg(content)
        found = None if size is None else ("jpg", *size)
    elif content[:8] == b"\x89PNG\r\n\x1a\n" and content[12:16] == b"IHDR":
        found = ("png", int.from_bytes(content[16:20]), int.from_bytes(content[20:24]))
    elif content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        size = _webp(content)
        found = None if size is None else ("webp", *size)
    else:
        return None
    return found if found is not None and found[1] > 0 and found[2] > 0 else None


def other_format(content: bytes) -> str | None:
    """Return the name of a format that shards do not hold, if the file begins like one."""
    return next((name for start, at, name in OTHERS if content[at : at + len(start)] == start), None)


def _jpeg(content: bytes) -> tuple[int, int] | None:
    position, end = 2, len(content)
    while position + 9 <= end and content[position] == 0xFF:
        marker = content[position + 1]
        if marker in START_OF_FRAME:
            return int.from_bytes(content[position + 7 : position + 9]), int.from_bytes(
                content[position + 5 : position + 7]
            )
        if marker == 0xFF:  # padding
            position += 1
        elif marker in WITHOUT_LENGTH:
            position += 2
        else:
            position += 2 + max(2, int.from_bytes(content[position + 2 : position + 4]))
    return None


def _webp(content: bytes) -> tuple[int, int] | None:
    """Parse RFC 9649, sections 2.5 to 2.7."""
    kind, data = content[12:16], content[20:30]
    if len(data) < 10:
        return None
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[4:7], "little"), 1 + int.from_bytes(data[7:10], "little")
    if kind == b"VP8 " and data[3:6] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (6, 8))
        return width, height
    if kind == b"VP8L" and data[0] == 0x2F:
        bits = int.from_bytes(data[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return None
