"""Sections of the report: key figures, audits, self-test, languages, confusion matrices, two languages, commands."""

import json
import re
import string
from pathlib import Path
from typing import Any

import pytest
from toys.pages import HtmlChecker, metric_row

from leam_mm.audits.audit import AuditResult, Threshold
from leam_mm.errors import UserError
from leam_mm.evaluators.contact_sheet import FORMAT
from leam_mm.report import report_words
from leam_mm.report.audit_section import audits, duplication_chart, read_selftest, selftest, threshold
from leam_mm.report.chart import Point, interval_chart
from leam_mm.report.key_figures import key_figures
from leam_mm.report.language_section import confusion_matrices, retrieval, score_groups, scores, side_by_side
from leam_mm.report.report_images import MAX_PER_SHEET, SHEET_FORMAT, images
from leam_mm.report.report_number import carbon_factors, duration, exact, in_unit, interval, number
from leam_mm.report.report_page import read_stages, report_page
from leam_mm.report.report_run import repeat
from leam_mm.report.report_section import distances, others
from leam_mm.report.report_words import GERMAN, metric_title, word

HOSTILE = '<script>alert(1)</script>{0}{}"><img src=x onerror=alert(2)>'


def rows(*found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in found}


def by_language(name: str, values: dict[str, float], **more: Any) -> list[dict[str, Any]]:
    codes = [metric_row(f"{name}/{code}", value, **more) for code, value in values.items()]
    worst = min(values, key=values.__getitem__)
    note = f"worst language: {worst}; a protocol"
    mean = metric_row(f"{name}/mean", sum(values.values()) / len(values), note="a protocol, chance 25.00%")
    return [mean, metric_row(f"{name}/min", values[worst], note=note), *codes]


AUDITS = {
    row["name"]: row
    for row in (
        AuditResult("energy", 0.2, 0.19, 0.21, "kWh", 9, Threshold(most=0.5), maps_to=["AI Act Annex XI"]).as_dict(),
        AuditResult("memorization/canaries", 0.2, 0.1, 0.3, "fraction", 40, Threshold(most=0.0001), {
            f"duplication_{copies}": {"value": copies / 100, "low": 0.0, "high": copies / 80, "samples": 10}
            for copies in (64, 1, 16, 4)
        }).as_dict(),
        AuditResult("opt_out", None, None, None, "", 0, None, reason="no shards was given", not_run=True).as_dict(),
        AuditResult("language_parity", 0.8, 0.7, 0.9, "ratio", 40, Threshold(least=0.75)).as_dict(),
    )
}  # fmt: skip


def test_weak_numbers_stand_beside_strong_ones() -> None:
    results = AUDITS | rows(
        *by_language("zero_shot/top1", {"de": 0.9, "mt": 0.2}),
        *(metric_row(f"compositional/generated/{key}", value) for key, value in (("a", 0.9), ("b", 0.5), ("c", 0.1))),
        metric_row("compositional/real/pair/a", 0.01),
        *(metric_row(f"generation/{name}/{kind}", value, unit=unit) for name, unit, value in (
            ("frechet_distance", "distance", 31.25), ("precision", "fraction", 0.066), ("recall", "fraction", 0.4)
        ) for kind in ("generated", "real")),
    )  # fmt: skip
    found = {figure.label: figure for figure in key_figures(results, [], {}, "en")}
    assert found["Audits passed"].value == "1 of 3"
    assert found["Audits passed"].note == "1 failed: memorization/canaries; 1 inconclusive; 1 not run"
    weakest = found["Classification, weakest language"]
    assert (weakest.value, weakest.note, weakest.interval) == ("20.0 %", "Maltese", "40.0 to 60.0 %")
    assert found["Following a description, middle of 3"].value == "50.0 %"
    assert found["Following a description, weakest of 3"].value == "10.0 %"  # and not that of real images
    assert found["Generated images, weakest of 2"].value == "6.6 %"
    assert all(figure.interval for label, figure in found.items() if label != "Audits passed")
    controls = {"rows": [{"control": "a", "caught": True}, {"control": "b", "caught": False}, {"control": "c"}]}
    (caught,) = key_figures({}, [], controls, "de")
    assert (caught.label, caught.value, caught.note) == ("Erkannte Kontrollen", "1 von 3", "nicht erkannt: b, c")


def test_of_several_scores_of_one_evaluator_the_lowest_has_the_figures() -> None:
    results = rows(
        *by_language("text_to_image/encoder/soft_tifa", {"de": 0.9, "mt": 0.7}),
        *by_language("text_to_image/scene_reader/all_atoms", {"de": 0.6, "mt": 0.4}),
        *by_language("clip_score/generated", {"de": 0.95, "mt": 0.85}),
    )
    assert [figure.value for figure in key_figures(results, [], {}, "en")] == ["50.0 %", "40.0 %", "90.0 %", "85.0 %"]


def test_a_number_that_is_indicative_only_says_so_on_its_tile_and_chart() -> None:
    doubt = "arithmetic mean; indicative only: judge right in 93.0%; a protocol"
    sound, doubted = (by_language(f"t/{judge}/soft_tifa", {"de": 0.6, "mt": 0.4}) for judge in ("reader", "encoder"))
    results = rows(*sound, *(row | {"note": f"{row['note']}; {doubt}", "value": row["value"] / 2} for row in doubted),
                   metric_row("g/frechet_distance/generated", 9.0, unit="distance", note=doubt),
                   metric_row("g/precision/generated", 0.2),
                   metric_row("compositional/generated/a", 0.3, note=doubt))  # fmt: skip
    for language, mark in (("en", "indicative only"), ("de", "nur ein Anhaltswert")):
        notes = [str(figure.note) for figure in key_figures(results, [], {}, language)]
        assert [mark in note for note in notes] == [True, True, True, True, False], notes
        assert [mark in title for title, _ in side_by_side(results, language)] == [False, True]
    assert [figure.note for figure in key_figures(rows(*sound), [], {}, "en")] == ["mean of 2 languages", "Maltese"]


def test_audits_name_the_verdict_by_word_and_symbol_failed_ones_first() -> None:
    found = audits(AUDITS, "en")
    assert found is not None
    names = [str(row[0]).partition("<")[0] for row in found["table"].rows]
    assert names == ["Memorization/canaries", "Language parity", "Energy", "Opt out"]
    verdicts = [re.sub("<[^>]+>", "", str(row[1])) for row in found["table"].rows]
    assert verdicts == ["✗ fail", "? inconclusive", "✓ pass", "– not run"]
    limits = [row[3] for row in found["table"].rows]
    assert limits == ["at most 0.01 %", "at least 0.75", "at most 0.5 kWh", "none"]
    assert "answers AI Act Annex XI" in str(found["table"].rows[2][0])
    assert "not measured" in str(found["table"].rows[3][2]) and found["table"].rows[3][5] == "no shards was given"
    ((title, chart),) = found["curves"]
    assert title == "Memorization/canaries" and "1 1.0 %, 4 4.0 %, 16 16.0 %, 64 64.0 %" in chart  # by duplication
    assert "bestanden" in str(audits(AUDITS, "de")) and audits({}, "en") is None


def test_a_hostile_audit_is_inconclusive_and_never_markup() -> None:
    row = metric_row("audit/x", 0.5, verdict=["pass"], threshold={"least": HOSTILE, "most": True}, maps_to=HOSTILE)
    row["slices"] = {"duplication_4": HOSTILE, f"duplication_{9**99}": {"value": 1}, "duplication_٤": {"value": 1}}
    found = audits({"audit/x": row}, "en")
    assert found is not None and "inconclusive" in str(found["table"].rows[0][1]) and found["curves"] == []
    assert threshold(row, "en") == "none" and duplication_chart("x", {"slices": []}, "en") == ""


def test_selftest_shows_missed_controls_first(tmp_path: Path) -> None:
    row = {
        "subject": "audit/a",
        "control": HOSTILE,
        "kind": "positive",
        "expected": "fail",
        "found": "fail",
        "caught": True,
    }
    table = selftest({"rows": [row, row | {"control": "b", "caught": "yes"}, 3]}, "en")
    assert table is not None and [row[1] for row in table.rows] == ["b", HOSTILE]
    assert "1 of 2 controls" in str(table.caption) and "missed" in str(table.rows[0][-1])
    assert selftest({"rows": 3}, "en") is None and read_selftest([tmp_path / "no", tmp_path]) == {}
    (tmp_path / "selftest.json").write_text("[")
    with pytest.raises(UserError, match=r"selftest\.json"):
        read_selftest([tmp_path / "no", tmp_path])


def test_scores_by_language_are_found_whatever_their_name() -> None:
    results = rows(
        *by_language("text_to_image/judge/soft_tifa", {"de": 0.25, "fr": 0.75}),
        *by_language("zero_shot/top1", {"de": 0.9, "mt": 0.2}),
        *(row for way in ("image_to_text", "text_to_image") for top in (1, 5, 10)
          for row in by_language(f"retrieval/{way}/r{top}", {"de": 0.9, "mt": 0.2})),
        metric_row("text_to_image/judge/parity", 0.3),
    )  # fmt: skip
    assert score_groups(results) == ["text_to_image/judge/soft_tifa"]
    (group,) = scores(results, "de")
    assert [str(row[0]).partition("<")[0] for row in group["table"].rows] == ["Französisch", "Deutsch"]
    assert any("Deutsch 25,0 %" in str(sentence) for sentence in group["summary"])
    charts = side_by_side(results, "en")
    assert [title for title, _ in charts] == [
        "Text to image · judge · Soft-TIFA", "Zero-shot classification, top-1",
        "Retrieval, published protocol · image to text · recall at 1",
        "Retrieval, published protocol · text to image · recall at 1",
    ]  # fmt: skip
    assert "fr 75.0 %, de 25.0 %" in charts[0][1] and 'class="mark"' in charts[1][1]
    (found,) = retrieval(results, "en")
    assert [len(table.rows) for _, _, table in found["tables"]] == [2, 2]
    listed = others(results, "en")
    assert listed is not None and [row[0] for row in listed["table"].rows] == ["Text to image · judge · parity"]


def test_confusion_matrices_of_the_worst_language_the_page_and_english() -> None:
    table = {"classes": ["a", HOSTILE], "counts": [[3, 1], [0, 0]]}
    found = {code: metric_row(code, value, slices={"confusion_table": table}) for code, value in
             (("bg", 0.5), ("de", 0.9), ("en", 0.8), ("fr", 0.1))}  # fmt: skip
    shown = confusion_matrices(found, "de")
    assert [entry["title"].rpartition(" ")[2] for entry in shown] == ["Französisch", "Deutsch", "Englisch"]
    assert shown[0]["rows"] == [("a", [(3, 4), (1, 1)]), (HOSTILE, [(0, 0), (0, 0)])]
    for wrong in (
        {"classes": ["a"] * 51, "counts": [[0] * 51] * 51}, {"classes": ["a", "b"], "counts": [[1, 2]]}, [],
        {"classes": ["a", "b"], "counts": [[1, 2], [1, "3"]]}, {"classes": ["a", "b"], "counts": [[1, 2], [1, -3]]},
    ):  # fmt: skip
        assert confusion_matrices({"de": metric_row("de", slices={"confusion_table": wrong})}, "de") == []


def test_distances_show_what_must_be_equal() -> None:
    row = {"settings": {"samples": 256, HOSTILE: [1]}, "versions": {"torch": "2"}, "evaluator": "a.B", "note": HOSTILE}
    results = rows(*(metric_row(f"g/frechet_distance/{kind}", 3.0, **row) for kind in ("generated", "real")),
                   metric_row("g/density/generated", 0.5))  # fmt: skip
    (found,) = distances(results, "en")
    assert [row[0] for row in found["table"].rows] == [
        "Fréchet distance, less is better",
        "Density: near real images, more is better",
    ]
    assert ["settings samples", "256"] in found["record"].rows and ["evaluator", "a.B"] in found["record"].rows


def test_compared_sets_have_their_own_table_and_record() -> None:
    compared = {"features": "a network", "real": {"images": 300}, HOSTILE: HOSTILE}
    results = rows(*(metric_row(f"images/{name}", 3.0, compared=compared, note="a note", unit="distance")
                     for name in ("frechet_distance", "mind")), metric_row("linear_probe/top1", 0.5, slices={
                         "confusion_table": {"classes": ["a", "b"], "counts": [[1, 2], [3, 4]]}}))  # fmt: skip
    (found,) = distances(results, "de")
    assert [row[0] for row in found["table"].rows] == [
        "Fréchet-Distanz, weniger ist besser",
        "MIND, weniger ist besser",
    ]
    assert ["compared features", "a network"] in found["record"].rows
    listed = others(results, "en")
    title = "Linear probe · top-1"
    assert listed is not None and [row[0] for row in listed["table"].rows] == [title]
    assert [entry["title"] for entry in listed["matrices"]] == [f"Confusion matrix: {title}"]


def test_slices_by_language_and_texts_are_shown() -> None:
    parts = {code: {"value": 0.5, "low": 0.4, "high": 0.6, "samples": 9} for code in ("de", "mt", "fr")}
    found = audits({"audit/x": metric_row("audit/x", slices=parts | {"near_copies": "inconclusive"})}, "de")
    assert found is not None and "mt 50,0 %" in found["charts"][0][1] and found["curves"] == []
    ((_, table),) = found["parts"]
    assert [row[1] for row in table.rows] == ["Deutsch", "Maltesisch", "Französisch", "near copies"]
    assert table.rows[3][2] == "nicht entschieden"


def test_an_interval_chart_stays_inside_its_frame() -> None:
    points = [Point(str(n), 0.5, -3.0, 1e90) for n in range(30)] + [Point("x", float("nan"), None, None)]
    svg = interval_chart(points, HOSTILE, "de")
    width = float(re.findall(r'viewBox="0 0 (\d+)', svg)[0])
    assert svg.count("<circle") == 30 and "<script" not in svg
    for x, y in re.findall(r'<circle[^>]*cx="([\d.-]+)" cy="([\d.-]+)"', svg):
        assert 0 < float(x) < width and 0 <= float(y) <= 190
    assert interval_chart([], "t") == ""


def test_numbers_follow_the_language() -> None:
    row = {"value": 0.918, "low": 0.881, "high": 0.932, "unit": "fraction"}
    assert (number(row), number(row, "de")) == ("91.8 %", "91,8 %")
    assert (interval(row), interval(row, "de")) == ("88.1 to 93.2 %", "88,1 bis 93,2 %")
    assert interval({"low": 1.0, "high": 2.0, "unit": "kWh"}) == "1 to 2 kWh"
    assert (in_unit(1234567, "count", "de"), exact(0.0001, "fraction", "de")) == ("1.234.567", "0,01 %")
    assert duration(9000, "de") == "2,5 h" and carbon_factors({}, "de") == "nicht angegeben"
    assert metric_title("generated/pair/relation", "de") == "Generierte Bilder · Paare · Lage"
    assert word("no such phrase", "de") == "no such phrase"


def test_every_phrase_has_a_translation_with_the_same_fields() -> None:
    package = Path(report_words.__file__).parent
    source = "".join(path.read_text() for path in sorted(package.glob("*.jinja")))
    used = set(re.findall(r'word\("([^"]+)"', source))
    assert len(used) > 15 and used <= GERMAN.keys()
    for english, german in GERMAN.items():
        assert [field for _, field, *_ in string.Formatter().parse(english) if field is not None] == [
            field for _, field, *_ in string.Formatter().parse(german) if field is not None
        ], english


def test_the_pages_are_linked_and_each_has_its_language(tmp_path: Path) -> None:
    folder = tmp_path / "e"
    folder.mkdir()
    lines = [*AUDITS.values(), *by_language("zero_shot/top1", {"de": 0.9, "mt": 0.2})]
    hostile = metric_row(
        f"{HOSTILE}/top1/mean", 0.5, note=f"chance {HOSTILE}%; chance ..%", settings={HOSTILE: HOSTILE}
    )
    text = "".join(json.dumps(row) + "\n" for row in [*lines, hostile])
    (folder / "results.jsonl").write_text(text)
    pages = {code: report_page(folder, HOSTILE, code, [("en", 'a".html')]) for code in ("en", "de")}
    for code, page in pages.items():
        checker = HtmlChecker()
        checker.feed(page)
        assert checker.open == [] and HOSTILE not in page and f'<html lang="{code}">' in page
        assert 'href="a%22.html"' in page
    assert "90,0 %" in pages["de"] and "90.0 %" not in pages["de"] and "Prüfungen" in pages["de"]
    assert '<span lang="en">no shards was given</span>' in pages["de"]
    assert "90.0 %" in pages["en"] and 'lang="en">no shards' not in pages["en"]


def sheet(folder: Path, **changes: Any) -> None:
    entry = {
        "image": "s/000.png",
        "text": HOSTILE,
        "language": "mt",
        "label": "",
        "right": ["colour"],
        "wrong": ["count"],
    }
    content = {"format": FORMAT, "title": HOSTILE, "columns": 0, "images": [entry]}
    (folder / "s.json").write_text(json.dumps(content | changes))


def test_contact_sheets_are_read_and_damaged_ones_named(tmp_path: Path) -> None:
    assert SHEET_FORMAT == FORMAT
    (tmp_path / "other.json").write_text("[1, 2")  # a file of somebody else
    assert images([tmp_path], "en") is None
    sheet(tmp_path)
    found = images([tmp_path], "de")
    assert found is not None
    (figure,) = found["sheets"][0]["figures"]
    assert figure["right"] == ["Farbe"] and figure["wrong"] == ["Anzahl"] and figure["file"]["data"] == ""
    page = report_page(tmp_path, "t", "de")
    assert "falsch: Anzahl" in page and "000.png fehlt" in page and HOSTILE not in page
    sheet(tmp_path, images=[{"image": "../../a/b.png"}] * (MAX_PER_SHEET + 2))
    found = images([tmp_path], "de")
    assert found is not None and found["sheets"][0]["left_out"] == 2
    for wrong in ({"images": {}}, {"images": [3]}, {"images": [{}]}, {"columns": "x"}, {"images": None}):
        sheet(tmp_path, **wrong)
        with pytest.raises(UserError, match=r"s\.json: is damaged"):
            images([tmp_path], "de")


def test_commands_stand_in_the_order_of_the_pipeline_with_the_server() -> None:
    server = ["python", "-m", "http.server", "8765"]
    stages = [("a", []), ("b", server), ("c", server), ("d", [])]
    listed = [{"name": name, "command": f"python {name}.py", "server": words} for name, words in stages]
    pipeline = {"command": ["python", "-m", "leam_mm.pipeline", "my file.yaml"], "environment": "A=1", "stages": listed}
    found = repeat([{"command": "python z.py"}], {}, pipeline)
    assert found is not None and found["pipeline"] == "python -m leam_mm.pipeline 'my file.yaml'"
    assert found["commands"] == [
        "export A=1", "python a.py", "python -m http.server 8765 &", "python b.py", "python c.py", "kill $!",
        "python d.py",
    ]  # fmt: skip
    old = repeat([{"command": "python z.py"}], {}, {})
    assert old is not None and (old["pipeline"], old["commands"]) == ("", ["python z.py"])
    for hostile in ({"stages": 3}, {"stages": [3, {"command": {}}]}, {"command": {HOSTILE: 1}, "environment": []}):
        repeat([], {}, hostile)


def test_stages_follow_the_pipeline(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    for name in ("codec", "clip", "scenes", "another"):
        (tmp_path / "stages" / f"{name}.json").write_text(json.dumps({"name": name}))
    pipeline = {"stages": [{"name": "scenes"}, {"name": "clip"}, 3, {"name": "codec"}]}
    assert [stage["name"] for stage in read_stages(tmp_path, pipeline)] == ["scenes", "clip", "codec", "another"]
