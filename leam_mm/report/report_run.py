"""What the report shows of the run itself: training curves, energy and time, how to repeat it."""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
from markupsafe import Markup

from leam_mm.errors import UserError
from leam_mm.report.chart import line_chart
from leam_mm.report.report_number import Row, carbon, carbon_factors, duration, energy, plain
from leam_mm.report.templates import Table

# The losses themselves, and top-1 measured during training; losses at single timesteps would crowd the chart.
CURVES: dict[str, Callable[[str], bool]] = {
    "loss": lambda column: column.rpartition("/")[2] == "loss",
    "mean absolute error of held-out images": lambda column: column == "val/l1",
    "top-1 during training": lambda column: "/top1/" in column and "min_over" not in column,
}
STAGES = {"clip": "Encoder", "codec": "Latent codec", "generator": "Generator"}


def curves(folder: Path) -> list[tuple[str, Markup]]:
    """Return charts of the losses of each stage against samples seen, from the stage's metrics.csv."""
    charts = []
    for name, label in STAGES.items():
        for path in sorted((folder / name).rglob("metrics.csv")):
            for quantity, chosen in CURVES.items():
                series, axis = _read_curves(path, chosen)
                if chart := line_chart(series, axis, f"{label}: {quantity}"):
                    charts.append((f"{label}: {quantity}", chart))
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


def costs(stages: list[Row]) -> Table | None:
    """Return time and energy of each stage; CPU time that a virtual machine's host takes away makes a stage slower."""
    columns = ["Stage", "Time|number", "CPU time|number", "Stolen by the host|number", "Energy|number"]
    rows, factors = [], set()
    for stage in stages:
        reading = stage.get("energy") or {}
        times = [duration(stage.get(key)) for key in ("seconds", "cpu_seconds", "stolen_cpu_seconds")]
        emitted = _emitted(stage)
        factors.add(carbon_factors(emitted))
        grams = [carbon(emitted, kind) for kind in ("location", "market")]
        source = str(reading.get("source") or "")
        gap, seconds = stage.get("unmeasured_seconds"), stage.get("seconds")
        if isinstance(gap, int | float) and isinstance(seconds, int | float) and seconds > 0 and gap > 0.001 * seconds:
            source += f"; measured in {max(0.0, 1 - gap / seconds):.0%} of the time"
        rows.append([plain(str(stage.get("name", ""))), *times, energy(reading.get("joules")), *grams, source])
    caption = (
        f"Emissions, {' / '.join(sorted(factors))}. Location-based is the grid's mean, market-based the contract's."
    )
    columns += ["Location-based|number", "Market-based|number", "How it was measured|note wrap"]
    return Table(columns, rows, caption) if rows else None


def _emitted(stage: Row) -> Row:
    emitted = stage.get("carbon")
    return {**(emitted if isinstance(emitted, dict) else {}), "joules": (stage.get("energy") or {}).get("joules")}


def repeat(stages: list[Row], results: Mapping[str, Row]) -> dict[str, Any] | None:
    """Return the commands, the digests of the checkpoints, and the versions."""
    commands = [command for command in (_command(stage.get("command")) for stage in stages) if command]
    checkpoints, versions = {}, {}
    for row in results.values():
        for name, evidence in (row.get("checkpoints") or {}).items():
            if isinstance(evidence, dict):
                known = {key: evidence.get(key) for key in ("path", "samples_seen", "sha256")}
                checkpoints[str(evidence.get("sha256"))] = {"name": name, **known}
        if row.get("versions"):
            text = ", ".join(f"{key} {value}" for key, value in row["versions"].items())
            versions[json.dumps(row["versions"], sort_keys=True)] = text
    content = {"commands": commands, "checkpoints": [*checkpoints.values()], "versions": [*versions.values()]}
    return content if any(content.values()) else None


def _command(command: Any) -> str:
    return " ".join(str(part) for part in command) if isinstance(command, list) else str(command or "")


def _float(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
