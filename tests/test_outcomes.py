"""Outcomes of samples: bits and values come back, and a stranger's line cannot do harm."""

import json
import math

import numpy
import pytest

from leam_mm.evaluators.language_summary import language_metrics
from leam_mm.intervals.outcomes import read_outcomes, write_outcomes


def test_outcomes_are_written_by_the_evaluators_and_read_back() -> None:
    hits = numpy.array([[1, 0], [1, 1], [0, math.nan], [1, 1], [0, 0]], dtype=float)
    metrics = {m.name: m.as_dict() for m in language_metrics("x", hits, ["de", "fi"], keys=list("abcde"))}
    found, fewer, mean = (read_outcomes(metrics[name]) for name in ("x/de", "x/fi", "x/mean"))
    assert found is not None and found.hits and found.values.tolist() == [1, 1, 0, 1, 0]
    assert fewer is not None and len(fewer.values) == 4 and fewer.samples != found.samples
    assert mean is not None and not mean.hits and mean.samples == fewer.samples
    assert mean.values == pytest.approx([0.5, 1.0, 1.0, 0.0], abs=1e-4)
    assert "outcomes" not in metrics["x/min"] and "outcomes" not in metrics["x/min_over_mean"]
    assert read_outcomes(metrics["x/de"] | {"value": 0.9}) is None  # belongs to another result
    assert "outcomes" not in language_metrics("x", hits, ["de", "fi"])[3].as_dict()


def test_scores_are_rounded_to_a_part_of_their_range_and_small() -> None:
    values = numpy.random.default_rng(0).normal(-3, 5, 1000)
    entry = write_outcomes(values, [str(k) for k in range(1000)])
    found = read_outcomes({"value": float(values.mean()), "outcomes": json.loads(json.dumps(entry))})
    assert found is not None and not found.hits
    assert numpy.abs(found.values - values).max() <= 0.51 * (values.max() - values.min()) / 65535
    assert len(json.dumps(entry)) < 3000
    constant = read_outcomes({"value": 0.3, "outcomes": write_outcomes(numpy.full(7, 0.3), list("abcdefg"))})
    assert constant is not None and constant.values.tolist() == [0.3] * 7


def test_a_strangers_entry_is_ignored() -> None:
    of = {"of": "x", "count": 9}
    wrong_bits = [{}, {"of": "x", "count": 10**12, "bits": ""}, of | {"bits": "zz"}, of | {"bits": 3}, 3, None]
    texts = ((1.0, "A" * 23), (1.0, "?" * 24), ("1", "A" * 24), (1e308, "/" * 24), (None, ""), (10**400, "A" * 24))
    wrong_values = [of | {"low": 0.0, "step": step, "values": text} for step, text in texts]
    for wrong in wrong_bits + wrong_values:
        assert read_outcomes({"value": 0.5, "outcomes": wrong}) is None
    assert read_outcomes({"value": 0, "outcomes": of | {"low": 0.0, "step": 1.0, "values": "A" * 24}}) is not None
