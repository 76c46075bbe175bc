import numpy as np
import pdqhash
import pytest
from PIL import Image
from skimage import data

from leam_mm.data.perceptual_hash import (
    TRANSFORMS,
    hamming,
    hash_text,
    pdq,
    pdq_transformed,
    read_hash,
    transformed,
)

IMAGES = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), data.hubble_deep_field()]


def shrunk(pixels: np.ndarray, width: int, height: int, how: Image.Resampling = Image.Resampling.BOX) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((width, height), how))


def reference(pixels: np.ndarray) -> np.ndarray:
    """The library's own hash at the size to which the authors' program resizes images."""
    bits, _ = pdqhash.compute(shrunk(pixels, 512, 512))
    return np.packbits(bits.astype(np.uint8))


@pytest.mark.parametrize("pixels", IMAGES)
def test_hash_is_that_of_the_library_at_512_for_any_size(pixels: np.ndarray) -> None:
    wanted = reference(pixels)
    assert hamming(pdq(pixels)[0], wanted) <= 8
    for side in (512, 400, 300, 256):
        copy = shrunk(pixels, side, side, Image.Resampling.BICUBIC)
        assert hamming(pdq(copy)[0], wanted) <= 8
    assert hamming(pdq(shrunk(pixels, 500, 250))[0], wanted) <= 12  # the proportions are not part of the hash


def test_sizes_for_which_the_library_gives_distant_hashes() -> None:
    whole, half = shrunk(IMAGES[3], 160, 160), shrunk(IMAGES[3], 80, 80)
    alone = [np.packbits(pdqhash.compute(np.ascontiguousarray(each))[0].astype(np.uint8)) for each in (whole, half)]
    assert hamming(pdq(whole)[0], pdq(half)[0]) < 16 < hamming(*alone)


def test_hashes_of_different_images_are_distant() -> None:
    codes = np.stack([pdq(pixels)[0] for pixels in IMAGES])
    apart = hamming(codes[:, None], codes[None])[np.triu_indices(len(codes), 1)]
    assert apart.min() > 90 and 100 < apart.mean() < 150


def test_hashes_of_transforms_are_those_of_transformed_images() -> None:
    pixels = IMAGES[1]
    codes, quality = pdq_transformed(pixels)
    assert quality == pdq(pixels)[1] and np.array_equal(codes[0], pdq(pixels)[0])
    transpose = Image.Transpose
    ways = {
        "rotate90": transpose.ROTATE_90,
        "rotate180": transpose.ROTATE_180,
        "rotate270": transpose.ROTATE_270,
        "flip_horizontal": transpose.FLIP_LEFT_RIGHT,
        "flip_vertical": transpose.FLIP_TOP_BOTTOM,
        "transpose": transpose.TRANSPOSE,
        "transverse": transpose.TRANSVERSE,
    }
    for name, way in ways.items():
        other = np.asarray(Image.fromarray(pixels).transpose(way))
        index = TRANSFORMS.index(name)
        assert np.array_equal(transformed(pixels)[index], other)
        assert np.array_equal(codes[index], pdq(other)[0])


def test_flat_images_have_quality_zero() -> None:
    assert pdq(np.full((64, 64, 3), 200, np.uint8))[1] == 0
    assert pdq(IMAGES[0])[1] == 100


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (700, 2), (63, 65), (1025, 1500)])
def test_any_size_is_hashed(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    pixels.setflags(write=False)
    code, quality = pdq(pixels)
    assert code.shape == (32,) and code.dtype == np.uint8 and 0 <= quality <= 100


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 4), (4, 4, 4)])
def test_other_arrays_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="PDQ takes"):
        pdq(np.zeros(shape, np.uint8))


def test_hamming_counts_bits_and_broadcasts() -> None:
    generator = np.random.default_rng(0)
    first, second = (generator.integers(0, 256, (5, 32), dtype=np.uint8) for _ in range(2))
    bits = [np.unpackbits(codes, axis=1).astype(int) for codes in (first, second)]
    assert np.array_equal(hamming(first, second), np.abs(bits[0] - bits[1]).sum(axis=1))
    assert hamming(first[:, None], second[None]).shape == (5, 5)


def test_written_form_is_hex_and_is_checked() -> None:
    code = pdq(IMAGES[0])[0]
    assert np.array_equal(read_hash(hash_text(code)), code)
    assert hash_text(code)[:2] == f"{code[0]:02x}"
    for text in ("", "0" * 63, "g" * 64, "0" * 66, " " * 64, "00 " * 21 + "0"):
        with pytest.raises(ValueError):
            read_hash(text)
