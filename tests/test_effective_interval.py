"""Intervals of averaged shares: Wilson's where trials are alike, and nominal coverage in simulation."""

import numpy
import pytest

from leam_mm.intervals.effective_interval import effective_interval, mean_of_classes, mean_of_draws
from leam_mm.intervals.intervals import wilson_interval


@pytest.mark.parametrize(("hits", "count"), [(0, 20), (7, 20), (20, 20), (500, 1000)])
def test_alike_trials_give_wilson(hits: int, count: int) -> None:
    share = hits / count
    found = effective_interval(share, share * (1 - share) / count, count)
    assert found == pytest.approx(wilson_interval(hits, count), abs=1e-12)


def test_one_class_is_almost_wilson() -> None:
    hits = numpy.arange(200) < 60
    value, low, high = mean_of_classes(hits.astype(float), numpy.zeros(200, int))
    assert value == pytest.approx(0.3)
    assert (low, high) == pytest.approx(wilson_interval(60, 200), abs=1e-3)


def test_mean_of_classes_weighs_classes_alike() -> None:
    hits = numpy.array([1.0, 1, 1, 1, 0, 0])
    value, low, high = mean_of_classes(hits, numpy.array([5, 5, 5, 5, 7, 7]))
    assert value == 0.5 and 0 < low < 0.5 < high < 1


def covered(draw: object, truth: float, repeats: int = 400) -> float:
    found = [draw() for _ in range(repeats)]  # type: ignore[operator]
    return sum(low <= truth <= high for _, low, high in found) / repeats


@pytest.mark.parametrize(("least", "most", "images"), [(0.1, 0.9, 10), (0.9, 1.0, 10), (0.0, 1.0, 3), (0.5, 0.6, 2)])
def test_mean_of_classes_covers(least: float, most: float, images: int) -> None:
    """Over images of 40 classes whose shares lie between two numbers; counts of images differ by a factor of three."""
    generator = numpy.random.default_rng(0)
    share = numpy.linspace(least, most, 40)
    label = numpy.repeat(numpy.arange(40), images * (1 + numpy.arange(40) % 3))

    def draw() -> tuple[float, float, float]:
        return mean_of_classes((generator.random(len(label)) < share[label]).astype(float), label)

    assert 0.92 <= covered(draw, float(share.mean())) <= 0.975


@pytest.mark.parametrize(("spread", "draws", "images"), [(0.0, 5, 100), (0.3, 5, 300), (0.6, 5, 100), (0.6, 10, 1000)])
def test_mean_of_draws_covers(spread: float, draws: int, images: int) -> None:
    """Over images and draws: the logit of a hit is a part of the image, a part of the draw, and noise."""
    generator = numpy.random.default_rng(0)
    size = 2_000_000
    logit = 1.5 + generator.normal(size=size) + spread * generator.normal(size=size)
    truth = float((1 / (1 + numpy.exp(-logit))).mean())

    def draw() -> tuple[float, float, float]:
        hard, lucky = generator.normal(size=(images, 1)), spread * generator.normal(size=(1, draws))
        chance = 1 / (1 + numpy.exp(-(1.5 + hard + lucky)))
        return mean_of_draws((generator.random((images, draws)) < chance).astype(float))

    assert 0.92 <= covered(draw, truth) <= 0.985


def test_equal_draws_count_images_only() -> None:
    hits = numpy.repeat((numpy.arange(50) < 20)[:, None], 5, axis=1).astype(float)
    value, low, high = mean_of_draws(hits)
    assert value == pytest.approx(0.4)
    assert (low, high) == pytest.approx(wilson_interval(20, 50), abs=0.02)
    assert mean_of_draws(numpy.ones((50, 5)))[1:] == pytest.approx(wilson_interval(50, 50))
