"""Evaluators: intervals against closed forms, metrics as JSON, errors of an incomplete context."""

import json
import math
from pathlib import Path

import numpy
import pytest

from leam_mm.errors import UserError
from leam_mm.evaluators.evaluator import EvaluationContext, Evaluator, Metric, bootstrap_interval, wilson_interval


def test_wilson_interval_known_values() -> None:
    # Newcombe 1998, table I: 81 of 263 -> 0.2553 to 0.3662; 0 of 20 -> 0 to 0.1611; 1 of 29 -> 0.0061 to 0.1718.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_wilson_interval_is_symmetric_and_shrinks() -> None:
    low, high = wilson_interval(3, 10)
    assert wilson_interval(7, 10) == pytest.approx((1 - high, 1 - low))
    wider = wilson_interval(30, 100)
    assert low < wider[0] < 0.3 < wider[1] < high
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(10, 10)[1] == 1.0
    with pytest.raises(ValueError, match="11 successes of 10"):
        wilson_interval(11, 10)


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
