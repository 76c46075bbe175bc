"""Two releases side by side: which interval a difference has, and a page that shows all and runs nothing."""

import json
import math
import shutil
from pathlib import Path

import numpy
import pytest
from toys.pages import metric_row

from leam_mm.evaluators.language_summary import language_metrics
from leam_mm.evaluators.outcomes import read_outcomes, write_outcomes
from leam_mm.files import file_sha256
from leam_mm.release.__main__ import main
from leam_mm.release.difference_interval import difference, paired_difference
from leam_mm.release.release_comparison import comparison_page
from leam_mm.release_record import read_record, write_record


def change_results(release: Path, change: object) -> None:
    """Change the lines of results.jsonl and write the record anew; the documents then contradict them."""
    path = release / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = change(rows)  # type: ignore[operator]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = read_record(release)
    digests = {name: file_sha256(release / name) for name in record.files}
    write_record(
        release, digests, {k: v for k, v in record.content.items() if k not in ("files", "own_sha256", "format")}
    )


def test_the_paired_interval_is_that_of_newcombes_table() -> None:
    """Newcombe 1998 (Statistics in Medicine 17, 2635), table III, method 10: 36, 12, 2, 0 of 50: 0.0569 to 0.3404."""
    one = numpy.array([True] * 36 + [False] * 12 + [True] * 2)  # A: right in 38
    other = numpy.array([True] * 48 + [False] * 2)  # B: right in 48
    found = paired_difference(one, other)
    assert found.kind == "paired" and found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.0569, 0.3404), abs=6e-5)


def test_the_independent_interval_is_that_of_newcombes_table() -> None:
    """Newcombe 1998 (Statistics in Medicine 17, 873), table II, method 10: 56/70 - 48/80: 0.0524 to 0.3339."""
    from leam_mm.evaluators.intervals import wilson_interval

    def row(hits: int, count: int) -> dict:
        low, high = wilson_interval(hits, count)
        return metric_row("x", hits / count, low=low, high=high)

    found = difference(row(48, 80), row(56, 70))
    assert found.kind == "independent" and found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=6e-5)


def test_paired_intervals_cover_as_often_as_they_say() -> None:
    rng = numpy.random.default_rng(0)
    covered, shorter = 0, 0
    for _ in range(400):
        hard = rng.random(200)
        one, other = hard + rng.normal(0, 0.1, 200) > 0.40, hard + rng.normal(0, 0.1, 200) > 0.35
        found = paired_difference(one, other)
        rows = [metric_row("x", hits.mean(), low=None, high=None) for hits in (one, other)]
        for row, hits in zip(rows, (one, other), strict=True):
            half = 1.96 * math.sqrt(hits.mean() * (1 - hits.mean()) / 200)
            row |= {"low": hits.mean() - half, "high": hits.mean() + half}
        independent = difference(*rows)
        assert found.low is not None and found.high is not None
        assert independent.low is not None and independent.high is not None
        covered += found.low <= 0.05 <= found.high
        shorter += found.high - found.low < independent.high - independent.low
    assert 370 <= covered <= 396 and shorter == 400


def test_outcomes_are_written_by_the_evaluators_and_read_back() -> None:
    hits = numpy.array([[1, 0], [1, 1], [0, math.nan], [1, 1], [0, 0]], dtype=float)
    metrics = {m.name: m.as_dict() for m in language_metrics("x", hits, ["de", "fi"], keys=list("abcde"))}
    found = read_outcomes(metrics["x/de"])
    assert found is not None and found[1].tolist() == [True, True, False, True, False]
    fewer = read_outcomes(metrics["x/fi"])
    assert fewer is not None and len(fewer[1]) == 4 and fewer[0] != found[0]
    assert "outcomes" not in metrics["x/mean"]
    assert read_outcomes(metrics["x/de"] | {"value": 0.9}) is None  # belongs to another result
    for wrong in ({}, {"of": "x", "count": 10**12, "bits": ""}, {"of": "x", "count": 9, "bits": "zz"}, 3):
        assert read_outcomes({"value": 0.5, "outcomes": wrong}) is None
    assert "outcomes" not in language_metrics("x", hits, ["de", "fi"])[3].as_dict()


def test_the_page_says_which_interval_each_difference_has(release: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(release, tmp_path / "other"))
    keys = [str(number) for number in range(96)]
    one, two = numpy.arange(96) < 60, numpy.arange(96) < 80

    def rows(hits: numpy.ndarray, extra: list[dict]) -> object:
        def change(found: list[dict]) -> list[dict]:
            paired = found[0] | {"value": float(hits.mean()), "outcomes": write_outcomes(hits, keys)}
            return [paired, found[1], *extra]

        return change

    unsafe = metric_row("<script>alert(1)</script>")
    change_results(release, rows(one, [unsafe, metric_row("audit/fair", 0.5, passed=True), metric_row("a", None)]))
    change_results(other, rows(two, [metric_row("audit/fair", 0.1, passed=False), metric_row("a", samples=3)]))
    page = comparison_page(release, other)
    assert "<script" not in page and "&lt;script&gt;" in page and "only A was measured" in page
    assert "1 paired, 1 independent" in page and "+20.8 points *" in page
    assert "passed" in page and "failed" in page and "measured with other samples" in page
    assert "2 kWh" in page and "640" in page and "not measured" in page
    root = next(iter(read_record(release).content["stages"]["clip"]["data"]))
    assert root in page and "A and B" in page


def test_a_damaged_release_is_not_compared(release: Path, built_release: Path, tmp_path: Path) -> None:
    (release / "results.jsonl").write_text("")
    with pytest.raises(SystemExit):
        main(["compare", str(built_release), str(release), "--output", str(tmp_path / "page.html"), "--no-cache"])
    assert not (tmp_path / "page.html").exists()
    main(["compare", str(built_release), str(built_release), "--output", str(tmp_path / "page.html"), "--no-cache"])
    page = (tmp_path / "page.html").read_text()
    assert "<h1>lab/toy and lab/toy</h1>" in page and "+0.0 points" in page and "0 of" not in page
