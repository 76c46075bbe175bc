"""Two releases side by side: metrics with intervals of their differences, audits, models, data, energy and CO2."""

from collections.abc import Callable, Sequence
from pathlib import Path

from markupsafe import Markup

from leam_mm.documents.facts_file import read_facts
from leam_mm.documents.release_facts import ReleaseFacts, StageFacts
from leam_mm.intervals.compared_results import ComparedMetric, compare_rows
from leam_mm.languages import LANGUAGE_NAMES
from leam_mm.report.report_number import MISSING, Row, carbon, duration, energy, in_unit, interval, number
from leam_mm.report.report_words import plain
from leam_mm.report.templates import Figure, Section, Table, render_page

INTRODUCTION = (
    "B minus A. A difference is marked with * where its 95 % interval excludes zero. Paired: both were measured on the "
    "same samples, and their outcomes were compared one by one. Independent: only the interval of each is known, and "
    "the difference is treated as one of different samples; for the same samples this interval is usually too wide. "
    "With many metrics, one in twenty such intervals excludes zero by chance; p values are "
    "corrected for their number (Holm)."
)


def comparison_page(folder_a: Path, folder_b: Path) -> str:
    """Return the page about two releases.

    Args:
        folder_a: Release A.
        folder_b: Release B.

    Raises:
        UserError: One of them is no release.
    """
    one, other = read_facts(folder_a), read_facts(folder_b)
    metrics = compare_rows(one.metrics, other.metrics)
    of_languages = [metric for metric in metrics if metric.name.rpartition("/")[2] in LANGUAGE_NAMES]
    general = [metric for metric in metrics if metric not in of_languages]
    sections = [
        Section("metrics", "Metrics", _metric_table(general)),
        Section("languages", "Languages", _metric_table(of_languages)),
        Section("audits", "Audits", _audits(one, other)),
        Section("models", "Models", _models(one, other)),
        Section("data", "Training data", _data(one, other)),
        Section("cost", "Energy and emissions", _costs(one, other)),
    ]
    clear = [metric for metric in metrics if metric.difference.excludes_zero]
    kinds = {kind: sum(metric.difference.kind == kind for metric in metrics) for kind in ("paired", "independent")}
    figures = [
        Figure("A", one.name, one.licence),
        Figure("B", other.name, other.licence),
        Figure("Compared", str(sum(kinds.values())), f"{kinds['paired']} paired, {kinds['independent']} independent"),
        Figure("Interval excludes zero", str(len(clear)), f"of {sum(kinds.values())}"),
    ]
    parts = Path(__file__).with_name("release_comparison.html.jinja")
    title = f"{one.name} and {other.name}"
    return render_page(
        parts, title, INTRODUCTION, figures, sections, "Written by leam_mm from the files of both releases."
    )


def _metric_table(metrics: Sequence[ComparedMetric]) -> Table | None:
    columns = ["Metric", "A|number", "B|number", "B - A|number", "95 % interval|range", "Kind"]
    columns += ["p, Holm|number", "A, 95 % interval|range wide-only", "B, 95 % interval|range wide-only", "|note wrap"]
    rows = []
    for metric in metrics:
        unit = str((metric.one or metric.other).get("unit", ""))
        change = metric.difference
        star = " *" if change.excludes_zero else ""
        value = MISSING if change.value is None else f"{_signed(change.value, unit)}{star}"
        ends = [_signed(end, unit) for end in (change.low, change.high) if end is not None]
        if len(ends) == 2:
            ends[0] = ends[0].removesuffix(" points")
        kind = change.kind if change.kind != "none" else ""
        name = " · ".join(plain(part) for part in metric.name.split("/"))
        numbers, intervals = ([show(dict(row)) for row in (metric.one, metric.other)] for show in (number, interval))
        rows.append([name, *numbers, value, " to ".join(ends), kind, _p(metric.adjusted), *intervals, metric.note])
    return Table(columns, rows) if rows else None


def _p(value: float | None) -> str:
    return "" if value is None else "below 0.001" if value < 0.001 else f"{value:.3f}"


def _signed(value: float, unit: str) -> str:
    text = in_unit(value, unit)
    if unit in ("fraction", "share"):
        text = text.replace(" %", " points")
    return text if value < 0 else f"+{text}"


def _audits(one: ReleaseFacts, other: ReleaseFacts) -> Table | None:
    rows_a, rows_b = ({str(row["name"]): row for row in facts.metrics} for facts in (one, other))
    names = [name for name in dict.fromkeys([*rows_a, *rows_b]) if name.startswith("audit/")]
    rows = []
    for name in names:
        cells: list[object] = []
        for row in (rows_a.get(name, {}), rows_b.get(name, {})):
            cells += [_verdict(row), number(row), interval(row)]
        rows.append([plain(name.removeprefix("audit/")), *cells])
    ends = ["Value|number", "95 % interval|range wide-only"]
    return Table(["Audit", "A", *ends, "B", *ends], rows) if rows else Table(["No audit was measured in either."], [])


def _verdict(row: Row) -> object:
    if not row:
        return MISSING
    return {True: "passed", False: "failed"}.get(row.get("passed"), "inconclusive")  # type: ignore[arg-type]


def _models(one: ReleaseFacts, other: ReleaseFacts) -> Table:
    lines: dict[str, Callable[[StageFacts], object]] = {
        "parameters": lambda stage: f"{stage.parameters:,}",
        "samples seen": lambda stage: MISSING if stage.samples_seen is None else f"{stage.samples_seen:,}",
        "training compute, estimated": lambda stage: MISSING if stage.flops is None else f"{stage.flops:.3g} FLOP",
        "started from": lambda stage: stage.base.get("name") or stage.base.get("weights") or "random weights",
    }
    return _by_stage(one, other, lines)


def _costs(one: ReleaseFacts, other: ReleaseFacts) -> Table:
    lines: dict[str, Callable[[StageFacts], object]] = {
        "energy, measured": lambda stage: energy(stage.joules),
        "source of the energy": lambda stage: (stage.energy or {}).get("source") or MISSING,
        "emissions, location-based": lambda stage: carbon(dict(stage.energy or {}), "location"),
        "wall time": lambda stage: duration(stage.seconds),
    }
    table = _by_stage(one, other, lines)
    change = MISSING
    if one.joules is not None and other.joules is not None:
        less = other.joules < one.joules
        change = Markup("B took {} {} than A").format(
            energy(abs(other.joules - one.joules)), "less" if less else "more"
        )
    total = ["all parts", "energy, measured", energy(one.joules), energy(other.joules)]
    return Table(table.columns, [*table.rows, total, ["all parts", "difference", "", change]])


def _by_stage(one: ReleaseFacts, other: ReleaseFacts, lines: dict[str, Callable[[StageFacts], object]]) -> Table:
    kinds = dict.fromkeys([stage.kind for facts in (one, other) for stage in facts.stages])
    rows = []
    for kind in kinds:
        stages = [facts.stage(kind) for facts in (one, other)]
        for label, read in lines.items():
            rows.append([kind, label, *("not part of it" if stage is None else read(stage) for stage in stages)])
    return Table(["Part", "", "A|number", "B|number"], rows)


def _data(one: ReleaseFacts, other: ReleaseFacts) -> Table:
    rows = []
    sides = [{root: name for stage in facts.stages for root, name in stage.data.items()} for facts in (one, other)]
    counted = {entry.merkle_root: entry for facts in (one, other) for entry in facts.data}
    for root in dict.fromkeys([*sides[0], *sides[1]]):
        entry = counted.get(root)
        licences = ", ".join(
            f"{name or '(empty)'}: {count:,}" for name, count in ((entry and entry.licences) or {}).items()
        )
        where = " and ".join(label for label, side in zip("AB", sides, strict=True) if root in side)
        name = next(side[root] for side in sides if root in side)
        samples = MISSING if entry is None else f"{entry.samples:,}"
        rows.append([name, where, samples, licences or MISSING, root])
    return Table(["Shard folder", "Read by", "Samples|number", "Licences|wrap", "Merkle root|wrap"], rows)
