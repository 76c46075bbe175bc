"""The parts of JPEG, PNG and WebP files: where metadata lies, and where the file ends for a decoder.

JPEG: ITU-T T.81, annex B; PNG: third edition, section 5; WebP: RFC 9649.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # a marker other than the restart markers within a scan
WITHOUT_LENGTH = (0x01, 0xD8)  # markers of JPEG that stand alone
END_OF_IMAGE, START_OF_SCAN = 0xD9, 0xDA


@dataclass(frozen=True)
class Segment:
    """A part of an image file.

    Args:
        kind: ``APP0`` to ``APP15`` or ``COM`` of a JPEG, else its marker in hex; the name of a chunk of PNG or WebP.
        start: Position of its first byte.
        end: Position after its last byte, padding and checksum included.
        body: Position of its content.
        size: Bytes of its content.
    """

    kind: str
    start: int
    end: int
    body: int
    size: int

    def content(self, raw: bytes) -> bytes:
        """Return its content."""
        return raw[self.body : self.body + self.size]


def segments(raw: bytes) -> list[Segment]:
    """Return the parts of a file up to its end as decoders see it; fewer if it is damaged, none of another format."""
    if raw.startswith(b"\xff\xd8"):
        return list(_jpeg(raw))
    if raw.startswith(b"\x89PNG\r\n\x1a\n"):
        return list(_png(raw))
    if raw[:4] == b"RIFF" and raw[8:12] == b"WEBP":
        return list(_webp(raw))
    return []


def _jpeg(raw: bytes) -> Iterator[Segment]:
    position = 2
    while position + 2 <= len(raw) and raw[position] == 0xFF:
        marker = raw[position + 1]
        if marker == 0xFF:  # padding
            position += 1
            continue
        if marker == END_OF_IMAGE:
            yield Segment("D9", position, position + 2, position + 2, 0)
            return
        length = 0 if marker in WITHOUT_LENGTH else int.from_bytes(raw[position + 2 : position + 4])
        end = position + 2 + length
        if end > len(raw) or 0 < length < 2:
            return
        if marker == START_OF_SCAN:  # with its data, which ends at the next marker
            following = MARKER.search(raw, end)
            end = following.start() if following else len(raw)
        kind = f"APP{marker - 0xE0}" if 0xE0 <= marker <= 0xEF else "COM" if marker == 0xFE else f"{marker:02X}"
        yield Segment(kind, position, end, position + 4, max(0, length - 2))
        position = end


def _png(raw: bytes) -> Iterator[Segment]:
    position = 8
    while position + 12 <= len(raw):
        size, kind = int.from_bytes(raw[position : position + 4]), raw[position + 4 : position + 8]
        end = position + 12 + size
        if end > len(raw):
            return
        yield Segment(kind.decode("latin-1"), position, end, position + 8, size)
        if kind == b"IEND":
            return
        position = end


def _webp(raw: bytes) -> Iterator[Segment]:
    position, last = 12, min(len(raw), 8 + int.from_bytes(raw[4:8], "little"))
    while position + 8 <= last:
        size = int.from_bytes(raw[position + 4 : position + 8], "little")
        end = position + 8 + size + size % 2
        if end > last:
            return
        yield Segment(raw[position : position + 4].decode("latin-1"), position, end, position + 8, size)
        position = end
