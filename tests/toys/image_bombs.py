"""Small image files that ask a decoder for much memory or work."""

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
