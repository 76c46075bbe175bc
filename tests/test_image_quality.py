import io

import numpy as np
import pytest
from PIL import Image
from toys.images import encoded_image
from toys.vetting import pixel_sample

from data_tools.vetting.image_quality import ImageQuality, grey_entropy, without_margins
from data_tools.vetting.vetting_rule import Finding
from leam_mm.errors import UserError


def judge(pixels: np.ndarray, **setting: float) -> Finding:
    return ImageQuality(**setting).judge([pixel_sample(pixels)])[0]  # type: ignore[arg-type]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_entropy_of_simple_images() -> None:
    assert grey_entropy(np.full((50, 50, 3), 7, np.uint8)) == 0
    halves = np.zeros((64, 64, 3), np.uint8)
    halves[:32] = 255
    assert grey_entropy(halves) == pytest.approx(1)
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    assert grey_entropy(levels) == pytest.approx(8)
    large = levels.repeat(100, 0).repeat(100, 1)  # of 2.56 million pixels only some are used
    assert grey_entropy(large) == pytest.approx(8, abs=0.05)


@pytest.mark.parametrize(
    "pixels, reason",
    [
        (noise(100, 120), ""),
        (noise(63, 120), "side"),
        (noise(70, 211), "ratio"),
        (noise(211, 70), "ratio"),
        (noise(70, 210), ""),
        (np.full((100, 100, 3), 255, np.uint8), "blank"),
        (np.full((1, 1, 3), 255, np.uint8), "side"),
    ],
)
def test_images_are_dropped_with_a_reason(pixels: np.ndarray, reason: str) -> None:
    found = judge(pixels)
    assert found.kept == (not reason) and reason in found.reason
    assert found.value.startswith(f"{pixels.shape[1]}x{pixels.shape[0]} ")


def test_nearly_blank_image() -> None:
    pixels = np.full((200, 200, 3), 255, np.uint8)
    pixels[:4, :4] = 0
    assert not judge(pixels).kept and judge(pixels, min_entropy=0.0).kept


def test_settings_are_checked() -> None:
    for setting in ({"min_side": 0}, {"max_aspect": 0.5}, {"min_entropy": 9}):
        with pytest.raises(UserError, match="ImageQuality"):
            ImageQuality(**setting)


def test_small_drawing_on_a_large_page_is_judged_without_its_margins() -> None:
    page = np.full((400, 300, 3), 255, np.uint8)
    page[150:210, 100:160] = noise(60, 60) // 2  # 3 % of the page
    assert grey_entropy(page) < 0.5
    found = judge(page)
    assert found.kept and found.value.endswith("bits in 60x60")
    assert without_margins(page).shape == (60, 60, 3)
    for plain in (np.full((40, 30, 3), 7, np.uint8), noise(40, 30)):
        assert without_margins(plain).shape == (40, 30, 3)
    letterbox = np.zeros((100, 120, 3), np.uint8)
    letterbox[20:80] = noise(60, 120)
    assert without_margins(letterbox).shape == (60, 120, 3)


def test_two_plain_halves_are_no_margins() -> None:
    flag = np.zeros((90, 120, 3), np.uint8)
    flag[:45] = 255
    for pixels in (flag, flag.transpose(1, 0, 2)):  # the rule failed on such a flag, or called it blank
        assert without_margins(pixels).shape == pixels.shape
        assert judge(pixels).kept and judge(pixels).value.endswith("1.00 bits")


@pytest.mark.parametrize("encoded", [False, True])
def test_three_plain_stripes_are_no_margins(encoded: bool) -> None:
    flag = np.zeros((90, 120, 3), np.uint8)
    flag[:30], flag[30:60], flag[60:] = (0, 0, 0), (221, 0, 0), (255, 206, 0)
    for pixels in (flag, np.ascontiguousarray(flag.transpose(1, 0, 2))):
        if encoded:  # rows beside a stripe's end differ a little
            content = encoded_image(Image.fromarray(pixels), "JPEG", quality=60)
            pixels = np.asarray(Image.open(io.BytesIO(content)))
        found = judge(pixels)
        assert found.kept and (encoded or "in" not in found.value)
    bars = np.zeros((90, 120, 3), np.uint8)
    bars[30:60] = 255
    assert judge(bars).kept
    bars[:, :] = 255
    bars[40:50, 50:70] = 0  # a plain box of 2 % of the page
    assert "blank" in judge(bars).reason


def test_edges_of_one_colour_are_found_whatever_the_others_are() -> None:
    """Images whose edges are both busy take a short way: what is cut off is of one colour, and something is left."""
    generator = np.random.default_rng(1)
    for _ in range(300):
        height, width = generator.integers(2, 30, 2)
        pixels = np.full((height, width, 3), generator.integers(0, 256, 3), np.uint8)
        top, left = generator.integers(0, height), generator.integers(0, width)
        part = pixels[top : top + generator.integers(1, 30), left : left + generator.integers(1, 30)]
        part[:] = generator.integers(0, 256, part.shape if generator.random() < 0.5 else 3)
        found = without_margins(pixels)
        assert 0 not in found.shape
        first = (found.__array_interface__["data"][0] - pixels.__array_interface__["data"][0]) // (3 * width)
        last = first + found.shape[0]
        for margin in (pixels[:first], pixels[last:]):
            assert margin.size == 0 or np.ptp(margin, axis=(0, 1)).max() <= 8
