"""Sections of the report about audits and about the controls of the self-test."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from leam_mm.errors import UserError
from leam_mm.json_text import parse_object
from leam_mm.languages import LANGUAGE_NAMES
from leam_mm.report.chart import Point, interval_chart
from leam_mm.report.report_number import Row, count, exact, is_number, measured, remark, stacked
from leam_mm.report.report_section import AUDIT, columns_of, parts_table, slice_rows
from leam_mm.report.report_words import audit_title, capital, word
from leam_mm.report.templates import Figure, Table

SELFTEST = "selftest.json"  # of evaluate.py selftest
MAX_SELFTEST_BYTES = 4_000_000
SYMBOLS = {"fail": "✗", "inconclusive": "?", "pass": "✓", "not_run": "–"}  # in the order of the table
CLASSES = {"fail": "fail", "inconclusive": "open", "pass": "pass", "not_run": "quiet"}
DUPLICATION = re.compile(r"duplication[ _=]([0-9]{1,9})")  # name of a slice: copies in the training data


def audit_rows(results: Mapping[str, Row]) -> list[tuple[str, str, Row]]:
    """Return name, verdict and line of each audit: failed ones first, those that were not run last."""
    rows = [(name.removeprefix(AUDIT), _verdict(row), row) for name, row in results.items() if name.startswith(AUDIT)]
    return sorted(rows, key=lambda entry: list(SYMBOLS).index(entry[1]))


def _verdict(row: Row) -> str:
    """Return the verdict; one of an older line follows from `passed`."""
    verdict = row.get("verdict")
    if isinstance(verdict, str) and verdict in SYMBOLS:
        return verdict
    return "pass" if row.get("passed") is True else "fail" if row.get("passed") is False else "inconclusive"


def audits(results: Mapping[str, Row], language: str) -> dict[str, Any] | None:
    """Return the table of verdicts, the slices of each audit, and charts by language and over duplication."""
    rows, parts, charts, curves = [], [], [], []
    for name, verdict, row in audit_rows(results):
        title = capital(audit_title(name, language))
        answers = ", ".join(map(str, row["maps_to"])) if isinstance(row.get("maps_to"), list) else ""
        below = word("answers {}", language).format(answers) if answers else ""
        samples = count(row["samples"], language) if is_number(row.get("samples")) else ""
        rows.append([
            stacked(title, below), verdict_cell(verdict, language), measured(row, language),
            threshold(row, language), samples, remark(row.get("note"), language),
        ])  # fmt: skip
        lines = slice_rows(title, row, language)
        if lines:
            parts.append((word("Parts of {}", language).format(title), parts_table(lines, language)))
        if chart := duplication_chart(title, row, language):
            curves.append((title, chart))
        elif chart := language_chart(title, row, language):
            charts.append((title, chart))
    heads = ("Audit|what", "Verdict", "Value|number", "Threshold|number", "Samples|number", "Reason|note wrap")
    columns = columns_of(heads, language)
    caption = word(
        "A pass needs the whole 95 % interval inside the threshold, a fail all of it outside; otherwise the samples do "
        "not decide.", language
    )  # fmt: skip
    return (
        {"table": Table(columns, rows, caption), "parts": parts, "charts": charts, "curves": curves} if rows else None
    )


def verdict_cell(verdict: str, language: str) -> Markup:
    """Return symbol and word of a verdict in its colour."""
    text = word(verdict.replace("_", " "), language)
    return Markup('<span class="verdict {}"><span aria-hidden="true">{}</span> {}</span>').format(
        CLASSES[verdict], SYMBOLS[verdict], text
    )


def threshold(row: Row, language: str) -> str:
    """Return the range that passes."""
    limits, unit = row.get("threshold"), str(row.get("unit") or "")
    least, most = (limits.get(key) if isinstance(limits, dict) else None for key in ("least", "most"))
    least, most = (exact(float(end), unit, language) if is_number(end) else "" for end in (least, most))
    if least and most:
        return word("{} to {}", language).format(least, most)
    if least or most:
        return word("at least {}" if least else "at most {}", language).format(least or most)
    return word("none", language)


def duplication_chart(title: str, row: Row, language: str) -> Markup:
    """Return a chart of the slices `duplication_1`, `duplication_4` and so on; empty for other audits."""
    slices = row["slices"] if isinstance(row.get("slices"), dict) else {}
    points = {}
    for name, entry in slices.items():
        found = DUPLICATION.fullmatch(str(name))
        if found and (point := slice_point(found.group(1), entry)):
            points[int(found.group(1))] = point
    label = f"{title}: {word('By duplication in the training data', language)}"
    return interval_chart([points[copies] for copies in sorted(points)][:64], label, language)


def language_chart(title: str, row: Row, language: str) -> Markup:
    """Return a chart of the slices that are named by the code of a language, best first; empty for fewer than three."""
    slices = row["slices"] if isinstance(row.get("slices"), dict) else {}
    codes = {str(name).removeprefix("language="): entry for name, entry in slices.items()}
    points = [point for code in LANGUAGE_NAMES if code in codes and (point := slice_point(code, codes[code]))]
    label = word("{} and 95 % interval of each language", language).format(title)
    points.sort(key=lambda point: -point.value)
    return interval_chart(points, label, language) if len(points) > 2 else Markup()


def slice_point(label: str, entry: Any) -> Point | None:
    """Return the point of a slice that is a share; None for anything else."""
    value, low, high = (entry.get(key) if isinstance(entry, dict) else None for key in ("value", "low", "high"))
    if not is_number(value) or not 0 <= value <= 1:
        return None
    ends = [float(end) if is_number(end) else None for end in (low, high)]
    return Point(label, float(value), ends[0], ends[1])


def audit_counts(results: Mapping[str, Row], selftest: Row, language: str) -> list[Figure]:
    """Return key figures: audits passed of those that ran, with the names of failed ones, and controls caught."""
    rows, found = audit_rows(results), []
    if rows:
        by_verdict = {verdict: [name for name, own, _ in rows if own == verdict] for verdict in SYMBOLS}
        ran = len(rows) - len(by_verdict["not_run"])
        notes = []
        if by_verdict["fail"]:
            names = ", ".join(audit_title(name, language) for name in by_verdict["fail"][:4])
            more = " ..." if len(by_verdict["fail"]) > 4 else ""
            notes.append(word("{} failed: {}", language).format(len(by_verdict["fail"]), names + more))
        for verdict, text in (("inconclusive", "{} inconclusive"), ("not_run", "{} not run")):
            if by_verdict[verdict]:
                notes.append(word(text, language).format(len(by_verdict[verdict])))
        value = word("{} of {}", language).format(len(by_verdict["pass"]), ran)
        found.append(Figure(word("Audits passed", language), value, "; ".join(notes), "", "audits"))
    controls = _controls(selftest)
    if controls:
        missed = [str(row.get("control")) for row in controls if row.get("caught") is not True]
        value = word("{} of {}", language).format(len(controls) - len(missed), len(controls))
        note = word("missed: {}", language).format(", ".join(missed[:4])) if missed else ""
        found.append(Figure(word("Controls caught", language), value, note, "", "selftest"))
    return found


def read_selftest(folders: Sequence[Path]) -> Row:
    """Return the content of the first selftest.json in folders; empty without one.

    Raises:
        UserError: It is damaged.
    """
    path = next((folder / SELFTEST for folder in folders if (folder / SELFTEST).is_file()), None)
    if path is None:
        return {}
    try:
        if path.stat().st_size > MAX_SELFTEST_BYTES:
            raise ValueError(f"more than {MAX_SELFTEST_BYTES} bytes")
        return parse_object(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run evaluate.py selftest again") from None


def _controls(selftest: Row) -> list[Row]:
    rows = selftest.get("rows")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def selftest(content: Row, language: str) -> Table | None:
    """Return the table of controls: missed ones first."""
    controls = sorted(_controls(content), key=lambda row: row.get("caught") is True)
    rows = []
    for row in controls:
        caught = row.get("caught") is True
        sign, style, text = ("✓", "pass", "caught") if caught else ("✗", "fail", "missed")
        cell = Markup('<span class="verdict {}"><span aria-hidden="true">{}</span> {}</span>')
        subject, name, expected, found = (
            remark(str(row.get(key) or ""), language) for key in ("subject", "control", "expected", "found")
        )
        kind = word(str(row.get("kind") or ""), language)
        rows.append([subject, name, kind, expected, found, cell.format(style, sign, word(text, language))])
    heads = ("Subject|what", "Control|wrap", "Kind", "Expected|wrap", "Found|wrap", "Caught")
    columns = columns_of(heads, language)
    text = "{} of {} controls are on the right side. A positive control has a planted fault, a negative one is clean."
    right = sum(row.get("caught") is True for row in controls)
    return Table(columns, rows, word(text, language).format(right, len(controls))) if rows else None
