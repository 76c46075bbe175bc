"""Summary over languages: means, worst, pairing of pictures, and what is not measured."""

import numpy
import pytest

from leam_mm.evaluators.evaluator import Metric
from leam_mm.evaluators.language_summary import language_metrics


def by_name(metrics: list[Metric]) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


def test_values_and_order() -> None:
    hits = numpy.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    metrics = language_metrics("x", hits, ["en", "de"])
    assert [metric.name for metric in metrics] == ["x/mean", "x/min", "x/min_over_mean", "x/en", "x/de"]
    found = by_name(metrics)
    assert found["x/en"].value == 0.75
    assert found["x/de"].value == 0.25
    assert found["x/mean"].value == 0.5
    assert found["x/min_over_mean"].value == 0.5
    assert found["x/min_over_mean"].unit == "ratio"


def test_equal_languages_have_a_ratio_without_spread() -> None:
    column = (numpy.random.default_rng(0).random(200) < 0.4).astype(float)
    found = by_name(language_metrics("x", numpy.stack([column] * 3, axis=1), ["en", "de", "fr"], repeats=100))
    ratio, mean = found["x/min_over_mean"], found["x/mean"]
    assert ratio.value == pytest.approx(1.0)
    assert ratio.low == pytest.approx(1.0)
    assert ratio.high == pytest.approx(1.0)
    # The same picture three times is one picture: the mean is no more certain than one language is.
    assert mean.low is not None and mean.high is not None
    assert mean.high - mean.low == pytest.approx(2 * 1.96 * numpy.sqrt(0.24 / 200), rel=0.25)


def test_gaps_are_not_zeros() -> None:
    hits = numpy.array([[1.0, numpy.nan], [1.0, 1.0], [0.0, numpy.nan]])
    found = by_name(language_metrics("x", hits, ["en", "mt"], repeats=50))
    assert found["x/en"].samples == 3
    assert (found["x/mt"].samples, found["x/mt"].value) == (1, 1.0)
    assert (found["x/mean"].samples, found["x/mean"].value) == (1, 1.0)
    nothing = by_name(language_metrics("x", numpy.array([[1.0, numpy.nan]]), ["en", "mt"], repeats=50))
    assert nothing["x/mt"].value is None and nothing["x/mt"].low is None
    assert nothing["x/mean"].value is None
    assert "cannot be compared" in nothing["x/mean"].note


def test_no_hit_at_all_has_no_ratio() -> None:
    found = by_name(language_metrics("x", numpy.zeros((5, 2)), ["en", "de"], repeats=20))
    assert found["x/mean"].value == 0.0
    assert found["x/min_over_mean"].value is None
