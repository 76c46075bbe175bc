"""The report: complete, self-contained, escaped, gaps named, charts inside their frames, no complaint of a browser."""

import itertools
import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image
from toys.pages import HtmlChecker, shown_in_browser

from leam_mm import errors
from leam_mm.callbacks.carbon import CarbonFactors
from leam_mm.errors import UserError
from leam_mm.evaluators.evaluator import Metric
from leam_mm.evaluators.language_summary import language_metrics
from leam_mm.evaluators.results import append_results
from leam_mm.report import report_page
from leam_mm.report.chart import HEIGHT, WIDTH, interval_bar, line_chart, short, thin, ticks
from leam_mm.report.report_page import main, write_report
from leam_mm.report.templates import Section, Table, render_page

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'


@pytest.fixture
def run(tmp_path: Path) -> Path:
    evaluation = tmp_path / "run" / "evaluation"
    (evaluation / "prompts").mkdir(parents=True)
    codes = ["de", "en", "mt"]
    hits = (numpy.random.default_rng(0).random((50, 3)) < [0.9, 0.95, 0.5]).astype(float)
    slices = {code: {"confusions": [{"true": HOSTILE, "predicted": "b", "count": 3}]} for code in codes}
    metrics = []
    for top in (1, 5):
        metrics += language_metrics(f"zero_shot/top{top}", hits, codes, "chance 25.00%", slices=slices)
    for way in ("image_to_text", "text_to_image"):
        for top in (1, 5, 10):
            metrics += language_metrics(f"retrieval/{way}/r{top}", hits, codes, "among 50")
    for kind, value in (("generated", 31.25), ("real", 9.5)):
        metrics.append(Metric(f"generation/frechet_distance/{kind}", value, 8, 40, "distance", 50, note="indicative"))
    metrics.append(Metric("compositional/pair", 0.5, 0.4, 0.6, "fraction", 9, {"language=de": {"value": 0.25}}))
    metrics.append(Metric("compositional/count", None, None, None, "fraction", 0, note=HOSTILE))
    metrics.append(Metric("toxicity/share", 0.125, None, None, "fraction", 8))
    evidence = {"path": "clip/last.ckpt", "sha256": "ab" * 32, "samples_seen": 1000}
    append_results(evaluation, metrics, {"checkpoints": {"clip": evidence}, "versions": {"torch": "2"}})
    Image.new("RGB", (8, 8), "red").save(evaluation / "prompts" / "000.png")
    Image.new("RGB", (80, 80), "blue").save(evaluation / "generated.png")
    entry = {"row": 0, "language": "mt", "text": f"ċirku {HOSTILE}", "image": "../../../etc/000.png"}
    (evaluation / "prompts.json").write_text(json.dumps({"languages": ["mt", "en"], "pictures": [entry]}))
    (tmp_path / "run" / "clip").mkdir()
    (tmp_path / "run" / "clip" / "metrics.csv").write_text(
        "step,train/loss,samples_seen,val/loss\n1,3.5,,\n1,,64,\n2,2.5,,\n2,,128,\n2,,,2.75\n3,nan,,\n"
    )
    (tmp_path / "run" / "codec").mkdir()
    (tmp_path / "run" / "codec" / "metrics.csv").write_text("step,val/l1\n1,0.5\n2,0.25\n")
    (tmp_path / "run" / "stages").mkdir()
    for number, joules in enumerate([3600.0, None]):
        energy = {"joules": joules, "source": "RAPL" if joules else "not measured"}
        carbon = CarbonFactors(400.0, 20.0, 1.5, HOSTILE).emitted(joules)
        stage = {"name": f"stage_{number}", "command": ["python", HOSTILE], "seconds": 100, "energy": energy}
        stage |= {"carbon": carbon, "unmeasured_seconds": 25.0 if joules else 0.0}
        (tmp_path / "run" / "stages" / f"{number}.json").write_text(json.dumps(stage))
    return tmp_path / "run"


@pytest.fixture
def page(run: Path) -> str:
    write_report(run, run / "report.html", f"Run {HOSTILE}")
    return (run / "report.html").read_text(encoding="utf-8")


def test_every_part_is_there(page: str) -> None:
    for text in ("31.2", "9.5", "Maltese", "Encoder", "RAPL", "indicative", "ab" * 32, "R@10", "12.5 %"):
        assert text in page, text
    assert "1 Wh" in page and "only 1 of 2 stages" in page
    assert page.count("not measured") >= 2
    assert "0.6 g CO2e" in page and "0.03 g CO2e" in page and "RAPL; measured in 75% of the time" in page
    assert "location-based 400 g/kWh; market-based 20 g/kWh; PUE 1.5" in page
    for name in ("images", "classification", "retrieval", "composition", "distance", "other", "training", "cost"):
        assert f'<section id="{name}">' in page and f'href="#{name}"' in page
    assert '<span lang="mt">' in page
    assert "Latent codec: mean absolute error of held-out images" in page
    assert "language: German" in page


def test_page_is_well_formed_escaped_and_asks_for_nothing(page: str) -> None:
    parser = HtmlChecker()
    parser.feed(page)
    assert parser.open == []
    assert "script" not in {tag for tag, _ in parser.seen}
    for tag, attributes in parser.seen:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("data:", "#", "report.de.html")), attributes
    assert "default-src 'none'" in page
    assert not re.search(r"url\(|@import|https?:", page)


def test_no_field_of_a_result_becomes_markup(run: Path) -> None:
    file = run / "evaluation" / "results.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def texts(value: Any) -> Any:
        if isinstance(value, dict):
            return {f"{key}{HOSTILE}" if key == "language=de" else key: texts(entry) for key, entry in value.items()}
        return f"{value}{HOSTILE}" if isinstance(value, str) else value

    hostile = [texts(row) | {"name": row["name"]} for row in rows]
    hostile += [{**texts(rows[-1]), "name": f"{HOSTILE}/{HOSTILE}"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in hostile), encoding="utf-8")
    write_report(run, run / "report.html", "Run")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert HOSTILE not in page and page.count("&lt;") > 20
    file.write_text(json.dumps(rows[-1] | {"samples": HOSTILE}) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="samples"):
        write_report(run, run / "report.html", "Run")
    sections = [Section("cost", "Cost", Table(["a", "b"], [["c", HOSTILE]]))]
    shown = render_page(Path(report_page.__file__).with_name("report.html.jinja"), "x", "", [], sections, "")
    assert HOSTILE not in shown and "&lt;" in shown


def test_loss_is_placed_by_samples_seen(page: str) -> None:
    assert "samples seen" in page
    charts = re.findall(r'<svg class="chart".*?</svg>', page[page.index('<section id="training">') :], re.DOTALL)
    places = [[float(x) for x in re.findall(r'<circle class="dot dot-\d" cx="([\d.]+)"', chart)] for chart in charts]
    assert [len(found) for found in places] == [3, 2]  # two of the training loss and one of validation; the codec's
    # Steps 1 and 2 of 64 samples: at half and at the end of the frame.
    first, second, validation = places[0]
    assert first == pytest.approx((46 + second) / 2, abs=0.2) and validation == second
    assert "<polyline" not in page  # two points are no curve


def test_path_from_inside_a_file_is_not_followed(page: str, run: Path) -> None:
    # The entry points outside; only its file name is used, and that lies in prompts/.
    assert page.count("data:image/png;base64,") == 2


def test_evaluation_folder_alone_is_enough(run: Path) -> None:
    write_report(run / "evaluation", run / "evaluation" / "report.html", "Evaluation")
    page = (run / "evaluation" / "report.html").read_text()
    assert "Maltese" in page and '<section id="training">' not in page


def test_audits_have_a_folder_of_their_own(run: Path) -> None:
    (run / "audits").mkdir()
    line = {"name": "audit/energy/images", "value": 0.25, "unit": "kWh per 1,000", "samples": 9, "verdict": "pass"}
    (run / "audits/results.jsonl").write_text(json.dumps(line) + "\n")
    write_report(run, run / "report.html", title="Run")
    text = (run / "report.html").read_text(encoding="utf-8")
    assert 'id="audits"' in text and "Energy" in text and "kWh per 1,000" in text


def test_errors_are_one_line(tmp_path: Path, run: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nothing to report"):
        write_report(tmp_path / "empty", tmp_path / "empty" / "r.html", "x")
    assert not list((tmp_path / "empty").iterdir())
    (run / "evaluation" / "prompts.json").write_text("{")
    with pytest.raises(UserError, match=r"prompts\.json"):
        write_report(run, run / "r.html", "x")
    (run / "evaluation" / "prompts.json").unlink()
    (run / "evaluation" / "broken.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"broken\.png"):
        write_report(run, run / "r.html", "x")
    (run / "stages" / "0.json").write_text("{")
    with pytest.raises(UserError, match=r"0\.json"):
        write_report(run, run / "r.html", "x")


def test_summary_gives_the_stages_where_there_is_no_folder(run: Path) -> None:
    shutil.rmtree(run / "stages")
    (run / "summary.json").write_text('{"stages": [{"name": "alone", "seconds": 7300, "energy": null}, 3]}')
    write_report(run, run / "report.html", "x")
    page = (run / "report.html").read_text()
    assert "alone" in page and "2.0 h" in page and "not measured" in page
    assert "Emissions, not given" in page and "CO2e" not in page


def test_command_line(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["report", "--run", str(run)])
    errors.run(main)
    assert capsys.readouterr().out == f"wrote {run / 'report.html'} and, in German, {run / 'report.de.html'}\n"
    assert "<h1>Run run</h1>" in (run / "report.html").read_text()
    monkeypatch.setattr(sys, "argv", ["report", "--run", str(run / "no")])
    with pytest.raises(SystemExit) as caught:
        errors.run(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: --run")


def test_browser_has_no_complaint(page: str, run: Path, tmp_path: Path) -> None:
    shown = shown_in_browser(run / "report.html", tmp_path / "profile")
    assert '<section id="cost">' in shown
    assert "<script" not in shown


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.02, 0.4), (-3, 7), (1e5, 3e6), (5, 5), (0, 0), (-1e-9, 1e-9)])
def test_ticks_cover_and_are_few(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low + 1e-12 and found[-1] >= high - 1e-12
    assert 2 <= len(found) <= 7
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert max(steps) == pytest.approx(min(steps))


def test_thin_keeps_means_and_drops_what_is_not_finite() -> None:
    points = [(float(x), 3.0 * x) for x in range(1000)]
    thinned = thin(points, most=100)
    assert len(thinned) == 100
    assert all(y == pytest.approx(3 * x) for x, y in thinned)
    assert thin([(1.0, math.nan), (2.0, math.inf), (0.0, 1.0)]) == [(0.0, 1.0)]
    assert thin([]) == []


def test_curve_stays_inside_the_frame_and_escapes_names() -> None:
    svg = line_chart({"<b>": [(x, math.sin(x)) for x in range(50)], "one": [(3, 0.2)]}, "x", "t & t")
    assert svg.count("<polyline") == 1 and svg.count("<circle") == 1
    assert "<b>" not in svg.replace("<b>0", "").replace("<b>-0", "") and "&lt;b&gt;" in svg
    assert "t &amp; t" in svg
    for points in re.findall(r'points="([^"]+)"', svg):
        for pair in points.split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= WIDTH and 0 <= y <= HEIGHT
    assert "<circle" in svg


def test_nothing_to_draw_is_empty() -> None:
    assert line_chart({"a": [(1, math.nan)]}, "x", "t") == ""
    assert line_chart({}, "x", "t") == ""


def test_interval_bar_is_clipped_and_proportional() -> None:
    svg = interval_bar(0.25, 0.2, 0.9, upper=0.5, mark=0.1)
    assert 'width="50.0"' in svg
    assert "M40.0 6H100.0" in svg
    assert "M20.0 0V12" in svg
    assert "interval" not in interval_bar(0.5, None, None).replace("interval-bar", "")


def test_short_numbers() -> None:
    assert [short(n) for n in (0, 0.1234, 12, 1234, 2.5e6, 3e9)] == ["0", "0.123", "12", "1.23k", "2.5M", "3G"]
