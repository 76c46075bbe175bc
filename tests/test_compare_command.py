"""Two results files compared: pairs, tests, correction, and what is said of the rest."""

import json
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
from scipy.stats import binomtest, ttest_1samp

import evaluate
from leam_mm.errors import UserError
from leam_mm.evaluators.evaluator import Metric
from leam_mm.evaluators.results import append_results
from leam_mm.intervals.compared_results import holm
from leam_mm.intervals.intervals import mean_interval, mean_test, wilson_interval
from leam_mm.intervals.outcomes import write_outcomes

KEYS = [f"image {number}" for number in range(200)]


def hits(name: str, outcomes: numpy.ndarray, keys: list[str] = KEYS) -> Metric:
    ends, share = wilson_interval(int(outcomes.sum()), len(outcomes)), float(outcomes.mean())
    return Metric(name, share, *ends, "fraction", len(outcomes), outcomes=write_outcomes(outcomes, keys))


def write(folder: Path, metrics: list[Metric], **settings: object) -> None:
    append_results(folder, metrics, {"evaluator": "x.Y", "settings": settings})


def compare(folder: Path, *words: str) -> dict[str, dict]:
    output = folder / "compared.jsonl"
    evaluate.main(["compare", str(folder / "a"), str(folder / "b"), "--output", str(output), *words])
    return {row["name"]: row for row in map(json.loads, output.read_text(encoding="utf-8").splitlines())}


def test_pairs_are_tested_as_pairs_and_others_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = numpy.random.default_rng(0)
    hard = rng.random(200)
    one, two = hard > 0.4, hard + rng.normal(0, 0.02, 200) > 0.34
    old = Metric("old", 1.0, 0, 2, "count", 3)
    write(tmp_path / "a", [hits("top1/de", one), hits("top1/fi", one, KEYS[::-1]), old])
    write(tmp_path / "b", [hits("top1/de", two), hits("top1/fi", two), Metric("audit/x", 1.0, 0, 2, "count", 3)])
    rows = compare(tmp_path)
    assert (rows["top1/de"]["kind"], rows["top1/fi"]["kind"], rows["old"]["kind"]) == ("paired", "independent", "none")
    only_a, only_b = int((one & ~two).sum()), int((two & ~one).sum())
    assert rows["top1/de"]["p_value"] == pytest.approx(binomtest(only_b, only_a + only_b).pvalue)
    assert rows["top1/de"]["p_value_holm"] < 0.05 < rows["top1/fi"]["p_value_holm"]
    assert rows["top1/de"]["low"] > 0 > rows["top1/fi"]["low"]
    assert rows["old"]["note"] == "only A was measured" and rows["old"]["b"] is None and "audit/x" not in rows
    printed = capsys.readouterr().out
    assert "1 paired, on the same samples; 1 independent" in printed and "1 differ (*)" in printed
    assert "1 not compared: only A was measured" in printed
    assert set(compare(tmp_path, "--only", "top1/de")) == {"top1/de"}


def test_a_number_that_is_indicative_only_is_marked_in_a_comparison(tmp_path: Path) -> None:
    for name, value in (("a", 0.5), ("b", 0.75)):
        score = Metric("t/encoder/soft_tifa/mean", value, 0.4, 0.8, "fraction", 9, note="a mean; indicative only: why")
        write(tmp_path / name, [score, replace(score, name="t/reader/soft_tifa/mean", note="a mean")])
    rows = compare(tmp_path)
    assert rows["t/encoder/soft_tifa/mean"]["note"] == "indicative only"
    assert rows["t/reader/soft_tifa/mean"]["note"] == ""


def test_other_settings_are_compared_and_named_but_not_other_numbers_of_samples(tmp_path: Path) -> None:
    one = numpy.arange(200) < 100
    write(tmp_path / "a", [hits("top1/de", one)], guidance=3.0, batch_size=1, output="a")
    write(tmp_path / "b", [hits("top1/de", one)], guidance=5.0, batch_size=2, output="b")
    row = compare(tmp_path)["top1/de"]
    assert row["difference"] == 0 and row["p_value"] == 1 and row["note"] == "measured with other settings: guidance"
    write(tmp_path / "b", [hits("top1/de", one[50:], KEYS[50:])])  # the newest line counts
    row = compare(tmp_path)["top1/de"]
    assert row["difference"] is None and row["note"] == "measured with another number of samples"


def test_wrong_input_is_one_line(tmp_path: Path) -> None:
    write(tmp_path / "a", [hits("top1/de", numpy.ones(200))])
    for words in ([str(tmp_path / "a"), str(tmp_path / "none")], [str(tmp_path / "a")] * 2 + ["--only", "x"]):
        with pytest.raises(UserError) as caught:
            evaluate.main(["compare", *words])
        assert "\n" not in str(caught.value)


def test_holm_is_that_of_a_worked_example() -> None:
    """p of 0.01, 0.04, 0.03, 0.005: times 3, 1, 2, 4, then made monotone."""
    assert holm([0.01, None, 0.04, 0.03, 0.005]) == pytest.approx([0.03, None, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_the_test_of_a_mean_agrees_with_its_interval() -> None:
    rng = numpy.random.default_rng(0)
    for shift in (-0.4, -0.2, 0.2, 0.4, 0.9):
        values = rng.exponential(size=40) - 1 + shift
        low, high = mean_interval(values)
        assert (mean_test(values) < 0.05) == (low > 0 or high < 0)
    half = rng.normal(size=30)
    symmetric = numpy.concatenate([0.3 + half, 0.3 - half])
    assert mean_test(symmetric) == pytest.approx(ttest_1samp(symmetric, 0).pvalue, rel=1e-6)
    assert mean_test(numpy.zeros(9)) == 1 and mean_test(numpy.ones(9)) == 0


def test_a_strangers_names_do_not_reach_the_terminal_and_inputs_are_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"name": "\x1b[31mred\nline", "value": 0.5, "low": 0.4, "high": 0.6, "samples": 9, "settings": {"\x1b[2J": 1}}
    for name, line in (("a", row | {"settings": {}}), ("b", row), ("c", row | {"name": "\x1b[0m"})):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    a, b, c = (str(tmp_path / f"{name}.jsonl") for name in "abc")
    evaluate.main(["compare", a, b])
    evaluate.main(["compare", a, c])
    assert "\x1b" not in capsys.readouterr().out
    before = Path(a).read_bytes()
    for output, message in ((a, "one of the files"), (str(tmp_path), "is a folder"), (".", "is a folder")):
        with pytest.raises(UserError, match=message):
            evaluate.main(["compare", a, b, "--output", output])
    assert Path(a).read_bytes() == before
