"""Find the metadata of an image file that may speak of rights: XMP packets, IPTC records, EXIF and texts of PNG.

XMP packets are searched anywhere in the file (XMP specification part 3), in any encoding of Unicode; in extended XMP of
JPEG, which is split over segments; in compressed text of PNG (PNG specification, 11.3.3), also after its end; and in
the raw profiles that ImageMagick and ExifTool write as hexadecimal text. All of it shares one budget: what does not fit
is not read, and the file counts as unreadable.
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from data_tools.samples.image_segments import segments

MOST_BYTES = 2_000_000  # of all packets and texts of a file, after expansion
OVERHEAD = 200  # bytes that a packet costs in addition, for its parser
WINDOW = 4_000  # bytes before the word RDF in which its packet begins, in encodings other than UTF-8
EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"  # followed by 32 bytes of GUID, length and offset
PROFILE = "raw profile type "
TEXTS = ("copyright", "disclaimer", "comment", "description", "licence", "license", "rights", "usage terms", "warning")
IPTC = {0x28: "iptc:instructions", 0x74: "iptc:copyright"}  # data sets 2:40 and 2:116 of IIM 4.2
ENCODINGS = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
_ANY_RDF = re.compile(rb"R(?:DF|\0D\0F|\0{3}D\0{3}F)")  # the word in UTF-8, and in all of ENCODINGS
_RDF = re.compile(rb"<((?:[^\s<>/:=\"'&]{1,1000}:)?)RDF[\s>]")
_OPENING = re.compile(_RDF.pattern.decode())
_RECORD = re.compile(rb"\x1c\x02([\x28\x74])([\x00-\x7f].)", re.DOTALL)


@dataclass
class Metadata:
    """What was found.

    Args:
        packets: RDF of each XMP packet, UTF-8.
        notes: Kind and text of each other statement.
        left: Bytes of the budget that are left.
        over: Whether something did not fit into the budget.
    """

    packets: list[bytes] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    left: int = MOST_BYTES
    over: bool = False

    def take(self, size: int) -> bool:
        """Take bytes out of the budget; return False if they exceed it."""
        self.left -= size
        self.over |= self.left < 0
        return self.left >= 0

    def add_packets(self, raw: bytes) -> None:
        """Add the packets in some bytes."""
        for packet in _packets(raw):
            if not self.take(len(packet) + OVERHEAD):
                return
            self.packets.append(packet)

    def add_records(self, block: bytes) -> None:
        """Add the IPTC records in a metadata block, whether a Photoshop resource frames them or not."""
        for record in _RECORD.finditer(block):
            size = int.from_bytes(record[2])
            if not self.take(size):
                return
            self.notes.append(
                (IPTC[record[1][0]], block[record.end() : record.end() + size].decode("utf-8", "replace"))
            )


def read_metadata(raw: bytes) -> Metadata:
    """Read the metadata of a file.

    Args:
        raw: The image file as it was fetched, of any size.
    """
    found = Metadata()
    if _ANY_RDF.search(raw):
        found.add_packets(raw)
        _add_encoded(found, raw)
    if raw.startswith(b"\x89PNG"):
        _add_png(found, raw)
    elif raw.startswith(b"\xff\xd8"):
        extension: dict[bytes, list[tuple[int, bytes]]] = {}
        for segment in segments(raw):
            if segment.kind == "APP1" and raw.startswith(EXTENSION, segment.body):
                content = segment.content(raw)[len(EXTENSION) :]
                extension.setdefault(content[:32], []).append((int.from_bytes(content[36:40]), content[40:]))
            elif segment.kind == "APP13":
                found.add_records(segment.content(raw))
        for parts in extension.values():
            if len(parts) > 1:  # a single part was found above
                found.add_packets(b"".join(part for _, part in sorted(parts)))
    return found


def _packets(raw: bytes) -> Iterator[bytes]:
    """Yield the RDF of each XMP packet."""
    position = 0
    while b"RDF" in raw and (begin := _RDF.search(raw, position)) is not None:
        close = b"</" + begin[1] + b"RDF>"
        end = raw.find(close, begin.end())
        # A packet without an end, or too long, is passed on as it is; the parser will call it unreadable.
        position = min(end + len(close) if end >= 0 else len(raw), begin.start() + MOST_BYTES)
        yield raw[begin.start() : position]


def _add_encoded(found: Metadata, raw: bytes) -> None:
    """Add packets in other encodings than UTF-8.

    A packet also looks like one of the other byte order that begins a byte later and has no end: of overlapping
    packets, those without an end count only if none has one.
    """
    whole: list[tuple[int, int, str]] = []
    open_ended: list[tuple[int, int, str]] = []
    for encoding in ENCODINGS:
        word, position = "RDF".encode(encoding), 0
        while (at := raw.find(word, position)) >= 0:
            position = at + len(word)
            if not found.take(OVERHEAD):
                return
            start = at - min(at, WINDOW) // 4 * 4
            before = raw[start : position + 4].decode(encoding, "replace")
            openings = list(_OPENING.finditer(before))
            if not openings:
                continue
            first = start + len(before[: openings[-1].start()].encode(encoding, "replace"))
            close = f"</{openings[-1][1]}RDF>".encode(encoding, "replace")
            end = raw.find(close, position)
            position = min(end + len(close) if end >= 0 else len(raw), first + 2 * MOST_BYTES)
            (whole if end >= 0 else open_ended).append((first, position, encoding))
    alone = [cut for cut in open_ended if not any(first <= cut[0] + 3 and cut[0] <= end for first, end, _ in whole)]
    for first, end, encoding in whole + alone:
        if not found.take(end - first):
            return
        found.packets.append(raw[first:end].decode(encoding, "replace").encode("utf-8", "replace"))


def _add_png(found: Metadata, raw: bytes) -> None:
    """Add texts of a PNG by their keywords: XMP, raw profiles, and statements; chunks after its end count, too."""
    position = 8
    while position + 12 <= len(raw) and not found.over:
        size, kind = int.from_bytes(raw[position : position + 4]), raw[position + 4 : position + 8]
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            body = raw[position + 8 : position + 8 + size]
            keyword = body[:80].partition(b"\0")[0].decode("latin-1").strip().casefold()
            compressed = kind == b"zTXt" or (kind == b"iTXt" and body[len(keyword) + 1 : len(keyword) + 2] == b"\1")
            wanted = keyword == "xml:com.adobe.xmp" and compressed
            if wanted or keyword.startswith(PROFILE) or keyword in TEXTS:
                _add_text(found, kind, keyword, body, compressed)
        position += 12 + size


def _add_text(found: Metadata, kind: bytes, keyword: str, body: bytes, compressed: bool) -> None:
    rest = body.partition(b"\0")[2]
    if kind == b"iTXt":
        rest = rest[2:].split(b"\0", 2)[-1]
    elif kind == b"zTXt":
        rest = rest[1:]
    if compressed:
        try:
            rest = zlib.decompressobj().decompress(rest, max(1, found.left + 1))
        except zlib.error:
            if keyword not in TEXTS:
                found.packets.append(b"<rdf:RDF >DataMining")  # unreadable text may hold a reservation
            return
    if not found.take(len(rest) + OVERHEAD):
        return
    if keyword.startswith(PROFILE):
        lines = rest.decode("latin-1").split("\n")
        try:
            block = bytes.fromhex("".join(lines[3:]))
        except ValueError:
            found.packets.append(b"<rdf:RDF >DataMining")
            return
        found.add_packets(block)
        found.add_records(block)
    elif keyword in TEXTS:
        found.notes.append((f"png:{keyword}", rest.decode("utf-8", "replace")))
    else:
        found.add_packets(rest)
