"""Small image files that ask a decoder for much memory or work."""

import io
import struct
import zlib

from PIL import Image

from toys.images import encoded_image


def built_png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    parts = [head, *chunks, (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    packed = [struct.pack(">I", len(body)) + n + body + struct.pack(">I", zlib.crc32(n + body)) for n, body in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def palette_bomb() -> bytes:
    """About 8 kB: 64 million transparent pixels of one bit."""
    side = 8000
    return built_png(side, side, 1, 3, bytes(side * (side // 8 + 1)), (b"PLTE", bytes(6)), (b"tRNS", b"\x10\x20"))


def gif_bomb() -> bytes:
    """Below 100 bytes: a frame of 89 million pixels that is to be restored to transparent background."""
    frame = b"!\xf9\x04\x09\0\0\0\0" + b"," + struct.pack("<HHHHB", 0, 0, 9400, 9400, 0) + b"\x02\x02\x44\x01\0"
    return b"GIF89a" + struct.pack("<HHBBB", 9400, 9400, 0xF0, 0, 0) + bytes(6) + frame + b";"


def webp_bomb() -> bytes:
    """Below 100 bytes: an extended WebP whose canvas has 16 million x 255 pixels."""
    still = encoded_image(Image.new("RGB", (8, 8)), "WEBP")[12:]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xfe\xff\xff" + b"\xfe\0\0" + still
    return b"RIFF" + struct.pack("<I", len(body)) + body


def scan_bomb() -> bytes:
    """A progressive JPEG that repeats one of its scans."""
    content = encoded_image(Image.new("RGB", (20, 12), "green"), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * (200) + content[-2:]


def listed(entries: list[tuple[int, int, int, int]], order: str = ">") -> bytes:
    """A directory of TIFF: tag, type, count and value or place of each entry."""
    rows = b"".join(struct.pack(order + "HHII", *entry) for entry in entries)
    return struct.pack(order + "H", len(entries)) + rows + bytes(4)


def claiming(entries: int, kind: int, count: int, order: str = ">") -> bytes:
    """A directory whose entries all claim the bytes from the eighth on."""
    return listed([(0x9000 + number, kind, count, 8) for number in range(entries)], order)


def pointed_exif(pointer: int, entries: int, kind: int, count: int) -> bytes:
    """EXIF that turns the image by 180 degrees and points to a directory whose entries overlap."""
    first = listed([(0x0112, 3, 1, 3 << 16), (pointer, 4, 1, 38)])
    return b"MM\0*" + struct.pack(">I", 8) + first + claiming(entries, kind, count)


def images_segment(entries: int, kind: int, count: int) -> bytes:
    """The list of two images of a JPEG, whose further entries overlap."""
    head = struct.pack(">H", entries + 2) + struct.pack(">HHIIHHII", 0xB001, 4, 1, 2, 0xB002, 7, 32, 8)
    rows = claiming(entries, kind, count)[2:]
    block = (b"MPF\0MM\0*" + struct.pack(">I", 8) + head + rows).ljust(65_400, b"\0")
    return b"\xff\xe2" + struct.pack(">H", len(block) + 2) + block


def images_bomb() -> bytes:
    """A JPEG of 66 kB whose list of images claims 320 MB."""
    content = encoded_image(Image.new("RGB", (20, 12), "green"), "JPEG")
    return content[:2] + images_segment(5000, 7, 65_000) + content[2:]


def exif_bomb(kind: str, pointer: int = 0x8769) -> bytes:
    """An image with EXIF that points to a directory; its entries claim hundreds of times the file."""
    entries, count = (3000, 45_000) if kind == "JPEG" else (10_000, 200_000)
    block = pointed_exif(pointer, entries, 7, count).ljust(count + 8, b"\0")
    return encoded_image(Image.new("RGB", (20, 12), "green"), kind, exif=b"Exif\0\0" + block)


def tiff_bomb() -> bytes:
    """A TIFF of 200 kB whose EXIF directory claims 2 GB."""
    buffer = io.BytesIO()
    Image.new("RGB", (20, 12), "green").save(buffer, "TIFF", tiffinfo={0x8769: {0x9000: b"0230"}})
    content = bytearray(buffer.getvalue())
    pointer = content.index(struct.pack("<HHI", 0x8769, 4, 1))
    content[pointer + 8 : pointer + 12] = struct.pack("<I", len(content))
    return (bytes(content) + claiming(10_000, 7, 190_000, "<")).ljust(200_000, b"\0")
