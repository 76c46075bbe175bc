"""Sections of the report that show results without languages: each function returns what its macro renders."""

import json
import re
from collections.abc import Mapping
from typing import Any

from leam_mm.languages import LANGUAGE_NAMES
from leam_mm.report.language_section import Results, confusion_matrices, groups, score_groups
from leam_mm.report.report_number import Row, count, is_number, measured, remark, stacked
from leam_mm.report.report_words import METRIC_TITLES, language_name, metric_title, plain, word
from leam_mm.report.templates import Table

DISTANCES = {  # of a measure: English and German
    "frechet_distance": ("Fréchet distance, less is better", "Fréchet-Distanz, weniger ist besser"),
    "kernel_distance": ("Kernel distance, less is better", "Kernel-Distanz, weniger ist besser"),
    "frechet_distance_infinity": (
        "Fréchet distance extrapolated to unlimited generated images, less is better",
        "Fréchet-Distanz, hochgerechnet auf unbegrenzt viele generierte Bilder, weniger ist besser",
    ),
    "spatial_frechet_distance": (
        "Spatial Fréchet distance, less is better",
        "Räumliche Fréchet-Distanz, weniger ist besser",
    ),
    "wavelet_distance": ("Fréchet Wavelet Distance, less is better", "Fréchet-Wavelet-Distanz, weniger ist besser"),
    "inception_score": ("Inception Score, more is better", "Inception Score, mehr ist besser"),
    "mind": ("MIND, less is better", "MIND, weniger ist besser"),
    "cmmd": ("CMMD, less is better", "CMMD, weniger ist besser"),
    "precision": ("Precision: looks like a real image", "Precision: sieht aus wie ein echtes Bild"),
    "recall": ("Recall: covers the variety of real ones", "Recall: deckt die Vielfalt der echten ab"),
    "density": ("Density: near real images, more is better", "Density: nahe an echten Bildern, mehr ist besser"),
    "coverage": (
        "Coverage: real images with a generated one near",
        "Coverage: echte Bilder mit einem erzeugten nahebei",
    ),
}
BEFORE, AFTER, CHANGE, AUDIT = "before/", "after/", "fine_tuning/change/", "audit/"
PAIR = re.compile(r"/(generated|real)$")
SHOWN_ELSEWHERE = re.compile(r"/top[15]/|/(image_to_text|text_to_image)/r\d+/|/(generated|real)$|^prompts/")
COMPOSITION = ("compositional", "composition")


def is_change(name: str) -> bool:
    """Return whether a metric belongs to the section about the fine-tuning."""
    return name.startswith((BEFORE, AFTER, CHANGE))


def changes(results: Results, language: str = "en") -> Table | None:
    """Return each metric before and after the fine-tuning, and the paired change where it was measured."""
    rows = []
    for name in dict.fromkeys(name.partition("/")[2] for name in results if name.startswith((BEFORE, AFTER))):
        before, after = results.get(BEFORE + name, {}), results.get(AFTER + name, {})
        change = results.get(CHANGE + name)
        cells = [measured(row, language) for row in (before, after)]
        paired = measured(change, language) if change else ""
        samples = after.get("samples", before.get("samples", ""))
        title = stacked(metric_title(name, language), remark(after.get("note"), language))
        rows.append([title, *cells, paired, count(samples, language)])
    names = ("What|what", "Before|number", "After|number", "Paired change|number", "Samples|number")
    caption = (
        "The same prompts, noise and images for the generator before and after its fine-tuning. Where the "
        "intervals of a row overlap, the difference may be chance; a paired change whose interval excludes zero is "
        "hardly chance."
    )
    return Table(columns_of(names, language), rows, word(caption, language)) if rows else None


def distances(results: Results, language: str) -> list[dict[str, Any]]:
    """Return distances of generated images to real ones, beside those of real images to real ones."""
    found = []
    for group in groups(results, "/frechet_distance/generated"):
        names = dict.fromkeys(
            PAIR.sub("", name).removeprefix(f"{group}/")
            for name in results
            if name.startswith(f"{group}/") and PAIR.search(name)
        )
        lines: list[list[object]] = []
        for name in names:
            pair = [results.get(f"{group}/{name}/{kind}", {}) for kind in ("generated", "real")]
            if not any(pair):
                continue
            label = DISTANCES[name][language == "de"] if name in DISTANCES else metric_title(name, language)
            lines.append([label, *(measured(row, language) for row in pair)])
        row = results[f"{group}/frechet_distance/generated"]
        columns = columns_of(("What", "generated|number", "real, the floor|number"), language)
        note = f"{row['note']}." if row.get("note") else ""
        found.append({"table": Table(columns, lines, remark(note, language)), "record": record(row, language)})
    for group in dict.fromkeys(name.rpartition("/")[0] for name, row in results.items() if is_compared(row)):
        rows = {name: row for name, row in results.items() if name.rpartition("/")[0] == group and is_compared(row)}
        lines = []
        for name, row in rows.items():
            last = name.rpartition("/")[2]
            label = DISTANCES[last][language == "de"] if last in DISTANCES else metric_title(last, language)
            lines.append([label, measured(row, language), remark(row.get("note"), language)])
        columns = columns_of(("What", "Value|number", "Note|note wrap"), language)
        found.append({"table": Table(columns, lines), "record": record(next(iter(rows.values())), language)})
    return found


def is_compared(row: Row) -> bool:
    """Return whether a line is of two sets of images that `evaluate.py images` compared."""
    return isinstance(row.get("compared"), dict)


def record(row: Row, language: str) -> Table:
    """Return what must be equal before a number is compared with another: all that its line records."""
    lines: dict[str, Any] = {key: row.get(key) for key in ("evaluator", "samples", "device")}
    for key in ("compared", "protocol", "settings", "versions"):
        if isinstance(row.get(key), dict):
            lines |= {f"{key} {plain(str(name))}": value for name, value in row[key].items()}
    shown = [
        [name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)]
        for name, value in lines.items()
        if value is not None
    ]
    return Table([f"{word('What', language)}|wrap", f"{word('Value', language)}|wrap digest"], shown)


def composition(results: Results, language: str) -> dict[str, Any] | None:
    """Return the metrics about following a description."""
    return _listed({name: row for name, row in results.items() if name.startswith(COMPOSITION)}, True, language)


def others(results: Results, language: str) -> dict[str, Any] | None:
    """Return the metrics that no section shows."""
    languages = tuple(f"{group}/" for group in score_groups(results))
    chosen = {
        name: row for name, row in results.items()
        if not name.startswith((*COMPOSITION, AUDIT, *languages)) and not SHOWN_ELSEWHERE.search(name)
        and not is_compared(row)
    }  # fmt: skip
    return _listed(chosen, False, language)


def _listed(rows: Mapping[str, Row], shorten: bool, language: str) -> dict[str, Any] | None:
    lines, parts, titles = [], [], {}
    for name, row in rows.items():
        title = metric_title(name.partition("/")[2] if shorten and "/" in name else name, language)
        note = remark(row.get("note"), language)
        lines.append([title, measured(row, language), count(row.get("samples", ""), language), note])
        parts += slice_rows(title, row, language)
        titles[title] = row
    columns = columns_of(("What|what", "Value|number", "Samples|number", "Note|note wrap"), language)
    matrices = confusion_matrices(titles, language)
    content = {"table": Table(columns, lines), "parts": parts_table(parts, language), "matrices": matrices}
    return content if lines else None


def parts_table(parts: list[list[object]], language: str) -> Table:
    """Return a table of the rows of ``slice_rows``."""
    return Table(columns_of(("What|what", "Part|what", "Value|number", "Samples|number"), language), parts)


def slice_rows(title: str, row: Row, language: str) -> list[list[object]]:
    """Return title, part, value with interval, and samples for each slice of a row that is a number."""
    slices = row["slices"] if isinstance(row.get("slices"), dict) else {}
    lines: list[list[object]] = []
    for part, entry in slices.items():
        if is_number(entry):
            entry = {"value": entry}
        if isinstance(entry, str):
            lines.append([title, part_title(str(part), language), word(entry, language), ""])
        if isinstance(entry, dict) and "value" in entry:
            entry = {"unit": row.get("unit", "")} | entry
            samples = entry.get("samples", "")
            lines.append([title, part_title(str(part), language), measured(entry, language), count(samples, language)])
    return lines


def part_title(part: str, language: str) -> str:
    """Return the name of a slice, such as `language=de`, for readers."""
    if part in LANGUAGE_NAMES:
        return language_name(part, language)
    kind, sign, value = part.partition("=")
    known = METRIC_TITLES[kind][language == "de"] if kind in METRIC_TITLES else word(plain(kind), language)
    shown = language_name(value, language) if kind == "language" else word(plain(value), language)
    return f"{known}: {shown}" if sign else known


def columns_of(names: tuple[str, ...], language: str) -> list[str]:
    """Return headings in a language, each with the class of its cells."""
    return [f"{word(name, language)}{bar}{style}" for name, bar, style in (text.partition("|") for text in names)]
