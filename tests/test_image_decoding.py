import io
import struct
import zlib
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toys.images import coloured_square

from leam_mm.data.image_decoding import ImageDecoding, decode_jpeg, image_member, jpeg_size
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
    Image.fromarray(gradient(16, 16)).convert(mode).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    assert ImageDecoding(16)(buffer.getvalue(), generator()).shape == (3, 16, 16)


def test_crop_is_a_function_of_the_generator() -> None:
    decode = ImageDecoding(16, crop_scale=(0.2, 0.8), shift=0.1, colour_jitter=0.4, greyscale=0.2)
    content = encoded(gradient(64, 80))
    images = [decode(content, generator(number)) for number in (1, 1, 2)]
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


def test_crop_covers_the_configured_share() -> None:
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
    image = ImageDecoding(16, greyscale=1.0)(coloured_square("red", 0), generator())
    assert torch.equal(image[0], image[1]) and torch.equal(image[1], image[2])
    weights = torch.tensor([0.299, 0.587, 0.114])
    original = ImageDecoding(16)(coloured_square("red", 0), generator()).float()
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


@pytest.mark.parametrize("content", [b"", b"not an image", coloured_square("red", 0)[:60], bomb(16)])
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


@lru_cache
def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Edges and gradients at several scales, smooth enough for JPEG: (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    waves = [
        rng.normal(size=3) * np.sin(2 * np.pi * (rng.normal(0, 6) * rows + rng.normal(0, 6) * columns))[..., None]
        for _ in range(4)
    ]
    discs = sum(
        40 * rng.normal(size=3) * (np.hypot(rows - y, columns - x) < r)[..., None]
        for y, x, r in rng.random((6, 3)) / [1, 1, 5]
    )
    return (128 + 20 * np.sum(waves, axis=0) + discs).clip(0, 255).astype(np.uint8)


def jpeg(pixels: np.ndarray, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **{"quality": 92, **settings})
    return buffer.getvalue()


def pillow(content: bytes, edge: int, size: int) -> np.ndarray:
    """The first edge x edge pixels of the picture, decoded at full size and resized once: (size, size, 3)."""
    whole = Image.open(io.BytesIO(content)).convert("RGB")
    return np.asarray(whole.resize((size, size), Image.Resampling.BICUBIC, box=(0, 0, edge, edge)), np.float64)


@pytest.mark.parametrize("side", [60, 63, 64, 65, 100, 129, 256, 517, 700])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_reduced_decoding_is_near_the_full_one(side: int, subsampling: str) -> None:
    content = jpeg(picture(side, side, side), subsampling=subsampling)
    # The crop is the whole picture: only decoding and resizing differ.
    fast = ImageDecoding(64, crop_aspect=(1.0, 1.0))(content, generator()).permute(1, 2, 0).numpy()
    factor = next(factor for factor in (8, 4, 2, 1) if side >= 64 * factor or factor == 1)
    difference = fast - pillow(content, side // factor * factor, 64)  # boxes end at whole reduced pixels
    assert np.abs(difference).mean() < 1.5 and abs(difference.mean()) < 0.5


@pytest.mark.parametrize(
    ("need", "expected"), [(1.0, 512), (0.51, 512), (0.5, 256), (0.3, 256), (0.25, 128), (0.01, 64)]
)
def test_smallest_scale_that_suffices_is_decoded(need: float, expected: int) -> None:
    decoded = decode_jpeg(jpeg(picture(512, 512)), (512, 512), need)
    assert decoded is not None and decoded[0].shape == (expected, expected, 3) and decoded[1] == 512 // expected


def test_small_crops_keep_their_pixels() -> None:
    """A crop of a sixteenth of the area must not be enlarged from a reduced picture."""
    content = jpeg(picture(512, 512, 3), quality=95)
    decode = ImageDecoding(64, crop_scale=(1 / 16, 1 / 16))
    rng = generator(4)
    image = decode(content, rng).permute(1, 2, 0).numpy()
    left, top, width, height = decode._box(512, 512, generator(4))
    whole = Image.open(io.BytesIO(content)).convert("RGB")
    box = (left, top, left + width, top + height)
    exact = np.asarray(whole.resize((64, 64), Image.Resampling.BICUBIC, box=box))
    assert np.abs(image.astype(float) - exact).mean() < 4  # the box is rounded to pixels


def test_evaluation_is_pillows_to_the_bit() -> None:
    """Draft at twice the size, centre square, bicubic with a gap of two: what every published number was made with."""
    for height, width in ((512, 512), (300, 700), (70, 64)):
        content = jpeg(picture(height, width))
        file = Image.open(io.BytesIO(content))
        file.draft("RGB", (128, 128))
        whole = file.convert("RGB")
        side = min(whole.size)
        left, top = (whole.width - side) / 2, (whole.height - side) / 2
        box = (left, top, left + side, top + side)
        exact = whole.resize((64, 64), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
        for decode in (ImageDecoding(64), ImageDecoding(64, (0.1, 0.5), crop_aspect=(0.5, 2.0)).evaluation()):
            assert np.array_equal(decode(content, generator()).permute(1, 2, 0).numpy(), np.asarray(exact))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_jpegs_become_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture(150, 130)).convert(mode).save(buffer, "JPEG", quality=92)
    content = buffer.getvalue()
    assert (jpeg_size(content) is None) == (mode == "CMYK")
    fast = ImageDecoding(64, crop_aspect=(1.0, 1.0), crop_scale=(1.0, 1.0))(content, generator())
    assert fast.shape == (3, 64, 64)
    if mode == "L":
        assert torch.equal(fast[0], fast[1])


def test_deep_pictures_are_read_as_before() -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture(40, 40)[..., 0].astype(np.uint16) * 257).save(buffer, "PNG")
    assert ImageDecoding(16, (0.5, 1.0))(buffer.getvalue(), generator()).shape == (3, 16, 16)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_cut_jpeg_is_refused_in_training_and_evaluation(kept: float) -> None:
    content = jpeg(picture(200, 200))
    for decode in (ImageDecoding(64), ImageDecoding(64, (0.5, 1.0))):
        with pytest.raises(UserError, match="unreadable image"):
            decode(content[: int(kept * len(content))], generator())


def test_random_damage_to_jpeg_never_escapes_in_training() -> None:
    rng, whole = generator(), jpeg(picture(64, 64))
    for _ in range(150):
        broken = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            broken[place] = rng.integers(256)
        try:
            assert ImageDecoding(16, (0.3, 1.0))(bytes(broken), generator()).shape == (3, 16, 16)
        except UserError as error:
            assert "image" in str(error)


def test_huge_jpeg_is_refused_before_decoding() -> None:
    content = bytearray(jpeg(picture(16, 16)))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    for decode in (ImageDecoding(16), ImageDecoding(16, (0.5, 1.0))):
        with pytest.raises(UserError, match=r"exceeds the limit|unreadable"):
            decode(bytes(content), generator())


def test_free_crops_have_the_configured_area_and_aspect() -> None:
    decode = ImageDecoding(16, (0.2, 0.6), crop_aspect=(0.5, 2.0))
    boxes = np.array([decode._box(300, 200, generator(number)) for number in range(2000)])
    left, top, width, height = boxes.T
    assert left.min() >= 0 and top.min() >= 0 and (left + width).max() <= 300 and (top + height).max() <= 200
    share = width * height / 60_000
    assert share.min() >= 0.2 and share.max() <= 0.6 and abs(share.mean() - 0.4) < 0.02
    aspect = np.log(width / height)
    assert aspect.min() >= -np.log(2) - 1e-9 and aspect.max() <= np.log(2) + 1e-9
    # Where no crop fits, the largest allowed one at the centre is taken.
    left, top, width, height = ImageDecoding(16, (0.9, 1.0), crop_aspect=(1.0, 1.0))._box(400, 100, generator())
    assert (left, top, width, height) == (150, 0, 100, 100)
    with pytest.raises(UserError, match="crop_aspect"):
        ImageDecoding(16, crop_aspect=(0.0, 1.0))
