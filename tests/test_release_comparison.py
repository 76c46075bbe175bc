"""Two releases side by side: which interval a difference has, and a page that shows all and runs nothing."""

import json
import shutil
from pathlib import Path

import numpy
import pytest
from toys.pages import metric_row

from leam_mm.files import file_sha256
from leam_mm.intervals.outcomes import write_outcomes
from leam_mm.release.__main__ import main
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
    assert "passed" in page and "failed" in page and "measured with another number of samples" in page
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
