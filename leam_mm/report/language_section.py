"""Sections of the report about languages: charts side by side, tables, retrieval, and confusion matrices."""

import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from leam_mm.languages import LANGUAGE_NAMES
from leam_mm.report.chart import Point, interval_bar, interval_chart
from leam_mm.report.report_number import (
    Row,
    count,
    interval,
    is_number,
    language_cell,
    marked_indicative,
    measured,
    number,
    remark,
)
from leam_mm.report.report_words import language_name, metric_title, word
from leam_mm.report.templates import Table

Results = Mapping[str, Row]
SUMMARIES = ("mean", "min", "min_over_mean")
RECALL = re.compile(r"/(image_to_text|text_to_image)/r\d+$")
MAX_CLASSES, MAX_MATRICES, MAX_LANGUAGES = 50, 3, 64
SHADES = 5


def groups(results: Results, ending: str) -> list[str]:
    """Return what is before an ending of metrics' names."""
    return [name.removesuffix(ending) for name in results if name.endswith(ending)]


def by_language(results: Results, group: str) -> dict[str, Row]:
    """Return the rows of a group by the code of their language, without its summaries."""
    start = f"{group}/"
    rest = {name.removeprefix(start): row for name, row in results.items() if name.startswith(start)}
    found = {code: row for code, row in rest.items() if code not in SUMMARIES and "/" not in code}
    return dict(list(found.items())[:MAX_LANGUAGES])


def language_groups(results: Results) -> list[str]:
    """Return every group with a mean over languages or with two languages, in the order of the results."""
    codes: dict[str, set[str]] = {}
    for name in results:
        group, _, last = name.rpartition("/")
        if group and (last in LANGUAGE_NAMES or last == "mean"):
            codes.setdefault(group, set()).add(last)
    return [group for group, found in codes.items() if len(found) > 1]


def score_groups(results: Results) -> list[str]:
    """Return the groups of languages that are neither zero-shot classification nor retrieval."""
    return [
        group for group in language_groups(results)
        if not RECALL.search(group) and group.rpartition("/")[2] not in ("top1", "top5")
    ]  # fmt: skip


def worst_language(row: Row, language: str) -> str:
    """Return the name of the worst language, which the note of a minimum names."""
    code = re.search(r"worst language: (\w+)", str(row.get("note") or ""))
    return language_name(code.group(1), language) if code else ""


def side_by_side(results: Results, language: str) -> list[tuple[str, Markup]]:
    """Return a chart of the languages for each score, best language first."""
    charts = []
    for group in language_groups(results):
        last = group.rpartition("/")[2]
        if last not in ("top1", "r1") and group not in score_groups(results):
            continue
        rows = [
            (code, row) for code, row in by_language(results, group).items()
            if is_number(row.get("value")) and row.get("unit") in ("fraction", "share")
        ]  # fmt: skip
        rows.sort(key=lambda item: -item[1]["value"])
        points = [Point(code, row["value"], _end(row, "low"), _end(row, "high")) for code, row in rows]
        mean = results.get(f"{group}/mean", {})
        title = marked_indicative(metric_title(group, language), mean, language)
        label = word("{} and 95 % interval of each language", language).format(title)
        if len(points) > 1:
            charts.append((title, interval_chart(points, label, language, _chance(mean))))
    return charts


def classification(results: Results, language: str) -> list[dict[str, Any]]:
    """Return tables of languages for each classification set, best language first."""
    return [
        _scores(results, f"{group}/top1", f"{group}/top5", "Top 1", language) for group in groups(results, "/top1/mean")
    ]


def scores(results: Results, language: str) -> list[dict[str, Any]]:
    """Return tables of languages for every other score by language."""
    return [_scores(results, group, "", "Value", language) for group in score_groups(results)]


def _scores(results: Results, name: str, second: str, heading: str, language: str) -> dict[str, Any]:
    rows, beside = by_language(results, name), by_language(results, second) if second else {}
    mean = results.get(f"{name}/mean", {})
    mark = _chance(mean)
    ends = [row[key] for row in rows.values() for key in ("value", "high") if is_number(row.get(key))]
    upper = max([*ends, 0.01]) * 1.05
    upper = min(1.0, upper) if mean.get("unit") in ("fraction", "share") else upper
    lines = []
    for code, row in sorted(rows.items(), key=lambda item: -_value(item[1])):
        bar = interval_bar(row["value"], _end(row, "low"), _end(row, "high"), upper, mark) if _value(row) >= 0 else ""
        other = [measured(beside[code], language) if code in beside else ""] if beside else []
        samples = count(row["samples"], language) if is_number(row.get("samples")) else ""
        lines.append([language_cell(code, language), measured(row, language), bar, *other, samples])
    columns = [word("Language", language), f"{word(heading, language)}|number", "|drawn"]
    columns += [*(["Top 5|number"] if beside else []), f"{word('Images measured', language)}|number wide-only"]
    caption: list[object] = [remark(f"{mean['note']}.", language)] if mean.get("note") else []
    caption += [" " + word("The orange tick is chance.", language)] if mark is not None else []
    table = Table(columns, lines, Markup("{}" * len(caption)).format(*caption))
    return {
        "heading": metric_title(name, language), "summary": summary(results, name, language), "table": table,
        "confusions": _confusions(rows, language), "matrices": confusion_matrices(rows, language),
    }  # fmt: skip


def retrieval(results: Results, language: str) -> list[dict[str, Any]]:
    """Return recall in both directions for each language."""
    found = []
    for group in groups(results, "/image_to_text/r1/mean"):
        tables = []
        for way, title in (("image_to_text", "image to caption"), ("text_to_image", "caption to image")):
            names = [f"{group}/{way}/r{top}" for top in (1, 5, 10)]
            rows = by_language(results, names[0])
            codes = sorted(rows, key=lambda code: -_value(rows[code]))
            lines = {
                code: [measured(results.get(f"{name}/{code}", {}), language) for name in names]
                for code in [*codes, "mean"]
            }
            table = Table(
                [word("Language", language), "R@1|number", "R@5|number", "R@10|number"],
                [[language_cell(code, language), *lines[code]] for code in codes],
                total=[word("Mean", language), *lines["mean"]],
            )
            tables.append((word(title, language), summary(results, names[0], language), table))
        note = results[f"{group}/image_to_text/r1/mean"].get("note")
        text = remark(f"{note}." if note else "", language)
        found.append({"heading": metric_title(group, language), "note": text, "tables": tables})
    return found


def confusion_matrices(rows: Results, language: str) -> list[dict[str, Any]]:
    """Return the confusion matrices of at most three rows, of languages the worst, that of the page, and English.

    A matrix is the slice `confusion_table` of a row: {"classes": [...], "counts": [[...]]} with at most 50 classes.
    """
    found = {code: matrix for code, row in rows.items() if (matrix := _matrix(_slices(row).get("confusion_table")))}
    order = sorted(found, key=lambda code: (_value(rows[code]), code))
    order = list(dict.fromkeys([*order[:1], *(code for code in (language, "en") if code in found), *order]))
    return [
        {"title": word("Confusion matrix: {}", language).format(language_name(code, language)), "rows": found[code]}
        for code in order[:MAX_MATRICES]
    ]


def _matrix(content: Any) -> list[tuple[str, list[tuple[int, int]]]]:
    """Return class, and count and shade of each cell, row by row; empty for anything else."""
    classes, counts = (content.get(key) for key in ("classes", "counts")) if isinstance(content, dict) else (None, None)
    if not isinstance(classes, list) or not isinstance(counts, list) or not 1 < len(classes) <= MAX_CLASSES:
        return []
    if len(counts) != len(classes) or not all(isinstance(row, list) and len(row) == len(classes) for row in counts):
        return []
    if not all(type(cell) is int and 0 <= cell < 1e12 for row in counts for cell in row):
        return []
    return [
        (str(name), [(cell, round(SHADES * cell / max(sum(row), 1))) for cell in row])
        for name, row in zip(classes, counts, strict=True)
    ]


def summary(results: Results, name: str, language: str) -> list[Markup]:
    """Return mean, worst language, and worst over mean, each as a sentence with its interval."""
    mean, worst, ratio = (results.get(f"{name}/{kind}", {}) for kind in SUMMARIES)
    none = word("no interval", language)
    parts = []
    if mean:
        text = word("Mean over the languages {} ({}).", language)
        parts.append(Markup(text).format(number(mean, language), interval(mean, language) or none))
    if worst:
        where, ends = worst_language(worst, language), interval(worst, language) or none
        parts.append(Markup(word("Worst: {} {} ({}).", language)).format(where, number(worst, language), ends))
    if ratio:
        text = word("Worst over mean {} ({}).", language)
        parts.append(Markup(text).format(number(ratio, language), interval(ratio, language) or none))
    return parts


def _confusions(rows: Results, language: str) -> Table:
    lines = []
    for code, row in rows.items():
        pairs = _slices(row).get("confusions")
        if isinstance(pairs, list) and pairs:
            mistakes = [
                f"{p.get('true')} → {p.get('predicted')} ({p.get('count')})" for p in pairs[:5] if isinstance(p, dict)
            ]
            lines.append([language_cell(code, language), "; ".join(mistakes)])
    heading = word("Right class → class chosen instead (how often)", language)
    return Table([word("Language", language), f"{heading}|wrap"], lines)


def _slices(row: Row) -> dict[str, Any]:
    return row["slices"] if isinstance(row.get("slices"), dict) else {}


def _chance(row: Row) -> float | None:
    found = re.search(r"chance ([\d.]{1,20})%", str(row.get("note") or ""))
    return float(found.group(1)) / 100 if found and found.group(1).count(".") < 2 and found.group(1) != "." else None


def _value(row: Row) -> float:
    """Return the value, or -1 where there is none, so that it is sorted last."""
    return float(row["value"]) if is_number(row.get("value")) else -1.0


def _end(row: Row, name: str) -> float | None:
    return float(row[name]) if is_number(row.get(name)) else None
