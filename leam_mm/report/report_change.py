"""The report's section about a fine-tuning: each number before and after, side by side."""

from collections.abc import Mapping
from html import escape

from leam_mm.report.report_number import MISSING, Row, interval, number, plain, table

BEFORE, AFTER, CHANGE = "before/", "after/", "fine_tuning/change/"


def is_change(name: str) -> bool:
    """Whether this section shows the metric of that name."""
    return name.startswith((BEFORE, AFTER, CHANGE))


def changes(results: Mapping[str, Row]) -> str:
    """A row for each measurement, with its interval before and after; the paired change where one was measured."""
    names = list(dict.fromkeys(name.partition("/")[2] for name in results if name.startswith((BEFORE, AFTER))))
    lines = []
    for name in names:
        before, after = results.get(BEFORE + name, {}), results.get(AFTER + name, {})
        change = results.get(CHANGE + name)
        words = " · ".join(plain(part) for part in name.split("/"))
        samples = escape(str(after.get("samples", before.get("samples", ""))))
        paired = f"{number(change)} <small>{interval(change)}</small>" if change else ""
        lines.append(
            f'<tr><th scope="row">{escape(words)}</th>{_cells(before)}{_cells(after)}'
            f'<td class="number">{paired}</td><td class="number wide-only">{samples}</td>'
            f'<td class="note wrap">{escape(str(after.get("note") or ""))}</td></tr>'
        )
    columns = ["What", "Before|number", "95 % interval|range", "After|number", "95 % interval|range"]
    columns += ["Paired change|number", "Samples|number wide-only", ""]
    note = (
        "The same prompts, noise and held-out data for the generator before and after its fine-tuning. Where the "
        "intervals of a row overlap, the difference may be chance; a paired change whose interval leaves out zero is "
        "hardly."
    )
    return table(columns, lines, caption=note) if lines else ""


def _cells(row: Row) -> str:
    value = number(row) if row else MISSING
    return f'<td class="number">{value}</td><td class="range">{interval(row)}</td>'
