"""PDQ, the 256-bit hash of how a picture looks: copies of a picture have hashes that differ in few bits.

Davis and Rosen, "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm", 2019. Unrelated pictures
differ in 128 bits on average, a re-encoded copy in under ten; 31 is the usual border. ``quality`` in [0, 100] sums the
picture's gradients: below 50 the hash of a nearly flat picture is made of its noise, and unrelated ones collide. The
written form, 64 hex digits with the first bit first, is that of the shared lists.
"""

import numpy as np
import pdqhash
from PIL import Image

BYTES = 32
BITS = 8 * BYTES
TRANSFORMS = (
    "identity",
    "rotate90",
    "rotate180",
    "rotate270",
    "flip_vertical",
    "flip_horizontal",
    "transpose",
    "transverse",
)
LARGEST = 512  # sides above are brought to it first, as in the authors' own program (pdqio.cpp)


def _prepared(pixels: np.ndarray) -> np.ndarray:
    """The array as the library wants it: (H, W, 3) uint8, no side above LARGEST."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise ValueError(f"PDQ takes (H, W, 3) uint8 with no empty side, not {pixels.shape} {pixels.dtype}")
    height, width = pixels.shape[:2]
    if max(height, width) > LARGEST:
        size = min(width, LARGEST), min(height, LARGEST)
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX, reducing_gap=2.0))
    return np.ascontiguousarray(pixels)


def pdq(pixels: np.ndarray) -> tuple[np.ndarray, int]:
    """Hash one picture.

    Args:
        pixels: (H, W, 3) uint8, RGB; any size.

    Returns:
        The hash, (32,) uint8, most significant bit first, and its quality in [0, 100].

    Raises:
        ValueError: The array is no such picture.
    """
    bits, quality = pdqhash.compute(_prepared(pixels))
    return np.packbits(bits.astype(np.uint8)), int(quality)


def pdq_dihedral(pixels: np.ndarray) -> tuple[np.ndarray, int]:
    """Hash one picture in the eight ways a square can be turned and mirrored, for little more than the price of one.

    Returns:
        Hashes, (8, 32) uint8, in the order of ``TRANSFORMS``, and the quality.
    """
    bits, quality = pdqhash.compute_dihedral(_prepared(pixels))
    return np.packbits(np.stack(bits).astype(np.uint8), axis=1), int(quality)


def hamming(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Number of bits, 0 to 256, in which hashes differ; (..., 32) uint8 each, broadcast against one another."""
    return np.bitwise_count(np.bitwise_xor(first, second)).sum(axis=-1, dtype=np.int32)


def hash_text(code: np.ndarray) -> str:
    """Write a hash, (32,) uint8, as 64 hex digits."""
    return code.tobytes().hex()


def read_hash(text: str) -> np.ndarray:
    """Read 64 hex digits into (32,) uint8.

    Raises:
        ValueError: They are none.
    """
    raw = bytes.fromhex(text) if len(text) == 2 * BYTES else b""
    if len(raw) != BYTES:
        raise ValueError(f"{text[:80]!r} is no PDQ hash: 64 hex digits are needed")
    return np.frombuffer(raw, np.uint8)
