"""Image files that ask a decoder for memory or work, or hide a reservation in unusual forms of metadata."""

import io
import random
import struct
import zlib
from functools import lru_cache

from PIL import Image

RESERVED = (
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
    'xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/" plus:DataMining="DMI-PROHIBITED"/></rdf:RDF>'
)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk with length and checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@lru_cache
def blank(kind: str, mode: str, width: int, height: int, **options: object) -> bytes:
    """A file of one colour."""
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, kind, **options)
    return buffer.getvalue()


def _animated(frames: int, kind: str) -> bytes:
    images = [Image.new("L", (4, 4), number % 256) for number in range(frames)]
    buffer = io.BytesIO()
    images[0].save(buffer, kind, save_all=True, append_images=images[1:])
    return buffer.getvalue()


@lru_cache
def _frames(kind: str) -> bytes:
    return _animated(200, kind)


def _scans(jpeg: bytes, count: int) -> bytes:
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:last] + jpeg[last:-2] * count + jpeg[-2:]


@lru_cache
def _compressed(elements: int) -> bytes:
    return zlib.compress(b"<rdf:RDF xmlns:rdf='urn:x'>" + b"<a/>" * elements + b"</rdf:RDF>", 9)


def _directory(entries: int) -> bytes:
    """EXIF whose entries all claim the whole block."""
    size = 2 + 12 * entries
    listed = (
        number.to_bytes(2, "little") + b"\1\0" + size.to_bytes(4, "little") + bytes(4) for number in range(entries)
    )
    return b"II*\0" + (8).to_bytes(4, "little") + entries.to_bytes(2, "little") + b"".join(listed)


def _pointing(pointer: int, entries: int, length: int) -> bytes:
    """EXIF that turns the image and points to a directory of values that overlap."""
    first = struct.pack("<HHHIIHHIII", 2, 0x0112, 3, 1, 3, pointer, 4, 1, 38, 0)
    listed = (struct.pack("<HHII", 0x9000 + number, 7, length - 100, 8) for number in range(entries))
    block = b"II*\0" + struct.pack("<I", 8) + first + entries.to_bytes(2, "little") + b"".join(listed)
    return block.ljust(length, b"\0")


def _images(entries: int) -> bytes:
    """The list of two images of a JPEG (CIPA DC-007) with further values that overlap."""
    head = struct.pack("<HHHIIHHII", entries + 2, 0xB001, 4, 1, 2, 0xB002, 7, 32, 8)
    listed = (struct.pack("<HHII", 0x9000 + number, 7, 65_000, 8) for number in range(entries))
    return (b"MPF\0II*\0" + struct.pack("<I", 8) + head + b"".join(listed)).ljust(65_400, b"\0")


def _comments(comment: bytes, count: int) -> bytes:
    """A GIF with comments before its image."""
    gif = blank("GIF", "P", 4, 4)
    start = 13 + (3 << ((gif[10] & 7) + 1)) * (gif[10] >> 7)
    return gif[:start] + comment * count + gif[start:]


def image_cases(number: int, jpeg: bytes, png: bytes) -> list[tuple[str, str, bytes]]:
    """Name, rules that fit, and file of each case; ``jpeg`` and ``png`` are good images of the same number."""
    chance = random.Random(number)
    front, side = png[:33], chance.randrange(2850, 2950)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return front + png_chunk(kind, content) + png[33:]

    def segment(marker: bytes, content: bytes) -> bytes:
        return jpeg[:2] + b"\xff" + marker + struct.pack(">H", len(content) + 2) + content + jpeg[2:]

    profile = f"\nxmp\n{len(RESERVED):8}\n{RESERVED.encode().hex()}\n".encode()
    webp = blank("WEBP", "RGB", 8, 8)[12:]
    canvas = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xfe\xff\xff" + bytes([number % 200 + 50, 0, 0]) + webp
    doctype = RESERVED.replace("<rdf:RDF", "<!DOCTYPE x [<!ENTITY a 'b'>]><rdf:RDF", 1)
    progressive = blank("JPEG", "RGB", 16, 16, progressive=True)
    found = [
        ("one bit and a palette that fills the limit", "kept", blank("PNG", "P", 2900, 2900, bits=1)),
        ("GIF that fills the memory", "memory", blank("GIF", "P", 2900, 2900)),
        ("WebP that fills the memory", "memory", blank("WEBP", "RGB", side // 50 * 50, 2900)),
        ("progressive JPEG that fills the memory", "memory", blank("JPEG", "RGB", 2900, 2900, progressive=True)),
        ("JPEG of hundreds of scans", "scans", _scans(progressive, chance.randrange(200, 400))),
        ("GIF of 200 frames", "kept", _frames("GIF")),
        ("APNG of 200 frames", "kept", _frames("PNG")),
        ("WebP of 200 frames", "kept", _frames("WEBP")),
        ("WebP of a huge canvas", "pixels", b"RIFF" + struct.pack("<I", len(canvas)) + canvas),
        ("150 compressed packets after the end", "reservation", png + 150 * png_chunk(
            b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + _compressed(chance.choice((100_000, 300_000, 470_000))))),
        ("EXIF whose entries overlap", "kept", chunk(b"eXIf", _directory(chance.randrange(20_000, 60_000)))),
        ("EXIF that points to overlapping values", "kept", chunk(
            b"eXIf", _pointing(0x8769, chance.randrange(5_000, 10_000), 200_000))),
        ("position of overlapping values", "kept", segment(
            b"\xe1", b"Exif\0\0" + _pointing(0x8825, chance.randrange(3_000, 5_000), 65_000))),
        ("list of images of overlapping values", "kept", segment(b"\xe2", _images(chance.randrange(1_000, 5_000)))),
        ("EXIF that is none", "kept", segment(b"\xe1", b"Exif\0\0" + chance.randbytes(200))),
        ("colour profile bomb", "decode", chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(30_000_000), 9))),
        ("colour profile of garbage", "kept", chunk(b"iCCP", b"x\0\0" + zlib.compress(chance.randbytes(300)))),
        ("reserved in UTF-16", "reservation", segment(b"\xe1", RESERVED.encode("utf-16"))),
        ("reserved in UTF-32", "reservation", segment(b"\xfe", RESERVED.encode("utf-32-be"))),
        ("reserved in a raw profile", "reservation", chunk(b"tEXt", b"Raw profile type xmp\0" + profile)),
        ("reserved in a compressed profile", "reservation", chunk(
            b"zTXt", b"Raw profile type xmp\0\0" + zlib.compress(profile))),
        ("reserved in the 40th packet", "reservation", jpeg + b"".join(
            b"<a:RDF xmlns:a='urn:x'></a:RDF>" for _ in range(39)) + RESERVED.encode()),
        ("reserved under a long prefix", "reservation", segment(
            b"\xe1", RESERVED.replace("rdf:", "r" * 90 + ":").replace("xmlns:rdf", "xmlns:" + "r" * 90).encode())),
        ("reserved in a text chunk", "reservation", chunk(b"tEXt", b"Copyright\0no text and data mining")),
        ("reserved in bare IPTC", "reservation", segment(b"\xed", b"\x1c\x02\x74\0\x0eNo data mining")),
        ("reserved beside entities", "reservation", segment(b"\xe1", doctype.encode())),
        ("GPS and data behind the end", "kept", jpeg + chance.randbytes(500)),
        ("1,000 comments", "kept", jpeg[:2] + (b"\xff\xfe\0\4ab") * 1000 + jpeg[2:]),
        ("PNG of 60,000 chunks", "parts", front + png_chunk(b"raNd", b"") * 60_000 + png[33:]),
        ("GIF of 200,000 comments", "parts", _comments(b"!\xfe\1a\0", 200_000)),
        ("GIF of one comment of a megabyte", "parts bytes", _comments(
            b"!\xfe" + (b"\xff" + bytes(255)) * chance.randrange(4_000, 7_000) + b"\0", 1)),
        ("polyglot of PNG and HTML", "kept", png + b"<script>alert(1)</script>"),
    ]  # fmt: skip
    for kind in ("ICO", "PPM", "TGA", "PCX", "DDS", "IM", "SGI", "JPEG2000"):
        found.append((f"{kind} as JPEG", "decode", blank(kind, "RGB", 16, 16)))
    return found + _rarer_formats(chance) + _drawings(chance)


def _rarer_formats(chance: random.Random) -> list[tuple[str, str, bytes]]:
    """TIFF and AVIF, honest and dishonest."""
    tiff, avif = blank("TIFF", "RGB", 16, 16), blank("AVIF", "RGB", 16, 16)
    start = int.from_bytes(
        tiff[4:8], "little"
    )  # of the directory; the address of the next one stands behind its entries
    entries = int.from_bytes(tiff[start : start + 2], "little")
    behind = start + 2 + 12 * entries
    return [
        ("TIFF", "kept", tiff),
        ("TIFF whose directory follows itself", "kept decode", tiff[:behind] + tiff[4:8] + tiff[behind + 4 :]),
        ("TIFF whose tags claim all", "tags", tiff[:start] + _directory(chance.randrange(5_000, 60_000))[8:]),
        ("TIFF of 200 pages", "kept", _frames("TIFF")),
        ("TIFF that fills the memory", "memory", blank("TIFF", "RGB", 2900, 2900, compression="tiff_adobe_deflate")),
        ("TIFF beyond the pixels", "pixels", blank("TIFF", "1", 20_000, 20_000, compression="group4")),
        ("TIFF cut short", "decode", tiff[: chance.randrange(9, len(tiff) - 200)]),
        ("AVIF", "kept", avif),
        ("AVIF that fills the memory", "memory", blank("AVIF", "RGB", 2900, 2900, speed=10)),
        ("AVIF of 200 frames", "kept", _frames("AVIF")),
        ("AVIF cut short", "decode", avif[: chance.randrange(40, len(avif) - 8)]),
    ]


def _drawings(chance: random.Random) -> list[tuple[str, str, bytes]]:
    """SVG files that ask for files, addresses, memory or time."""
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:x="http://www.w3.org/1999/xlink" width="9" height="9">'
    laughs = "".join(f'<!ENTITY a{i + 1} "{f"&a{i};" * 10}">' for i in range(8))
    uses = "".join(f'<g id="b{i + 1}">{f"""<use x:href="#b{i}"/>""" * 10}</g>' for i in range(chance.randrange(8, 12)))
    side = chance.randrange(10**5, 10**9)
    huge, blur = head.replace('"9"', f'"{side}"'), f'<feGaussianBlur stdDeviation="{side}"/>'
    drawings = {
        "of a local file": f'{head}<image x:href="file:///etc/passwd"/>',
        "of an address": f'{head}<image href="http://169.254.169.254/latest" width="9" height="9"/>',
        "of entities": f'<!DOCTYPE svg [<!ENTITY a0 "ha">{laughs}]>{head}<text>&a8;</text>',
        "of copies of copies": f'{head}<rect id="b0" width="1" height="1"/>{uses}',
        "of a huge canvas": f'{huge}<rect width="9" height="9"/>',
        "of a huge blur": f'{head}<filter id="f">{blur}</filter><rect filter="url(#f)"/>',
        "of depth": head + "<g>" * 50_000,
    }
    return [(f"SVG {name}", "kept decode svg seconds", (text + "</svg>").encode()) for name, text in drawings.items()]
