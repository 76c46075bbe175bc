import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from data_tools.samples.image_repair import ImageFault, ImageRule, repair_image


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
    table, body, place = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for signature, content in tags.items():
        padded = content + bytes(-len(content) % 4)
        table += signature + struct.pack(">II", place + len(body), len(content))
        body += padded
    head = struct.pack(">I4sI4s4s4s", place + len(body), bytes(4), 0x04300000, b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + fixed(np.array([0.9642, 1.0, 0.8249]))
    return head.ljust(128, b"\0") + table + body


# Primaries adapted to D50: Adobe RGB (1998), annex of its encoding; Display P3 and sRGB by the same (Bradford) way.
ADOBE = np.array([[0.60974, 0.31111, 0.01947], [0.20528, 0.62567, 0.06087], [0.14919, 0.06322, 0.74457]])
DISPLAY_P3 = np.array([[0.51512, 0.24120, -0.00105], [0.29198, 0.69225, 0.04189], [0.15710, 0.06657, 0.78407]])
SRGB = np.array([[0.43607, 0.22249, 0.01392], [0.38515, 0.71687, 0.09708], [0.14307, 0.06061, 0.71410]])


def in_space(colours: np.ndarray, primaries: np.ndarray, gamma: float) -> np.ndarray:
    """The numbers that mean the same colours (sRGB, N x 3 uint8) in another space."""
    value = colours / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return np.rint(255 * np.clip(linear @ SRGB @ np.linalg.inv(primaries), 0, 1) ** (1 / gamma)).astype(np.uint8)


@pytest.mark.parametrize("primaries, gamma", [(ADOBE, 563 / 256), (DISPLAY_P3, 2.2)])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_colours_of_a_profile_are_converted(primaries: np.ndarray, gamma: float, kind: str) -> None:
    colours = np.array([(200, 60, 60), (60, 180, 70), (50, 70, 200), (128, 128, 128), (250, 200, 40)], np.uint8)
    stored = Image.fromarray(in_space(colours, primaries, gamma)[None].repeat(8, 0))
    assert np.abs(np.asarray(stored)[0].astype(int) - colours).max() > 8  # taken for sRGB it is another picture
    profile = matrix_profile(primaries, gamma, "Wide")
    image = repair_image(encoded(stored, kind, icc_profile=profile, lossless=True), ImageRule())
    assert "icc:Wide" in image.transforms and image.extension == "png"
    shown = Image.open(io.BytesIO(image.content))
    assert "icc_profile" not in shown.info and np.abs(np.asarray(shown)[0].astype(int) - colours).max() <= 3


def test_profiles_that_change_nothing() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    raw = encoded(picture(), "JPEG", icc_profile=srgb)
    assert repair_image(raw, ImageRule()).content == raw
    broken = repair_image(encoded(picture(), "PNG", icc_profile=b"no profile at all"), ImageRule())
    assert broken.transforms == ["icc:unreadable", "encode:png"]
    foreign = encoded(picture().convert("L"), "PNG", icc_profile=matrix_profile(ADOBE, 2.2, "of colours"))
    assert repair_image(foreign, ImageRule()).transforms == ["rgb:L", "icc:of colours", "encode:png"]
