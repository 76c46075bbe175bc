"""Remove from an image file what is not needed to show it and may tell about persons; pixels stay as they are stored.

Removed are EXIF with a position, maker notes, a thumbnail, an owner or serial numbers (EXIF 3.0, 4.6), thumbnails of
JFIF, raw profiles of EXIF in PNG, positions in XMP, and data behind the end of the image. EXIF's orientation and
copyright are kept, and so are colour profiles, IPTC and the rest of XMP. A file with Content Credentials keeps all of
its bytes, because they are signed.
"""

import zlib

from PIL import ExifTags, Image

from data_tools.samples.image_segments import Segment, segments
from leam_mm.data.exif_size import exif_is_small
from leam_mm.data.xmp_positions import without_positions

EXIF, JFIF_THUMBNAIL, RAW_PROFILE = b"Exif\0\0", b"JFXX\0", b"Raw profile type exif\0"
XMP_MARKS = (b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0")  # in a JPEG
XMP_KEYWORD, MAX_PACKET = b"XML:com.adobe.xmp\0", 2_000_000  # in a PNG; bytes
SIGNED = ("APP11", "caBX", "C2PA")  # parts that hold Content Credentials
ENDS = ("D9", "IEND")
KEPT = (ExifTags.Base.Orientation, ExifTags.Base.Copyright)
PRIVATE = {0x8825, 0x927C, 0x9286, *range(0xA430, 0xA436)}  # position, maker note, comment, owner, serial numbers
EXIF_FLAG = 0x08  # of a WebP's VP8X chunk


def strip_private(raw: bytes) -> tuple[bytes, list[str]]:
    """Return a JPEG, PNG or WebP without private metadata, and the names of what was removed, in order.

    A file without any, of another format or with damage is returned as it is.
    """
    parts = segments(raw)
    complete = bool(parts) and (parts[-1].kind in ENDS or raw.startswith(b"RIFF"))
    if not complete or any(part.kind in SIGNED for part in parts):
        return raw, []
    removed: list[str] = []
    pieces, without_exif = [raw[: parts[0].start]], False
    for part in parts:
        content = part.content(raw)
        piece = raw[part.start : part.end]
        if (part.kind == "APP1" and content.startswith(EXIF)) or part.kind in ("eXIf", "EXIF"):
            block = content.removeprefix(EXIF)
            if is_private(block):
                kept = _kept_tags(block)
                piece = _exif_part(part.kind, kept) if kept else b""
                without_exif |= not kept
                removed.append("exif")
        elif part.kind == "APP0" and content.startswith(JFIF_THUMBNAIL):
            piece = b""
            removed.append("thumbnail")
        elif part.kind in ("tEXt", "zTXt", "iTXt") and content.startswith(RAW_PROFILE):
            piece = b""
            removed.append("exif")
        elif (packet := _xmp_packet(part.kind, content)) and (blank := without_positions(packet)) != packet:
            piece = _with_packet(part.kind, raw[part.start : part.end], content, packet, blank)
            removed.append("xmp-position")
        pieces.append(piece)
    if len(raw) > parts[-1].end:
        removed.append("trailing")
    content = b"".join(pieces)
    if removed and raw.startswith(b"RIFF"):
        content = _closed_webp(content, parts[0], without_exif)
    return (content, list(dict.fromkeys(removed))) if removed else (raw, [])


def _xmp_packet(kind: str, content: bytes) -> bytes:
    """Return the XMP packet of a part, or an empty one; compressed ones are read up to ``MAX_PACKET`` bytes."""
    if kind == "XMP ":
        return content
    if kind == "APP1":
        return next((content[len(mark) :] for mark in XMP_MARKS if content.startswith(mark)), b"")
    if kind in ("iTXt", "tEXt", "zTXt") and content.startswith(XMP_KEYWORD):
        text = content[_text_start(kind, content) :]
        if kind == "tEXt" or (kind == "iTXt" and content[len(XMP_KEYWORD)] == 0):
            return text
        try:
            return zlib.decompressobj().decompress(text, MAX_PACKET)
        except zlib.error:
            return b""
    return b""


def _text_start(kind: str, content: bytes) -> int:
    """Return where the text of a PNG chunk begins (PNG, 11.3.4: after flags, language and translated keyword)."""
    start = len(XMP_KEYWORD) + {"iTXt": 2, "tEXt": 0, "zTXt": 1}[kind]
    for _ in range(2 if kind == "iTXt" else 0):
        start = content.find(b"\0", start) + 1 or len(content)
    return start


def _with_packet(kind: str, piece: bytes, content: bytes, packet: bytes, blank: bytes) -> bytes:
    """Return a part with another packet of the same length."""
    if kind in ("XMP ", "APP1"):
        return piece.replace(packet, blank, 1)
    start = _text_start(kind, content)
    text = blank if content[start:] == packet else zlib.compress(blank)
    body = kind.encode() + content[:start] + text
    return (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")


def is_private(block: bytes) -> bool:
    """Return whether an EXIF block says more than how to show the image and whose it is, or cannot be read."""
    tags, following, order = _directory(block, None)
    if following or tags.keys() & PRIVATE:
        return True
    if 0x8769 in tags:  # pointer to the directory of the photograph
        return bool(_directory(block, int.from_bytes(tags[0x8769], order))[0].keys() & PRIVATE)  # type: ignore[arg-type]
    return not tags


def _directory(block: bytes, start: int | None) -> tuple[dict[int, bytes], int, str]:
    """Return the tags of a directory with the four bytes of their values, the next directory, and the byte order."""
    order = {b"II": "little", b"MM": "big"}.get(block[:2], "")
    if not order:
        return {}, 0, ""

    def number(position: int, size: int) -> int:
        return int.from_bytes(block[position : position + size], order)  # type: ignore[arg-type]

    start = number(4, 4) if start is None else start
    entries = min(number(start, 2), max(0, len(block) - start) // 12)
    places = [start + 2 + 12 * entry for entry in range(entries)]
    tags = {number(place, 2): block[place + 8 : place + 12] for place in places}
    return tags, number(start + 2 + 12 * entries, 4), order


def _kept_tags(block: bytes) -> bytes:
    """Return an EXIF block of the tags that are kept, with its mark; empty without any."""
    exif, kept = Image.Exif(), Image.Exif()
    try:
        if exif_is_small(block):
            exif.load(EXIF + block)
            for tag in KEPT:
                if tag in exif:
                    kept[tag] = exif[tag]
        return kept.tobytes() if len(kept) else b""
    except Exception:  # Pillow raises many kinds on damaged blocks
        return b""


def _exif_part(kind: str, content: bytes) -> bytes:
    if kind == "APP1":
        return b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content
    content = content.removeprefix(EXIF)
    if kind == "eXIf":
        body = b"eXIf" + content
        return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return b"EXIF" + len(content).to_bytes(4, "little") + content + bytes(len(content) % 2)


def _closed_webp(content: bytes, first: Segment, without_exif: bool) -> bytes:
    """Correct the length of a WebP, and the flag that announces EXIF."""
    changed = bytearray(content)
    changed[4:8] = (len(content) - 8).to_bytes(4, "little")
    if without_exif and first.kind == "VP8X":
        changed[first.body] &= ~EXIF_FLAG
    return bytes(changed)
