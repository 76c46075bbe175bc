"""Results: lines are added, the newest of a name counts, damage is one line, settings are told."""

import json
from pathlib import Path

import pytest

from leam_mm.errors import UserError
from leam_mm.evaluators.evaluator import EvaluationContext, Evaluator, Metric
from leam_mm.evaluators.image_features import EfficientNetLite0
from leam_mm.evaluators.results import append_results, evidence, read_results


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

    found = evidence(EvaluationContext(Loaded(), Path("unused.ckpt"), tmp_path), Measured(tmp_path), 1.26)
    assert json.loads(json.dumps(found)) == found
    assert found["checkpoints"] == {"clip": {"path": "x.ckpt", "sha256": "ab"}, "generator": None}
    assert found["settings"] == {
        "folder": str(tmp_path),
        "languages": ["de"],
        "features": "leam_mm.evaluators.image_features.EfficientNetLite0",
        "limit": None,
    }
    assert found["seconds"] == 1.3
