"""Evaluators: intervals against closed forms, metrics as JSON, errors of an incomplete context."""

import json
import math
from pathlib import Path
from statistics import NormalDist

import numpy
import pytest

from leam_mm.errors import UserError
from leam_mm.evaluators.evaluator import EvaluationContext, Evaluator, Metric, bootstrap_interval, wilson_interval


def test_wilson_interval_known_values() -> None:
    # Newcombe 1998, table I: 81 of 263 -> 0.2553 to 0.3662; 0 of 20 -> 0 to 0.1611; 1 of 29 -> 0.0061 to 0.1718.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="must not be greater"):
        wilson_interval(11, 10)


@pytest.mark.parametrize("samples", [1, 10, 97, 1536])
def test_wilson_interval_is_its_formula(samples: int) -> None:
    z = NormalDist().inv_cdf(0.975)
    for successes in {0, 1, samples // 3, samples - 1, samples}:
        share = successes / samples
        centre = (share + z * z / (2 * samples)) / (1 + z * z / samples)
        half = z / (1 + z * z / samples) * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples))
        low, high = wilson_interval(successes, samples)
        assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-12, rel=0)
        assert 0 <= low <= share <= high <= 1


def test_bootstrap_interval_of_a_mean_matches_the_normal_one() -> None:
    values = numpy.random.default_rng(1).normal(5, 2, 400)
    low, high = bootstrap_interval(values, lambda part: float(part.mean()), seed=3, repeats=2000)
    half = 1.96 * values.std(ddof=1) / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)
    assert (low, high) == bootstrap_interval(values, lambda part: float(part.mean()), seed=3, repeats=2000)


def test_bootstrap_interval_keeps_rows_together() -> None:
    column = numpy.random.default_rng(0).normal(size=50)
    pairs = numpy.stack([column, column], axis=1)
    assert bootstrap_interval(pairs, lambda part: float((part[:, 0] - part[:, 1]).mean()), repeats=50) == (0.0, 0.0)


def test_metric_becomes_json_without_nan() -> None:
    metric = Metric("a/b", float("nan"), None, 1.0, "fraction", 3, {"de": {"value": float("inf"), "rows": [1, "x"]}})
    plain = json.loads(json.dumps(metric.as_dict(), allow_nan=False))
    assert plain["value"] is None
    assert plain["slices"]["de"] == {"value": None, "rows": [1, "x"]}


def test_context_says_what_is_missing(tmp_path: Path) -> None:
    context = EvaluationContext(None, None, tmp_path)
    with pytest.raises(UserError, match="--clip"):
        context.require_clip()
    with pytest.raises(UserError, match="--generator"):
        context.require_generator()
    with pytest.raises(NotImplementedError, match="Evaluator does not define run"):
        Evaluator().run(context)
    ready = object()
    assert EvaluationContext(ready, None, tmp_path).require_clip() is ready
