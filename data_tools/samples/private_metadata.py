"""Remove from an image file what is not needed to show it and may tell about persons; pixels stay as they are stored.

Removed are EXIF with a position, maker notes, a thumbnail, an owner or serial numbers (EXIF 3.0, 4.6), thumbnails of
JFIF, raw profiles of EXIF in PNG, and data behind the end of the image. EXIF's orientation and copyright are kept, and
so are colour profiles, XMP and IPTC. A file with Content Credentials keeps all of its bytes, because they are signed.
"""

import zlib

from PIL import ExifTags, Image

from data_tools.samples.image_segments import Segment, segments
from leam_mm.data.exif_size import exif_is_small

EXIF, JFIF_THUMBNAIL, RAW_PROFILE = b"Exif\0\0", b"JFXX\0", b"Raw profile type exif\0"
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
        pieces.append(piece)
    if len(raw) > parts[-1].end:
        removed.append("trailing")
    content = b"".join(pieces)
    if removed and raw.startswith(b"RIFF"):
        content = _closed_webp(content, parts[0], without_exif)
    return (content, list(dict.fromkeys(removed))) if removed else (raw, [])


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
