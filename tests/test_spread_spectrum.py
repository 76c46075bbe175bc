import io
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image

from data_tools.corpora.scene_corpus import make_scene, render
from leam_mm.marking.spread_spectrum import BANDS, SpreadSpectrum, waves
from leam_mm.marking.watermark import Watermark

MARK = SpreadSpectrum()


def photographs(side: int, count: int) -> Iterator[np.ndarray]:
    """Squares of the photographs of scikit-image, at random places and magnifications."""
    pytest.importorskip("skimage")
    from toys.face_images import PHOTOGRAPHS, read_picture

    generator = np.random.default_rng(side)
    pictures = [read_picture(name) for name in PHOTOGRAPHS if name not in ("page.png", "text.png")]
    for number in range(count):
        picture = Image.fromarray(pictures[number % len(pictures)])
        cut = int(generator.uniform(0.3, 1) * min(picture.size))
        left, top = (int(generator.integers(0, length - cut + 1)) for length in picture.size)
        small = picture.crop((left, top, left + cut, top + cut)).resize((side, side), Image.Resampling.LANCZOS)
        yield np.asarray(small)


def scenes(side: int, count: int) -> Iterator[np.ndarray]:
    for number in range(count):
        content = render(make_scene("train", 5, number), 5, "train", number, side)
        yield np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def flat(side: int, count: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(1)
    for _ in range(count):
        yield np.full((side, side, 3), generator.integers(0, 256, 3), np.uint8)


def noise(side: int, count: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(2)
    for _ in range(count):
        spread = generator.uniform(1, 60)
        yield np.clip(generator.normal(128, spread, (side, side, 3)), 0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=quality)
    return np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"))


def resized(pixels: np.ndarray, factor: float) -> np.ndarray:
    size = (round(pixels.shape[1] * factor), round(pixels.shape[0] * factor))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def decibels(first: np.ndarray, second: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((first.astype(float) - second) ** 2), 1e-9)))


def test_it_is_a_watermark() -> None:
    assert isinstance(MARK, Watermark)
    with pytest.raises(ValueError, match="uint8"):
        MARK.embed(np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="empty side"):
        MARK.score(np.zeros((0, 4, 3), np.uint8))


@pytest.mark.parametrize("source", [photographs, scenes, flat, noise])
@pytest.mark.parametrize("side", [32, 64, 256])
def test_the_change_stays_above_40_decibels(source: Callable[[int, int], Iterator[np.ndarray]], side: int) -> None:
    for pixels in source(side, 6):
        assert decibels(pixels, MARK.embed(pixels)) > 40


def test_flat_areas_change_by_few_grey_levels() -> None:
    for pixels in flat(256, 4):
        assert np.abs(MARK.embed(pixels).astype(int) - pixels).max() <= 5


def test_no_halo_beside_the_edges_of_flat_shapes() -> None:
    shares = []
    for pixels in scenes(256, 6):
        change = np.abs(MARK.embed(pixels).astype(int) - pixels).max(axis=2)
        shares.append(np.mean(change >= 5))
    assert np.median(shares) < 0.01  # textures of shapes change more


def test_images_of_any_shape_are_marked_and_found() -> None:
    for width, height in ((300, 200), (200, 500), (1024, 640)):
        pixels = resized(next(iter(scenes(256, 1))), 4)[:height, :width]
        marked = MARK.embed(pixels)
        assert marked.shape == pixels.shape and MARK.score(marked) > 6
    for width, height in ((1, 1), (1, 40), (7, 3), (900, 1)):
        pixels = np.full((height, width, 3), 90, np.uint8)
        assert MARK.embed(pixels).shape == pixels.shape and MARK.score(pixels) < 3


def test_marked_photographs_are_found_after_changes() -> None:
    changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "none": lambda pixels: pixels,
        "JPEG 50": lambda pixels: encoded(pixels, "JPEG", 50),
        "WebP 80": lambda pixels: encoded(pixels, "WEBP", 80),
        "half": lambda pixels: resized(pixels, 0.5),
        "larger": lambda pixels: resized(pixels, 1.37),
    }
    pictures = [next(found) for found in [photographs(256, 5)] for _ in range(5)]
    for name, change in changes.items():
        found = [MARK.score(change(MARK.embed(pixels))) >= 3 for pixels in pictures]
        assert np.mean(found) >= 0.8, (name, found)


def test_a_cropped_scene_is_found() -> None:
    found = [MARK.score(MARK.embed(pixels)[31:210, 40:219]) >= 3 for pixels in scenes(256, 3)]
    assert sum(found) >= 2


def test_another_key_finds_nothing() -> None:
    marked = MARK.embed(next(iter(scenes(256, 1))))
    assert MARK.score(marked) > 6 and SpreadSpectrum(b"another").score(marked) < 3


def false_positives(side: int, count: int) -> tuple[int, list[float]]:
    images = [pixels for source in (photographs, scenes, flat, noise) for pixels in source(side, count)]
    return len(images), [MARK.score(pixels) for pixels in images]


def check_rates(total: int, scores: list[float]) -> None:
    """The share of unmarked images at each rate stays below it, with three standard deviations of chance."""
    for rate in (0.1, 0.01, 0.001):
        found = sum(MARK.false_positive_rate(score) <= rate for score in scores)
        assert found <= rate * total + 3 * (rate * total) ** 0.5, (rate, found, total)


def test_stated_rate_holds_on_unmarked_images() -> None:
    check_rates(*false_positives(64, 15))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_stated_rate_holds_on_thousands_of_unmarked_images() -> None:
    check_rates(*false_positives(64, 1000))
    check_rates(*false_positives(128, 150))


def test_the_bound_holds_over_random_keys() -> None:
    """For one image and many keys, the statistic without a search follows its bound."""
    pixels = next(iter(photographs(64, 1)))
    z = []
    for number in range(300):
        mark = SpreadSpectrum(f"key {number}".encode())
        luma = Image.fromarray(pixels).convert("F").resize((BANDS[0].grid,) * 2, Image.Resampling.LANCZOS)
        z += mark._aligned(np.asarray(luma) - 128, BANDS[0])[::6, ::6].ravel().tolist()
    for limit in (1.5, 2.0, 2.5, 3.0):
        assert np.mean(np.array(z) >= limit) <= np.exp(-(limit**2) / 2)
    assert np.std(z) == pytest.approx(1, abs=0.15)


def test_phases_never_change() -> None:
    """A detector of today reads images of last year: the key's phases are part of the format."""
    pattern, inside = waves(b"key", BANDS[0])
    assert inside.sum() == 606 and not pattern[~inside].any()
    assert np.angle(pattern[inside][:3]).round(4).tolist() == pytest.approx([1.9421, 1.4552, -1.9489], abs=1e-3)
