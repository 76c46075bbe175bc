"""The sections of the report that show results: each function returns what its macro in report.html.jinja renders."""

import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from leam_mm.languages import LANGUAGE_NAMES
from leam_mm.report.chart import interval_bar, short
from leam_mm.report.report_number import Row, duration, energy, interval, language, number, plain
from leam_mm.report.templates import Table

DISTANCES = {
    "frechet_distance": "Fréchet distance, less is better",
    "kernel_distance": "Kernel distance, less is better",
    "precision": "Precision: looks like a real image",
    "recall": "Recall: covers the variety of real ones",
}
BEFORE, AFTER, CHANGE = "before/", "after/", "fine_tuning/change/"


def key_figures(results: Mapping[str, Row], stages: list[Row]) -> list[tuple[str, str, str]]:
    """Return label, value and note of each number below the heading."""
    figures = []
    for group in _groups(results, "/top1/mean"):
        worst = results.get(f"{group}/top1/min", {})
        count = len(_by_language(results, f"{group}/top1/"))
        label = "Classification" if group == "zero_shot" else f"Classification, {plain(group)}"
        figures.append((label, number(results[f"{group}/top1/mean"]), f"top 1, mean of {count} languages"))
        figures.append(("Worst language", number(worst), _worst(worst)))
    for group in _groups(results, "/frechet_distance/generated"):
        floor = results.get(f"{group}/frechet_distance/real", {}).get("value")
        note = "" if floor is None else f"real against real: {short(floor)}"
        figures.append(("Fréchet distance", number(results[f"{group}/frechet_distance/generated"]), note))
    if stages:
        seconds = [s["seconds"] for s in stages if isinstance(s.get("seconds"), int | float)]
        joules = [(stage.get("energy") or {}).get("joules") for stage in stages]
        measured = [j for j in joules if isinstance(j, int | float)]
        estimated = any("estimated" in str((stage.get("energy") or {}).get("source")) for stage in stages)
        note = ("estimated" if estimated else "measured") if measured else ""
        if measured and len(measured) < len(joules):  # a sum over some of the stages is a lower bound
            note += f", only {len(measured)} of {len(joules)} stages"
        figures.append(("Energy", energy(sum(measured) if measured else None), note))
        figures.append(("Time", duration(sum(seconds) if seconds else None), f"{len(stages)} stages"))
    return figures


def is_change(name: str) -> bool:
    """Return whether a metric belongs to the section about the fine-tuning."""
    return name.startswith((BEFORE, AFTER, CHANGE))


def changes(results: Mapping[str, Row]) -> Table | None:
    """Return each metric before and after the fine-tuning, and the paired change where it was measured."""
    rows = []
    for name in dict.fromkeys(name.partition("/")[2] for name in results if name.startswith((BEFORE, AFTER))):
        before, after = results.get(BEFORE + name, {}), results.get(AFTER + name, {})
        change = results.get(CHANGE + name)
        cells = [_stacked(number(row), interval(row)) for row in (before, after)]
        paired = _stacked(number(change), interval(change)) if change else ""
        samples = after.get("samples", before.get("samples", ""))
        rows.append([_stacked(_title(name), str(after.get("note") or "")), *cells, paired, samples])
    columns = ["What|what", "Before|number", "After|number", "Paired change|number", "Samples|number wide-only"]
    caption = (
        "The same prompts, noise and images for the generator before and after its fine-tuning. Where the "
        "intervals of a row overlap, the difference may be chance; a paired change whose interval excludes zero is "
        "hardly chance."
    )
    return Table(columns, rows, caption) if rows else None


def _stacked(value: object, below: str) -> Markup:
    """Return a cell of a value with a smaller line below it, which keeps wide tables within the page."""
    return Markup("{}<small>{}</small>").format(value, below)


def classification(results: Mapping[str, Row]) -> list[dict[str, Any]]:
    """Return a table of languages for each classification set, best first."""
    groups = []
    for group in _groups(results, "/top1/mean"):
        rows = _by_language(results, f"{group}/top1/")
        top5 = _by_language(results, f"{group}/top5/")
        note = str(results[f"{group}/top1/mean"].get("note", ""))
        chance = re.search(r"chance ([\d.]+)%", note)
        mark = float(chance.group(1)) / 100 if chance else None
        ends = [row[key] for row in rows.values() for key in ("value", "high") if row.get(key) is not None]
        upper = min(1.0, max([*ends, 0.01]) * 1.05)
        lines = []
        for code, row in sorted(rows.items(), key=lambda item: (item[1]["value"] is None, -(item[1]["value"] or 0))):
            bar = "" if row["value"] is None else interval_bar(row["value"], row["low"], row["high"], upper, mark)
            second = [number(top5[code]) if code in top5 else ""] if top5 else []
            lines.append([language(code), number(row), bar, interval(row), *second, row["samples"]])
        columns = ["Language", "Top 1|number", "|drawn", "95 % interval|range wide-only"]
        columns += [*(["Top 5|number"] if top5 else []), "Images|number wide-only"]
        caption = f"{note}.{' The orange tick is chance.' if mark is not None else ''}"
        heading = "" if group == "zero_shot" else plain(group).capitalize()
        summary, table = _summary(results, f"{group}/top1"), Table(columns, lines, caption)
        groups.append({"heading": heading, "summary": summary, "table": table, "confusions": _confusions(rows)})
    return groups


def _confusions(rows: Mapping[str, Row]) -> Table:
    lines = []
    for code, row in rows.items():
        pairs = _parts(row).get("confusions")
        if isinstance(pairs, list) and pairs:
            mistakes = [
                f"{p.get('true')} → {p.get('predicted')} ({p.get('count')})" for p in pairs[:5] if isinstance(p, dict)
            ]
            lines.append([language(code), "; ".join(mistakes)])
    return Table(["Language", "Right class → class chosen instead (how often)|wrap"], lines)


def retrieval(results: Mapping[str, Row]) -> list[dict[str, Any]]:
    """Return recall in both directions for each language."""
    groups = []
    for group in _groups(results, "/image_to_text/r1/mean"):
        names = [f"{group}/{way}/r{top}" for way in ("image_to_text", "text_to_image") for top in (1, 5, 10)]
        codes = list(_by_language(results, names[0] + "/"))
        codes.sort(key=lambda code: -(results[f"{names[0]}/{code}"]["value"] or 0))
        lines = {
            code: [_with_interval(results.get(f"{name}/{code}", {})) for name in names] for code in [*codes, "mean"]
        }
        note = results[f"{names[0]}/mean"].get("note", "")
        table = Table(
            ["Language", *["R@1|number", "R@5|number", "R@10|number"] * 2],
            [[language(code), *lines[code]] for code in codes],
            caption=f"{note}. R@k: the right one is among the first k.",
            total=["Mean", *lines["mean"]],
            groups=["image to caption", "caption to image"],
        )
        heading = "" if group == "retrieval" else plain(group).capitalize()
        groups.append({"heading": heading, "summary": _summary(results, names[0]), "table": table})
    return groups


def _with_interval(row: Row) -> str:
    return Markup('<span title="{}">{}</span>').format(interval(row), number(row))


def distances(results: Mapping[str, Row]) -> list[Table]:
    """Return distances of generated images to real ones, beside those of real images to real ones."""
    columns = ["", "generated|number", "95 % interval|range", "real, the floor|number", "95 % interval|range"]
    tables = []
    for group in _groups(results, "/frechet_distance/generated"):
        lines = []
        for name, label in DISTANCES.items():
            pair = [results.get(f"{group}/{name}/{kind}", {}) for kind in ("generated", "real")]
            lines.append([label, *(cell for row in pair for cell in (number(row), interval(row)))])
        note = results[f"{group}/frechet_distance/generated"].get("note", "")
        tables.append(Table(columns, lines, f"{note}."))
    return tables


def others(results: Mapping[str, Row], prefixes: tuple[str, ...] | None) -> dict[str, Table] | None:
    """Return metrics as they are: those whose name starts with a prefix; with None those that no section shows."""
    shown = re.compile(r"/top[15]/|/(image_to_text|text_to_image)/r\d+/|/(generated|real)$|^prompts/|^composition")
    chosen = [
        row for name, row in results.items() if (name.startswith(prefixes) if prefixes else not shown.search(name))
    ]
    lines, parts = [], []
    for row in chosen:
        name = row["name"]
        title = _title(name.partition("/")[2] if prefixes and "/" in name else name)
        lines.append([title, number(row), interval(row), row.get("samples", ""), row.get("note") or ""])
        for part, entry in _parts(row).items():
            if isinstance(entry, dict) and "value" in entry:
                entry = {"unit": row.get("unit", "")} | entry
                parts.append([title, plain(part), number(entry), interval(entry), entry.get("samples", "")])
    columns = ["What", "Value|number", "95 % interval|range", "Samples|number wide-only", "|note wrap"]
    columns_of_parts = ["What", "Part", "Value|number", "95 % interval|range", "Samples|number"]
    return {"table": Table(columns, lines), "parts": Table(columns_of_parts, parts)} if lines else None


def _summary(results: Mapping[str, Row], name: str) -> dict[str, str]:
    mean, worst, ratio = (results.get(f"{name}/{kind}", {}) for kind in ("mean", "min", "min_over_mean"))
    return {
        "mean": number(mean), "mean_interval": interval(mean), "worst": number(worst), "worst_language": _worst(worst),
        "ratio": number(ratio), "ratio_interval": interval(ratio),
    }  # fmt: skip


def _groups(results: Mapping[str, Row], ending: str) -> list[str]:
    return [name.removesuffix(ending) for name in results if name.endswith(ending)]


def _by_language(results: Mapping[str, Row], start: str) -> dict[str, Row]:
    rest = {name.removeprefix(start): row for name, row in results.items() if name.startswith(start)}
    return {code: row for code, row in rest.items() if code not in ("mean", "min", "min_over_mean")}


def _parts(row: Row) -> dict[str, Any]:
    return row["slices"] if isinstance(row.get("slices"), dict) else {}


def _title(name: str) -> str:
    return " · ".join(plain(part) for part in name.split("/"))


def _worst(row: Row) -> str:
    code = re.search(r"worst language: (\w+)", str(row.get("note", "")))
    return LANGUAGE_NAMES.get(code.group(1), code.group(1)) if code else ""
