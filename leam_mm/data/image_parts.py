"""The parts of which PNG and GIF files consist, counted before Pillow reads them.

Pillow treats each chunk of a PNG in Python, and joins the comments of a GIF piece by piece, in quadratic time: 12 MB of
empty chunks, or 5 MB of comments, take half a minute. Sources: PNG specification, 5.3; GIF89a, 15 to 26.
"""

MAX_PARTS = 50_000  # chunks of a PNG; encoders write one for some thousand bytes
MAX_BLOCKS = 500_000  # data blocks of a GIF; encoders write one for 255 bytes
MAX_COMMENTS = 200_000  # bytes of the comments of a GIF, with ``OVERHEAD`` for each
COMMENT, OVERHEAD = 0xFE, 20


def parts_fault(content: bytes) -> tuple[int, str] | None:
    """Return number and name of the parts of a PNG or GIF if they are too many, else None.

    Args:
        content: The file; other formats have no fault.
    """
    if content.startswith(b"\x89PNG"):
        return _png_fault(content)
    return _gif_fault(content) if content.startswith(b"GIF8") else None


def _png_fault(content: bytes) -> tuple[int, str] | None:
    position, count = 8, 0
    while position + 12 <= len(content):
        count += 1
        if count > MAX_PARTS:
            return count, "PNG chunks"
        position += 12 + int.from_bytes(content[position : position + 4])
    return None


def _gif_fault(content: bytes) -> tuple[int, str] | None:
    position = 13 + _table(content, 10)
    blocks = comments = 0
    while position < len(content):
        kind, label = content[position], content[position + 1 : position + 2]
        if kind == 0x2C:  # an image: its place, its table of colours, and the width of its codes
            position += 11 + _table(content, position + 9)
        elif kind == 0x21:
            position += 2
        else:
            return None
        comment = kind == 0x21 and label == bytes([COMMENT])
        comments += OVERHEAD * comment
        while position < len(content) and (size := content[position]):
            position += 1 + size
            blocks += 1
            comments += size * comment
        position += 1
        blocks += 1
        if blocks > MAX_BLOCKS:
            return blocks, "GIF blocks"
        if comments > MAX_COMMENTS:
            return comments, "bytes of GIF comments"
    return None


def _table(content: bytes, position: int) -> int:
    """Return the bytes of the table of colours that a packed field announces."""
    packed = content[position] if position < len(content) else 0
    return 3 << ((packed & 7) + 1) if packed & 0x80 else 0
