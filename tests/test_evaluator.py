"""Evaluators: intervals against closed forms, metrics as JSON, summaries over languages, the file of results."""

import json
from pathlib import Path

import numpy
import pytest
from toys.generators import write_generator_run

from leam_mm.errors import UserError
from leam_mm.evaluators.evaluator import EvaluationContext, Evaluator, Metric
from leam_mm.evaluators.image_features import EfficientNetLite0
from leam_mm.evaluators.language_summary import language_metrics
from leam_mm.evaluators.results import append_results, evidence, read_lines, read_results


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


def summary(hits: numpy.ndarray, languages: list[str]) -> dict[str, Metric]:
    return {metric.name: metric for metric in language_metrics("x", hits, languages)}


def test_a_generator_finds_moved_parts_whichever_network_is_used_first(
    tmp_path: Path, toy_checkpoints: dict[str, Path]
) -> None:
    given = {name: toy_checkpoints[name] for name in ("clip", "codec")}
    context = EvaluationContext(given["clip"], write_generator_run(tmp_path, **given), tmp_path, codec=given["codec"])
    context.require_clip(), context.require_codec()
    assert context.require_generator().frozen.elsewhere == {name: str(path) for name, path in given.items()}


def test_summary_values_and_order() -> None:
    hits = numpy.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    found = {name: metric.value for name, metric in summary(hits, ["en", "de"]).items()}
    assert found == {"x/mean": 0.5, "x/min": 0.25, "x/min_over_mean": 0.5, "x/en": 0.75, "x/de": 0.25}
    assert list(found) == ["x/mean", "x/min", "x/min_over_mean", "x/en", "x/de"]
    assert summary(hits, ["en", "de"])["x/min_over_mean"].unit == "ratio"


def test_equal_languages_have_a_ratio_without_spread() -> None:
    column = (numpy.random.default_rng(0).random(200) < 0.4).astype(float)
    found = summary(numpy.stack([column] * 3, axis=1), ["en", "de", "fr"])
    ratio, mean = found["x/min_over_mean"], found["x/mean"]
    assert (ratio.value, ratio.high) == pytest.approx((1.0, 1.0))
    assert ratio.low is not None and 0.97 < ratio.low < 1  # 200 equal images do not prove that all are equal
    # The same image three times is one image: the mean is no more certain than one language is.
    assert mean.low is not None and mean.high is not None
    assert mean.high - mean.low == pytest.approx(2 * 1.96 * numpy.sqrt(0.24 / 200), rel=0.25)


def test_summary_counts_no_gap_as_zero() -> None:
    hits = numpy.array([[1.0, numpy.nan], [1.0, 1.0], [0.0, numpy.nan]])
    found = summary(hits, ["en", "mt"])
    assert found["x/en"].samples == 3
    assert (found["x/mt"].samples, found["x/mt"].value) == (1, 1.0)
    assert (found["x/mean"].samples, found["x/mean"].value) == (1, 1.0)
    nothing = summary(numpy.array([[1.0, numpy.nan]]), ["en", "mt"])
    assert nothing["x/mt"].value is None and nothing["x/mt"].low is None
    assert nothing["x/mean"].value is None
    assert "cannot be compared" in nothing["x/mean"].note


def test_summary_without_hits_has_no_ratio() -> None:
    found = summary(numpy.zeros((5, 2)), ["en", "de"])
    assert found["x/mean"].value == 0.0
    assert found["x/min_over_mean"].value is None


class Measured(Evaluator):
    def __init__(self, folder: Path) -> None:
        self.folder, self.languages, self.features, self.limit = folder, ["de"], EfficientNetLite0(), None


def test_append_keeps_lines_and_the_newest_counts(tmp_path: Path) -> None:
    append_results(tmp_path, [Metric("a", 0.1, None, None, "fraction", 1), Metric("b", float("nan"), 0, 1, "x", 1)], {})
    append_results(tmp_path, [Metric("a", 0.2, None, None, "fraction", 2, note="zweite Zählung")], {"time": "t"})
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 3
    results = read_results(tmp_path)
    assert list(results) == ["a", "b"]
    assert (results["a"]["value"], results["a"]["time"], results["a"]["note"]) == (0.2, "t", "zweite Zählung")
    assert results["b"]["value"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]
    assert read_results(tmp_path / "none") == {}


def test_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"name": "a"}\n{"name"\n')
    with pytest.raises(UserError, match="line 2"):
        read_results(tmp_path)


def test_evidence_is_plain_and_names_used_checkpoints_only(tmp_path: Path) -> None:
    class Loaded:
        checkpoint_evidence = {"path": "x.ckpt", "sha256": "ab"}  # noqa: RUF012

    context = EvaluationContext(Loaded(), Path("unused.ckpt"), tmp_path)
    assert evidence(context, Measured(tmp_path), 0.0)["checkpoints"] == {"clip": None, "generator": None}
    context.require_clip()
    found = evidence(context, Measured(tmp_path), 1.26)
    assert json.loads(json.dumps(found)) == found
    assert found["checkpoints"] == {"clip": {"path": "x.ckpt", "sha256": "ab"}, "generator": None}
    assert found["settings"] == {
        "folder": tmp_path.name,
        "languages": ["de"],
        "features": "leam_mm.evaluators.image_features.EfficientNetLite0",
        "limit": None,
    }
    assert found["seconds"] == 1.3


def test_one_language_is_compared_with_none() -> None:
    found = summary(numpy.array([[1.0], [0.0], [1.0]]), ["en"])["x/min_over_mean"]
    assert found.value is None and found.low is None and "nothing to compare" in found.note


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e300", "9" * 400, "true", '"1"'])
def test_lines_with_numbers_that_are_none_are_named(tmp_path: Path, value: str) -> None:
    for key in ("value", "low", "samples"):
        (tmp_path / "results.jsonl").write_text(f'\n{{"name": "x", "{key}": {value}}}\n')
        with pytest.raises(UserError, match=f"line 2: {key}"):
            read_lines(tmp_path / "results.jsonl")
