"""What the report shows of the run itself: training curves, energy and time, how to repeat it."""

import csv
import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
from markupsafe import Markup

from leam_mm.errors import UserError
from leam_mm.report.chart import line_chart
from leam_mm.report.report_number import Row, carbon, carbon_factors, duration, energy, is_number, remark
from leam_mm.report.report_section import columns_of
from leam_mm.report.report_words import plain, word
from leam_mm.report.templates import Table

# The losses themselves, and top-1 measured during training; losses at single timesteps would crowd the chart.
CURVES: dict[str, Callable[[str], bool]] = {
    "loss": lambda column: column.rpartition("/")[2] == "loss",
    "mean absolute error of held-out images": lambda column: column == "val/l1",
    "top-1 during training": lambda column: "/top1/" in column and "min_over" not in column,
}
STAGES = {"clip": "Encoder", "codec": "Latent codec", "generator": "Generator"}


def curves(folder: Path, language: str) -> list[tuple[str, Markup]]:
    """Return charts of the losses of each stage against samples seen, from the stage's metrics.csv."""
    charts = []
    for name, label in STAGES.items():
        for path in sorted((folder / name).rglob("metrics.csv")):
            for quantity, chosen in CURVES.items():
                series, axis = _read_curves(path, chosen)
                title = f"{word(label, language)}: {word(quantity, language)}"
                if chart := line_chart(series, word(axis, language), title, language):
                    charts.append((title, chart))
    return charts


def _read_curves(path: Path, chosen: Callable[[str], bool]) -> tuple[dict[str, list[tuple[float, float]]], str]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error}); remove it") from None
    columns = list(rows[0]) if rows else []
    seen = next((column for column in columns if column and column.rpartition("/")[2] == "samples_seen"), None)
    wanted = [column for column in columns if column and chosen(column)]
    series: dict[str, list[tuple[float, float]]] = {column: [] for column in wanted[:4]}
    steps = [_float(row.get("step")) or 0.0 for row in rows]
    counts = [(step, _float(row.get(seen))) for step, row in zip(steps, rows, strict=True)] if seen else []
    # The counter and a loss may be in different rows of one step; steps without a counter are interpolated.
    anchors = sorted({(0.0, 0.0), *((step, value) for step, value in counts if value is not None and step > 0)})
    at, count = (list(column) for column in zip(*anchors, strict=True))
    position = numpy.interp(steps, at, count) if len(anchors) > 1 else numpy.array(steps)
    for row, x in zip(rows, position, strict=True):
        for column, points in series.items():
            value = _float(row.get(column))
            if value is not None:
                points.append((float(x), value))
    return series, "samples seen" if len(anchors) > 1 else "steps"


def costs(stages: list[Row], language: str) -> Table | None:
    """Return time and energy of each stage; CPU time that a virtual machine's host takes away makes a stage slower."""
    rows, factors = [], set()
    for stage in stages:
        reading = stage.get("energy") or {}
        times = [duration(stage.get(key), language) for key in ("seconds", "cpu_seconds", "stolen_cpu_seconds")]
        emitted = _emitted(stage)
        factors.add(carbon_factors(emitted, language))
        grams = [carbon(emitted, kind, language) for kind in ("location", "market")]
        source = word(str(reading.get("source") or ""), language)
        gap, seconds = stage.get("unmeasured_seconds"), stage.get("seconds")
        if is_number(gap) and is_number(seconds) and seconds > 0 and gap > 0.001 * seconds:
            part = word("measured in {} of the time", language).format(f"{max(0.0, 1 - gap / seconds):.0%}")
            source += f"; {part}"
        beside = stage.get("beside")
        if isinstance(beside, list) and beside:
            others = ", ".join(map(str, beside))
            source += "; " + word("at the same time as {}; energy divided by CPU time", language).format(others)
        joules = energy(reading.get("joules"), language)
        rows.append([plain(str(stage.get("name", ""))), *times, joules, *grams, remark(source, language)])
    names = (
        *("Stage", "Time|number", "CPU time|number", "Stolen by the host|number", "Energy|number"),
        *("Location-based|number", "Market-based|number", "How it was measured|note wrap"),
    )
    caption = word("Emissions, {}. Location-based is the grid's mean, market-based the contract's.", language)
    return Table(columns_of(names, language), rows, caption.format(" / ".join(sorted(factors)))) if rows else None


def _emitted(stage: Row) -> Row:
    emitted = stage.get("carbon")
    return {**(emitted if isinstance(emitted, dict) else {}), "joules": (stage.get("energy") or {}).get("joules")}


def repeat(stages: list[Row], results: Mapping[str, Row], pipeline: Row) -> dict[str, Any] | None:
    """Return the commands, the digests of the checkpoints, and the versions.

    Args:
        stages: Records of the stages, whose commands are shown if the pipeline recorded no order.
        results: Lines of results.jsonl.
        pipeline: ``pipeline`` of summary.json: its command, and each stage's command and server in their order.
    """
    commands = [command for command in (_command(stage.get("command")) for stage in stages) if command]
    checkpoints, versions = {}, {}
    for row in results.values():
        for name, evidence in (row.get("checkpoints") or {}).items():
            if isinstance(evidence, dict):
                known = {key: evidence.get(key) for key in ("path", "samples_seen", "sha256")}
                checkpoints[str(evidence.get("sha256"))] = {"name": str(name), **known}
        if row.get("versions"):
            text = ", ".join(f"{key} {value}" for key, value in row["versions"].items())
            versions[json.dumps(row["versions"], sort_keys=True)] = text
    content = {
        "pipeline": _command(pipeline.get("command")), "commands": _in_order(pipeline) or commands,
        "checkpoints": [*checkpoints.values()], "versions": [*versions.values()],
    }  # fmt: skip
    return content if any(content.values()) else None


def _in_order(pipeline: Row) -> list[str]:
    """Return shell commands that do what the pipeline does; a server runs beside the stages that need it."""
    stages = pipeline.get("stages")
    lines, running = [], ""
    for stage in stages if isinstance(stages, list) else []:
        if isinstance(stage, dict) and (command := _command(stage.get("command"))):
            server = _command(stage.get("server"))
            if server != running:
                lines += (["kill $!"] if running else []) + ([f"{server} &"] if server else [])
            running = server
            lines.append(command)
    environment = _command(pipeline.get("environment"))
    return [f"export {environment}"] * bool(environment and lines) + lines + ["kill $!"] * bool(running)


def _command(command: Any) -> str:
    return shlex.join(map(str, command)) if isinstance(command, list) else str(command or "")


def _float(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
