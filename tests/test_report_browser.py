"""Report and data page in a browser: no violation of axe, nothing wider than a phone, intervals in sight, no script."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from toys.pages import metric_row

from data_tools.description.statistics_page import page as data_page
from leam_mm.audits.audit import AuditResult, Threshold
from leam_mm.evaluators.contact_sheet import ShownImage, write_contact_sheet
from leam_mm.evaluators.language_summary import language_metrics
from leam_mm.evaluators.results import append_results
from leam_mm.languages import LANGUAGES
from leam_mm.report.report_page import write_report

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
LONG = "W" * 300
# Elements that reach beyond the window and are not inside an area that scrolls by itself.
TOO_WIDE = """() => [...document.querySelectorAll('body *')].filter(element => !element.closest('.scroll, pre, svg')
  && element.getBoundingClientRect().right > innerWidth + 1).map(element => element.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pages")
    run = folder / "run"
    write_evaluation(run / "evaluation")
    (run / "stages").mkdir()
    stage = {"name": "clip", "command": f"python {LONG}", "seconds": 100, "energy": {"joules": 3600.0, "source": LONG}}
    (run / "stages" / "clip.json").write_text(json.dumps(stage))
    (run / "clip").mkdir()
    (run / "clip" / "metrics.csv").write_text("step,train/loss\n1,3.5\n2,2.5\n3,2\n")
    write_report(run, run / "report.html", "A run")
    for code in ("en", "de"):
        (folder / f"data.{code}.html").write_text(data_page(statistics(), thumbnails(), "Data", code))
    return [run / "report.html", run / "report.de.html", folder / "data.en.html", folder / "data.de.html"]


def write_evaluation(evaluation: Path) -> None:
    """Write results of each kind, texts of any length among them."""
    evaluation.mkdir(parents=True)
    draw = numpy.random.default_rng(0)
    hits = (draw.random((60, len(LANGUAGES))) < 0.8).astype(float)
    table = {"classes": [f"class_{number}" for number in range(12)], "counts": numpy.eye(12, dtype=int).tolist()}
    slices: dict[str, dict] = {code: {"confusion_table": table} for code in LANGUAGES}
    codes = list(LANGUAGES)
    lines: list[Any] = language_metrics("zero_shot/top1", hits, codes, "chance 8.33%", slices=slices)
    lines += language_metrics("zero_shot/top5", hits, codes, "chance 8.33%")
    for way in ("image_to_text", "text_to_image"):
        for top in (1, 5, 10):
            lines += language_metrics(f"retrieval/{way}/r{top}", hits, codes, "among 60")
    curve = {f"duplication_{copies}": {"value": copies / 99, "samples": 9} for copies in (1, 4, 16, 64)}
    lines.append(AuditResult("memorization/canaries", 0.2, 0.1, 0.3, "fraction", 9, Threshold(most=0.01), curve, LONG))
    lines.append(AuditResult("opt_out", None, None, None, "", 0, None, reason="no shards was given", not_run=True))
    append_results(evaluation, lines, {"evaluator": LONG, "settings": {"a": LONG}})
    rows = [
        metric_row(f"generation/{name}/{kind}", 3.0, unit="distance")
        for name in ("frechet_distance", LONG)
        for kind in ("generated", "real")
    ]
    rows += [metric_row(f"compositional/generated/{LONG}", note=LONG), metric_row(LONG, slices={LONG: {"value": 1.0}})]
    with open(evaluation / "results.jsonl", "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row | {"evaluator": LONG}) + "\n" for row in rows)
    control = {"subject": LONG, "control": LONG, "kind": "positive", "expected": "fail", "found": LONG, "caught": True}
    (evaluation / "selftest.json").write_text(json.dumps({"rows": [control]}))
    shown = [
        ShownImage(draw.integers(0, 256, (8, 8, 3), "uint8"), LONG, "mt", verdict={"count": number > 1, "colour": True})
        for number in range(4)
    ]
    write_contact_sheet(evaluation, "compositional", "Generated images and what was read in them", shown, object())


def statistics() -> dict[str, Any]:
    counters = (
        *("samples_by_language", "caption_sources", "licence", "legal_basis", "crawler", "formats", "sides"),
        *("shapes", "transforms", "consent", "months"),
    )
    stage = {"stage": "screen_links", "given": 9, "kept": 4, "withdrawn_later": 1, "dropped": {LONG: 5}}
    accounting = {"links": 9, "dropped": 5, "withdrawn": 1, "kept": 3, "faults": []}
    folder = {"name": LONG, "samples": 3, "shards": 1, "merkle_root": "ab" * 32}
    return {
        "samples": 3, "captions": 9, "words": 99, "image_bytes": 12345, "languages": {"mt": 3, "xx": 1},
        "machine_translated": {}, "domain_count": 1, "duplicates_removed": None, "accounting": accounting,
        "largest_domains": [{"domain": LONG, "samples": 3, "bytes": 9}], "domain_bytes": "stored", "stages": [stage],
        "data_sets": [folder], **{name: {LONG: 3} for name in counters},
    }  # fmt: skip


def thumbnails() -> list[dict[str, Any]]:
    captions = [{"text": LONG, "language": code} for code in ("bg", "de", "not a code")]
    address = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
    return [{"key": "1", "record": {"captions": captions, "domain": LONG}, "address": address, "size": (24, 24)}]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


def open_page(browser: Any, path: Path, theme: str = "light", width: int = 1280) -> Any:
    tab = browser.new_context(color_scheme=theme, viewport={"width": width, "height": 844}).new_page()
    tab.faults, tab.requested = [], []
    tab.on("console", lambda message: tab.faults.append(message.text))
    tab.on("request", lambda request: tab.requested.append(request.url))
    tab.goto(path.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(element => element.open = true)")
    return tab


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 360)])
def test_axe_finds_nothing(browser: Any, pages: list[Path], theme: str, width: int) -> None:
    for path in pages:
        tab = open_page(browser, path, theme, width)
        found = axe.Axe().run(tab).response["violations"]
        shown = [(each["id"], [node["html"][:200] for node in each["nodes"]][:3]) for each in found]
        assert not found, f"{path.name} {theme} {width}: {shown}"
        assert not tab.faults and all(url.startswith(("file:", "data:")) for url in tab.requested)
        tab.context.close()


def test_nothing_is_wider_than_the_window(browser: Any, pages: list[Path]) -> None:
    for path in pages:
        for width in (360, 700, 961):
            tab = open_page(browser, path, width=width)
            assert not tab.evaluate(TOO_WIDE), f"{path.name} at {width}"
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            tab.context.close()


def test_the_switch_leads_to_the_other_language_and_intervals_are_in_sight(browser: Any, pages: list[Path]) -> None:
    tab = open_page(browser, pages[0], width=390)
    small = tab.locator("#classification tbody td small").first
    assert small.is_visible() and " to " in small.inner_text()
    reason = tab.locator("#audits td[data-label=Reason]").first
    assert "Reason" in reason.evaluate(
        "element => getComputedStyle(element, '::before').content + element.dataset.label"
    )
    tab.get_by_role("link", name="Deutsch").click()
    assert tab.evaluate("document.documentElement.lang") == "de"
    assert " bis " in tab.locator("#classification tbody td small").first.inner_text()
    tab.get_by_role("link", name="English").click()
    assert tab.evaluate("document.documentElement.lang") == "en"
