"""Small images: coloured squares, smooth random images, and files with profiles, orientations or 16 bits."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "yellow": (220, 200, 40)}


GERMAN = {"red": "rot", "green": "grün", "blue": "blau", "yellow": "gelb"}


def coloured_square(colour: str, seed: int, size: int = 16) -> bytes:
    """A PNG of a coloured square at a random position on white."""
    generator = np.random.default_rng(seed)
    pixels = np.full((size, size, 3), 250, np.uint8)
    top, left = generator.integers(0, size // 2, 2)
    pixels[top : top + size // 2, left : left + size // 2] = COLOURS[colour]
    return encoded_image(Image.fromarray(pixels))


def encoded_image(image: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def two_coloured_image(width: int = 40, height: int = 24) -> Image.Image:
    """Blue with a red upper left corner, which shows its orientation."""
    pixels = np.full((height, width, 3), (20, 60, 200), np.uint8)
    pixels[: height // 2, : width // 2] = (220, 30, 30)
    return Image.fromarray(pixels)


def rotated_jpeg() -> bytes:
    """A JPEG whose EXIF orientation turns it by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to show it
    return encoded_image(two_coloured_image(), "JPEG", quality=95, exif=exif)


def deep_png(channels: int, value: int) -> bytes:
    """A 16-bit PNG of one value, 8 x 8 pixels, built by hand: Pillow does not write 16-bit RGB."""
    row = b"\0" + struct.pack(">H", value) * 8 * channels
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, {1: 0, 3: 2}[channels], 0, 0, 0))]
    parts += [(b"IDAT", zlib.compress(row * 8)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(body)) + n + body + struct.pack(">I", zlib.crc32(n + body)) for n, body in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


SRGB = np.array([[0.43607, 0.22249, 0.01392], [0.38515, 0.71687, 0.09708], [0.14307, 0.06061, 0.71410]])


# Primaries adapted to D50: Adobe RGB (1998), annex of its encoding; Display P3 and sRGB by the same (Bradford) way.
ADOBE = np.array([[0.60974, 0.31111, 0.01947], [0.20528, 0.62567, 0.06087], [0.14919, 0.06322, 0.74457]])


def matrix_profile(primaries: np.ndarray, gamma: float, name: str) -> bytes:
    """An ICC profile of three primaries (rows: XYZ for D50) and one gamma (ICC.1:2022, section 8.3), built by hand."""

    def fixed(values: np.ndarray) -> bytes:
        return struct.pack(f">{len(values)}i", *np.rint(np.asarray(values) * 65536).astype(int))

    text = name.encode("utf-16-be")
    tags = {b"desc": b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text}
    tags |= {b"cprt": tags[b"desc"], b"wtpt": b"XYZ " + bytes(4) + fixed(np.array([0.9642, 1.0, 0.8249]))}
    for letter, row in zip(b"rgb", primaries, strict=True):
        tags[bytes([letter]) + b"XYZ"] = b"XYZ " + bytes(4) + fixed(row)
        tags[bytes([letter]) + b"TRC"] = b"para" + bytes(4) + struct.pack(">HH", 0, 0) + fixed(np.array([gamma]))
    table, body, offset = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for signature, content in tags.items():
        padded = content + bytes(-len(content) % 4)
        table += signature + struct.pack(">II", offset + len(body), len(content))
        body += padded
    head = struct.pack(">I4sI4s4s4s", offset + len(body), bytes(4), 0x04300000, b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + fixed(np.array([0.9642, 1.0, 0.8249]))
    return head.ljust(128, b"\0") + table + body


def in_space(colours: np.ndarray, primaries: np.ndarray, gamma: float) -> np.ndarray:
    """Convert sRGB colours, (N, 3) uint8, to the pixel values of the same colours in another space."""
    value = colours / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return np.rint(255 * np.clip(linear @ SRGB @ np.linalg.inv(primaries), 0, 1) ** (1 / gamma)).astype(np.uint8)


def soft_image(seed: int, size: int = 80) -> Image.Image:
    """A smooth image with enough edges for PDQ; each seed gives another image."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def blank_png(mode: str = "RGB", size: tuple[int, int] = (8, 6)) -> bytes:
    """A black PNG."""
    return encoded_image(Image.new(mode, size))


def soft_jpeg(seed: int, size: tuple[int, int] = (72, 64), kind: str = "JPEG", **settings: Any) -> bytes:
    """An image file of soft patches; each seed gives another image."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (20, 20, 3)).astype(np.uint8))
    return encoded_image(coarse.resize(size, Image.Resampling.BICUBIC), kind, **settings)
