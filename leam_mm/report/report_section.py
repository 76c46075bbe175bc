"""The sections of the report that show results: each gives HTML, and nothing where nothing was measured."""

import re
from collections.abc import Mapping
from html import escape

from leam_mm.report.chart import interval_bar, short
from leam_mm.report.report_number import (
    LANGUAGES,
    MISSING,
    Row,
    duration,
    energy,
    interval,
    language,
    number,
    plain,
    table,
)

DISTANCES = {
    "frechet_distance": "Fréchet distance, less is better",
    "kernel_distance": "Kernel distance, less is better",
    "precision": "Precision: looks like a real picture",
    "recall": "Recall: covers the variety of real ones",
}


def key_figures(results: Mapping[str, Row], stages: list[Row]) -> str:
    """The strip of numbers under the heading."""
    figures = []
    for group in _groups(results, "/top1/mean"):
        mean, worst = results[f"{group}/top1/mean"], results.get(f"{group}/top1/min", {})
        count = len(_by_language(results, f"{group}/top1/"))
        label = "Classification" if group == "zero_shot" else f"Classification, {plain(group)}"
        figures.append((label, number(mean), f"top 1, mean of {count} languages"))
        figures.append(("Worst language", number(worst), _worst(worst)))
    for group in _groups(results, "/frechet_distance/generated"):
        floor = results.get(f"{group}/frechet_distance/real", {})
        text = f"real against real: {short(floor['value'])}" if floor.get("value") is not None else ""
        figures.append(("Fréchet distance", number(results[f"{group}/frechet_distance/generated"]), text))
    if stages:
        seconds = [s["seconds"] for s in stages if isinstance(s.get("seconds"), int | float)]
        joules = [(stage.get("energy") or {}).get("joules") for stage in stages]
        known = [j for j in joules if isinstance(j, int | float)]
        estimated = any("estimated" in str((stage.get("energy") or {}).get("source")) for stage in stages)
        # A sum over some of the stages is a lower bound, and says so.
        gaps = "" if len(known) == len(joules) else f"only {len(known)} of {len(joules)} stages"
        text = ", ".join(part for part in ("estimated" if estimated else "measured", gaps) if part) if known else ""
        figures.append(("Energy", energy(sum(known)) if known else MISSING, text))
        figures.append(("Time", duration(sum(seconds)) if seconds else MISSING, f"{len(stages)} stages"))
    cells = "".join(f"<div><dt>{escape(a)}</dt><dd>{b}<small>{escape(c)}</small></dd></div>" for a, b, c in figures)
    return f'<dl class="figures">{cells}</dl>' if cells else ""


def zero_shot(results: Mapping[str, Row]) -> str:
    """A table of languages for each classification set, best first."""
    parts = []
    for group in _groups(results, "/top1/mean"):
        rows = _by_language(results, f"{group}/top1/")
        top5 = _by_language(results, f"{group}/top5/")
        note = str(results[f"{group}/top1/mean"].get("note", ""))
        chance = re.search(r"chance ([\d.]+)%", note)
        mark = float(chance.group(1)) / 100 if chance else None
        values = [row["value"] for row in rows.values() if row["value"] is not None]
        ends = [row["high"] for row in rows.values() if row.get("high") is not None]
        upper = min(1.0, max([*values, *ends, 0.01]) * 1.05)
        lines = []
        for code, row in sorted(rows.items(), key=lambda item: (item[1]["value"] is None, -(item[1]["value"] or 0))):
            bar = "" if row["value"] is None else interval_bar(row["value"], row["low"], row["high"], upper, mark)
            second = f'<td class="number">{number(top5[code])}</td>' if code in top5 else "<td></td>" if top5 else ""
            lines.append(
                f'<tr><th scope="row">{language(code)}</th><td class="number">{number(row)}</td>'
                f'<td class="drawn">{bar}</td><td class="range wide-only">{interval(row)}</td>{second}'
                f'<td class="number wide-only">{row["samples"]}</td></tr>'
            )
        columns = ["Language", "Top 1|number", "|drawn", "95 % interval|range wide-only"]
        columns += [*(["Top 5|number"] if top5 else []), "Pictures|number wide-only"]
        caption = f"{escape(note)}.{' The orange tick is chance.' if mark is not None else ''}"
        heading = "" if group == "zero_shot" else f"<h3>{escape(plain(group).capitalize())}</h3>"
        parts.append(heading + _summary(results, f"{group}/top1"))
        parts.append(table(columns, lines, caption) + _confusions(rows))
    return "".join(parts)


def _confusions(rows: Mapping[str, Row]) -> str:
    found = [
        (row["slices"]["confusions"], code)
        for code, row in rows.items()
        if isinstance(row.get("slices"), dict) and row["slices"].get("confusions")
    ]
    if not found:
        return ""
    lines = []
    for pairs, code in found:
        mistakes = (
            f"{escape(str(p['true']))} &rarr; {escape(str(p['predicted']))} ({int(p['count'])})" for p in pairs[:5]
        )
        lines.append(f'<tr><th scope="row">{language(code)}</th><td class="wrap">{"; ".join(mistakes)}</td></tr>')
    text = table(["Language", "Right class &rarr; class chosen instead (how often)"], lines)
    return f"<details><summary>Most frequent confusions</summary>{text}</details>"


def retrieval(results: Mapping[str, Row]) -> str:
    """Recall in both directions for each language."""
    parts = []
    for group in _groups(results, "/image_to_text/r1/mean"):
        columns = [f"{group}/{way}/r{top}" for way in ("image_to_text", "text_to_image") for top in (1, 5, 10)]
        codes = list(_by_language(results, columns[0] + "/"))
        codes.sort(key=lambda code: -(results[f"{columns[0]}/{code}"]["value"] or 0))
        lines = [_recall_line(results, columns, code, language(code), "") for code in codes]
        lines.append(_recall_line(results, columns, "mean", "Mean", "total"))
        ways = ("picture to caption", "caption to picture")
        above = "".join(f'<th scope="colgroup" colspan="3" class="number">{way}</th>' for way in ways)
        note = escape(str(results[f"{columns[0]}/mean"].get("note", "")).rpartition("; ")[2])
        caption = f"{note}. R@k: the right one is among the first k."
        headings = ["Language", *["R@1|number", "R@5|number", "R@10|number"] * 2]
        parts.append(_summary(results, columns[0]) + table(headings, lines, caption, head=f"<tr><td></td>{above}</tr>"))
    return "".join(parts)


def _recall_line(results: Mapping[str, Row], columns: list[str], code: str, label: str, kind: str) -> str:
    cells = "".join(
        f'<td class="number" title="{interval(row)}">{number(row)}</td>'
        for row in (results.get(f"{column}/{code}", {}) for column in columns)
    )
    return f'<tr class="{kind}"><th scope="row">{label}</th>{cells}</tr>'


def distances(results: Mapping[str, Row]) -> str:
    """Generated against real, beside real against real."""
    parts = []
    for group in _groups(results, "/frechet_distance/generated"):
        lines, notes = [], []
        for name, label in DISTANCES.items():
            pair = [results.get(f"{group}/{name}/{kind}", {}) for kind in ("generated", "real")]
            cells = "".join(
                f'<td class="number">{number(row)}</td><td class="range">{interval(row)}</td>' for row in pair
            )
            lines.append(f'<tr><th scope="row">{label}</th>{cells}</tr>')
            notes.append(str(pair[0].get("note", "")))
        columns = ["", "generated|number", "95 % interval|range", "real, the floor|number", "95 % interval|range"]
        parts.append(table(columns, lines, f"{escape(notes[0])}."))
    return "".join(parts)


def others(results: Mapping[str, Row], prefixes: tuple[str, ...] | None) -> str:
    """Metrics as they are; with `prefixes` those whose name starts so, with None those that no section shows."""
    known = re.compile(r"/top[15]/|/(image_to_text|text_to_image)/r\d+/|/(generated|real)$|^prompts/|^composition")
    chosen = [
        row for name, row in results.items() if (name.startswith(prefixes) if prefixes else not known.search(name))
    ]
    lines = [
        f'<tr><th scope="row">{escape(_named(row["name"], prefixes))}</th><td class="number">{number(row)}</td>'
        f'<td class="range">{interval(row)}</td><td class="number wide-only">{escape(str(row.get("samples", "")))}</td>'
        f'<td class="note wrap">{escape(str(row.get("note") or ""))}</td></tr>'
        for row in chosen
    ]
    columns = ["What", "Value|number", "95 % interval|range", "Samples|number wide-only", ""]
    return table(columns, lines) + _slices(chosen, prefixes) if lines else ""


def _summary(results: Mapping[str, Row], name: str) -> str:
    mean, worst, ratio = (results.get(f"{name}/{kind}", {}) for kind in ("mean", "min", "min_over_mean"))
    where = f" ({_worst(worst)})" if _worst(worst) else ""
    return (
        f"<p>Mean over the languages {number(mean)} ({interval(mean)}), worst {number(worst)}{escape(where)}; "
        f"worst over mean {number(ratio)} ({interval(ratio)}).</p>"
    )


def _groups(results: Mapping[str, Row], ending: str) -> list[str]:
    return [name.removesuffix(ending) for name in results if name.endswith(ending)]


def _by_language(results: Mapping[str, Row], start: str) -> dict[str, Row]:
    rest = {name.removeprefix(start): row for name, row in results.items() if name.startswith(start)}
    return {code: row for code, row in rest.items() if code not in ("mean", "min", "min_over_mean")}


def _named(name: str, prefixes: tuple[str, ...] | None) -> str:
    return " · ".join(plain(part) for part in name.split("/")[1 if prefixes and "/" in name else 0 :])


def _worst(row: Row) -> str:
    code = re.search(r"worst language: (\w+)", str(row.get("note", "")))
    return LANGUAGES.get(code.group(1), code.group(1)) if code else ""


def _slices(rows: list[Row], prefixes: tuple[str, ...] | None) -> str:
    lines = []
    for row in rows:
        parts = row["slices"] if isinstance(row.get("slices"), dict) else {}
        for name, part in parts.items():
            if isinstance(part, dict) and "value" in part:
                own = {"unit": row.get("unit", "")} | part
                lines.append(
                    f'<tr><th scope="row">{escape(_named(row["name"], prefixes))}</th>'
                    f"<td>{escape(plain(str(name)))}</td>"
                    f'<td class="number">{number(own)}</td><td class="range">{interval(own)}</td>'
                    f'<td class="number">{escape(str(own.get("samples", "")))}</td></tr>'
                )
    columns = ["What", "Part", "Value|number", "95 % interval|range", "Samples|number"]
    return f"<details><summary>In parts</summary>{table(columns, lines)}</details>" if lines else ""
