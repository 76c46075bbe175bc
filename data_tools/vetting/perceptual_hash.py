"""PDQ, the 256-bit hash of how a picture looks: copies of a picture have hashes that differ in few bits.

Davis and Rosen, "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm", 2019. Unrelated pictures
differ in 128 bits on average, a re-encoded copy in under ten; 31 is the usual border. ``quality`` in [0, 100] sums the
picture's gradients: below 50 the hash of a nearly flat picture is made of its noise. The written form, 64 hex digits
with the first bit first, is that of the shared lists.

PDQ itself hashes a picture of 512 x 512 and its own copy of 256 x 256 up to 58 bits apart, since where it samples
depends on the size. So every picture is first brought to one grid, at the places where PDQ samples 512 x 512: of thirty
photographs in all sizes from 256 up, hashes then lie 2 bits in the median, and 6 at the 95th percentile, from the
authors' hash of 512 x 512, which the shared lists hold. It also takes less time than PDQ's own filter.
"""

import numpy as np
import pdqhash
from PIL import Image

BYTES = 32
BITS = 8 * BYTES
GRID = 128  # of which every other point is taken: PDQ looks at 64 x 64, and then has no filter of its own
REFERENCE = 512  # the side whose hash is approached: the authors' program (pdqio.cpp) brings larger pictures to it
TRANSFORMS = (
    "identity",
    "rotate90",
    "rotate180",
    "rotate270",
    "flip_horizontal",
    "flip_vertical",
    "transpose",
    "transverse",
)


def _luma(pixels: np.ndarray) -> np.ndarray:
    """The brightness, (H, W) uint8, no more than about twice the size that matters."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise ValueError(f"PDQ takes (H, W, 3) uint8 with no empty side, not {pixels.shape} {pixels.dtype}")
    picture = Image.fromarray(pixels).convert("L")
    smaller = max(1, picture.width // REFERENCE), max(1, picture.height // REFERENCE)
    return np.asarray(picture.reduce(smaller) if max(smaller) > 1 else picture)


def _hash(luma: np.ndarray) -> tuple[np.ndarray, int]:
    """Bring (H, W) to the grid, half a pixel of the reference to the left and up, and hash it."""
    height, width = luma.shape
    across, down = width / 2 / REFERENCE, height / 2 / REFERENCE
    left, top = int(np.ceil(across)), int(np.ceil(down))
    wider = np.empty((height + top, width + left), np.uint8)  # by a border that repeats the edge
    wider[top:, left:] = luma
    wider[:top, left:] = luma[0]
    wider[:, :left] = wider[:, left : left + 1]
    box = (left - across, top - down, left - across + width, top - down + height)
    grid = Image.fromarray(wider).resize((GRID, GRID), Image.Resampling.BILINEAR, box=box)
    points = np.asarray(grid)[1::2, 1::2]
    bits, quality = pdqhash.compute(np.repeat(points[:, :, None], 3, axis=2))
    return np.packbits(bits.astype(np.uint8)), int(quality)


def pdq(pixels: np.ndarray) -> tuple[np.ndarray, int]:
    """Hash one picture.

    Args:
        pixels: (H, W, 3) uint8, RGB; any size.

    Returns:
        The hash, (32,) uint8, most significant bit first, and its quality in [0, 100].

    Raises:
        ValueError: The array is no such picture.
    """
    return _hash(_luma(pixels))


def turned(pixels: np.ndarray) -> list[np.ndarray]:
    """A picture, (H, W) or (H, W, C), in the eight ways of ``TRANSFORMS``; rotations go counterclockwise."""
    mirrored = pixels[:, ::-1]
    flips = [mirrored, pixels[::-1], np.rot90(mirrored), np.rot90(mirrored, 3)]
    return [pixels, np.rot90(pixels), np.rot90(pixels, 2), np.rot90(pixels, 3), *flips]


def pdq_turned(pixels: np.ndarray) -> tuple[np.ndarray, int]:
    """Hash a picture in the eight ways it can be turned and mirrored.

    PDQ can derive seven of the hashes from the first, but 14 bits off, as it samples beside the middle.

    Returns:
        Hashes, (8, 32) uint8, in the order of ``TRANSFORMS``, and the quality.
    """
    found = [_hash(luma) for luma in turned(_luma(pixels))]
    return np.stack([code for code, _ in found]), found[0][1]


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
