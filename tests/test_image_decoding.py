import io
import struct
import zlib

import numpy as np
import pytest
import torch
from conftest import toy_picture
from PIL import Image

from leam_mm.data.image_decoding import ImageDecoding, image_member
from leam_mm.errors import UserError


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def generator(number: int = 0) -> np.random.Generator:
    return np.random.default_rng(number)


def gradient(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows % 256, columns % 256, (rows + columns) % 256], axis=-1).astype(np.uint8)


def test_right_size_comes_back_pixel_for_pixel() -> None:
    pixels = gradient(16, 16)
    image = ImageDecoding(16)(encoded(pixels), generator())
    assert image.dtype == torch.uint8
    assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(("height", "width"), [(100, 40), (40, 100), (7, 9), (3000, 20)])
def test_result_is_square_of_the_wanted_size(kind: str, height: int, width: int) -> None:
    for decode in (ImageDecoding(16), ImageDecoding(16, crop_scale=(0.3, 0.9), shift=0.2)):
        assert decode(encoded(gradient(height, width), kind), generator()).shape == (3, 16, 16)


def test_evaluation_takes_the_centre() -> None:
    pixels = np.zeros((16, 48, 3), np.uint8)
    pixels[:, 16:32] = 200
    image = ImageDecoding(16, crop_scale=(0.2, 0.5), shift=0.3).evaluation()(encoded(pixels), generator())
    assert torch.all(image == 200)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_other_modes_become_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(gradient(16, 16)).convert(mode).save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    assert ImageDecoding(16)(buffer.getvalue(), generator()).shape == (3, 16, 16)


def test_crop_is_a_function_of_the_generator() -> None:
    decode = ImageDecoding(16, crop_scale=(0.2, 0.8), shift=0.1, colour_jitter=0.4, greyscale=0.2)
    content = encoded(gradient(64, 80))
    images = [decode(content, generator(number)) for number in (1, 1, 2)]
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


def test_crop_covers_the_share_it_was_told() -> None:
    # On a horizontal ramp the range of values in the crop is its side: a quarter of the area is half the side.
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (256, 256, 3))
    image = ImageDecoding(32, crop_scale=(0.25, 0.25))(encoded(np.ascontiguousarray(ramp)), generator())[0].float()
    assert abs(float(image.max() - image.min()) - 124) < 6  # 128, less half a source step of 4 at either end


def test_shift_moves_by_whole_pixels_and_repeats_the_edge() -> None:
    pixels = gradient(16, 16)
    found = set()
    for number in range(30):
        image = ImageDecoding(16, shift=0.125)(encoded(pixels), generator(number)).permute(1, 2, 0).numpy()
        padded = np.pad(pixels, ((2, 2), (2, 2), (0, 0)), mode="edge")
        matches = [
            (down, right)
            for down in range(5)
            for right in range(5)
            if np.array_equal(image, padded[down : down + 16, right : right + 16])
        ]
        assert len(matches) == 1
        found.add(matches[0])
    assert len(found) > 10


def test_greyscale_has_equal_channels() -> None:
    image = ImageDecoding(16, greyscale=1.0)(toy_picture("red", 0), generator())
    assert torch.equal(image[0], image[1]) and torch.equal(image[1], image[2])
    weights = torch.tensor([0.299, 0.587, 0.114])
    original = ImageDecoding(16)(toy_picture("red", 0), generator()).float()
    assert torch.all((image[0] - (weights[:, None, None] * original).sum(0)).abs() <= 0.51)


def bomb(side: int) -> bytes:
    """A PNG whose header promises side x side pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 20_000, 2**31 - 1])
def test_pixel_bombs_are_refused_before_decoding(side: int) -> None:
    with pytest.raises(UserError, match=r"exceeds|unreadable"):
        ImageDecoding(16)(bomb(side), generator())


@pytest.mark.parametrize("content", [b"", b"not an image", toy_picture("red", 0)[:60], bomb(16)])
def test_damaged_bytes_are_one_line(content: bytes) -> None:
    with pytest.raises(UserError, match="unreadable image") as caught:
        ImageDecoding(16)(content, generator())
    assert "\n" not in str(caught.value)


def test_random_damage_never_escapes_as_another_error() -> None:
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WEBP"):
        whole = encoded(gradient(24, 24), kind)
        for _ in range(40):
            broken = bytearray(whole)
            for place in rng.integers(0, len(whole), 6):
                broken[place] = rng.integers(256)
            try:
                assert ImageDecoding(16)(bytes(broken), generator()).shape == (3, 16, 16)
            except UserError as error:
                assert "image" in str(error)


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.9, 0.5), (0.5, 1.5)])
def test_impossible_crop_is_refused(scale: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="crop_scale"):
        ImageDecoding(16, crop_scale=scale)


def test_image_member_is_found_by_its_extension() -> None:
    assert image_member({"json": b"{}", "webp": b"w"}) == b"w"
    with pytest.raises(UserError, match="no image"):
        image_member({"json": b"{}"})
