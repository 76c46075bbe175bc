import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data_tools.image_repair import ImageFault, ImageRule, repair_image


def encoded(image: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def picture(width: int = 40, height: int = 24) -> Image.Image:
    """Red in the upper left corner, so that its orientation can be told."""
    pixels = np.full((height, width, 3), (20, 60, 200), np.uint8)
    pixels[: height // 2, : width // 2] = (220, 30, 30)
    return Image.fromarray(pixels)


def rotated_jpeg() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise when shown
    return encoded(picture(), "JPEG", quality=95, exif=exif)


def deep_png(channels: int, value: int) -> bytes:
    """A 16-bit PNG of one value, 8 x 8 pixels, built by hand: Pillow writes no 16-bit RGB."""
    row = b"\0" + struct.pack(">H", value) * 8 * channels
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, {1: 0, 3: 2}[channels], 0, 0, 0))]
    parts += [(b"IDAT", zlib.compress(row * 8)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(body)) + n + body + struct.pack(">I", zlib.crc32(n + body)) for n, body in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value", [0, 1, 100, 255])
def test_sixteen_bits_are_scaled(channels: int, value: int) -> None:
    image = repair_image(deep_png(channels, 257 * value), ImageRule())
    pixels = np.asarray(Image.open(io.BytesIO(image.content)))
    assert pixels.shape == (8, 8, 3) and (pixels == value).all() and "depth:16" in image.transforms


def test_repair_keeps_or_mends() -> None:
    rule = ImageRule()
    raw = encoded(picture(), "JPEG")
    assert repair_image(raw, rule).content == raw and repair_image(raw, rule).transforms == []
    assert repair_image(encoded(picture(), "GIF"), rule).extension == "png"
    assert repair_image(encoded(picture(), "BMP"), ImageRule(format="webp")).extension == "webp"
    again = [repair_image(rotated_jpeg(), rule) for _ in range(2)]
    assert again[0] == again[1] and (again[0].width, again[0].height) == (24, 40)
    assert (again[0].original_width, again[0].original_height) == (40, 24)
    cmyk = repair_image(encoded(picture().convert("CMYK"), "JPEG"), rule)
    assert Image.open(io.BytesIO(cmyk.content)).mode == "RGB"
    assert "exif" not in Image.open(io.BytesIO(again[0].content)).info


@pytest.mark.parametrize(
    ("mode", "size"),
    [
        ("no", (40, 24)),
        ("keep_ratio", (20, 12)),
        ("keep_ratio_largest", (12, 7)),
        ("center_crop", (12, 12)),
        ("border", (12, 12)),
    ],
)
def test_resize_modes(mode: str, size: tuple[int, int]) -> None:
    image = repair_image(encoded(picture()), ImageRule(size=12, resize=mode))
    assert (image.width, image.height) == size == Image.open(io.BytesIO(image.content)).size
    bigger = repair_image(encoded(picture()), ImageRule(size=64, resize=mode))
    assert (bigger.width, bigger.height) == ((64, 64) if mode in ("center_crop", "border") else (40, 24))


@pytest.mark.parametrize(
    ("raw", "rule", "name"),
    [
        (b"", ImageRule(), "decode"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", ImageRule(), "decode"),
        (encoded(picture())[:60], ImageRule(), "decode"),
        (encoded(picture())[:-5], ImageRule(), "decode"),
        (encoded(picture()).replace(b"IDAT", b"IDAT\0"), ImageRule(), "decode"),
        (encoded(picture()), ImageRule(max_pixels=959), "pixels"),
        (encoded(picture()), ImageRule(max_bytes=20), "bytes"),
        (encoded(picture()), ImageRule(min_side=25), "side"),
    ],
)
def test_images_that_are_not_kept(raw: bytes, rule: ImageRule, name: str) -> None:
    with pytest.raises(ImageFault) as fault:
        repair_image(raw, rule)
    assert fault.value.rule == name and fault.value.reason
