"""What the report shows of a run itself: generated pictures, training curves, energy and time, how to repeat it."""

import base64
import csv
import json
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from leam_mm.errors import UserError
from leam_mm.report.chart import line_chart
from leam_mm.report.report_number import MISSING, Row, duration, energy, language, plain, table

MAX_PICTURE_BYTES = 8_000_000
# The losses proper, and top-1 measured while training; parts at single times and the like would crowd the frame.
CURVES: dict[str, Callable[[str], bool]] = {
    "loss": lambda column: column.rpartition("/")[2] == "loss",
    "mean absolute error of pictures never seen": lambda column: column == "val/l1",
    "top-1 while training": lambda column: "/top1/" in column and "min_over" not in column,
}
STAGES = {"clip": "Encoder", "codec": "Latent codec", "generator": "Generator"}


def pictures(evaluation: Path) -> str:
    """Generated pictures by concept and language, then every other PNG of the evaluation folder."""
    parts, index = [], evaluation / "prompts.json"
    if index.is_file():
        parts.append(_prompt_table(evaluation, index))
    for path in sorted(evaluation.glob("*.png")):
        if not (path.name == "prompts.png" and parts):
            heading = (
                "Pictures generated for captions of the test set" if path.stem == "generated" else plain(path.stem)
            )
            parts.append(f"<h3>{escape(heading)}</h3>{_image(path, heading, 'sheet')}")
    return "".join(parts)


def _prompt_table(evaluation: Path, index: Path) -> str:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        codes = [str(code) for code in content["languages"]]
        cells: dict[int, dict[str, Row]] = {}
        for entry in content["pictures"]:
            # Only the file's own name is used: a path from inside a file is not trusted.
            path = evaluation / "prompts" / Path(str(entry["image"])).name
            cells.setdefault(int(entry["row"]), {})[str(entry["language"])] = {"path": path, "text": str(entry["text"])}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index}: is damaged ({type(error).__name__}); run the evaluator PromptGrid again") from None
    lines = []
    for _, row in sorted(cells.items()):
        figures = [_figure(code, row[code]) if code in row else "" for code in codes]
        lines.append("<tr>" + "".join(f"<td>{figure}</td>" for figure in figures) + "</tr>")
    note = "<p>One row is one description, one column one language. None of the pictures was chosen by hand.</p>"
    return note + table([language(code) for code in codes], lines, kind="prompts")


def _figure(code: str, cell: Row) -> str:
    caption = f'<figcaption lang="{escape(code)}">{escape(cell["text"])}</figcaption>'
    return f"<figure>{_image(cell['path'], cell['text'], '')}{caption}</figure>"


def _image(path: Path, text: str, kind: str) -> str:
    if not path.is_file() or path.stat().st_size > MAX_PICTURE_BYTES:
        return f'<span class="missing">{escape(path.name)} is missing or too large to embed</span>'
    try:
        with Image.open(path, formats=("PNG",)) as image:
            width, height = image.size
    except (OSError, SyntaxError, ValueError):
        raise UserError(f"{path}: is no PNG picture; remove it or run the evaluation again") from None
    names = " ".join(name for name in (kind, "pixel" if max(width, height) <= 96 else "") if name)
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    size = f'width="{width}" height="{height}"'
    return f'<img class="{names}" {size} alt="{escape(text)}" src="data:image/png;base64,{data}">'


def curves(folder: Path) -> str:
    """Losses of each stage against samples seen, from the metrics.csv of its training."""
    figures = []
    for name, label in STAGES.items():
        for path in sorted((folder / name).rglob("metrics.csv")):
            for quantity, chosen in CURVES.items():
                series, axis = _read_curves(path, chosen)
                if chart := line_chart(series, axis, f"{label}: {quantity}"):
                    figures.append(f"<figure><figcaption>{escape(label)}: {quantity}</figcaption>{chart}</figure>")
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _read_curves(path: Path, chosen: Callable[[str], bool]) -> tuple[dict[str, list[tuple[float, float]]], str]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error})") from None
    columns = list(rows[0]) if rows else []
    seen = next((column for column in columns if column and column.rpartition("/")[2] == "samples_seen"), None)
    wanted = [column for column in columns if column and chosen(column)]
    series: dict[str, list[tuple[float, float]]] = {column: [] for column in wanted[:4]}
    steps = [_float(row.get("step")) or 0.0 for row in rows]
    known = [(step, _float(row.get(seen))) for step, row in zip(steps, rows, strict=True)] if seen else []
    # The counter and a loss may stand in different rows of one step; where there is none the neighbours tell.
    anchors = sorted({(0.0, 0.0), *((step, value) for step, value in known if value is not None and step > 0)})
    at, count = (list(column) for column in zip(*anchors, strict=True))
    place = numpy.interp(steps, at, count) if len(anchors) > 1 else numpy.array(steps)
    for row, position in zip(rows, place, strict=True):
        for column, points in series.items():
            value = _float(row.get(column))
            if value is not None:
                points.append((float(position), value))
    return series, "samples seen" if len(anchors) > 1 else "steps"


def costs(stages: list[Row]) -> str:
    """Time and energy of each stage; CPU time that a virtual machine's host gave to others makes a stage slower."""
    lines = []
    for stage in stages:
        reading = stage.get("energy") or {}
        seconds, joules = stage.get("seconds"), reading.get("joules")
        time, busy, stolen = (
            duration(value) if isinstance(value, int | float) else MISSING
            for value in (seconds, stage.get("cpu_seconds"), stage.get("stolen_cpu_seconds"))
        )
        used = energy(joules) if isinstance(joules, int | float) else MISSING
        source = escape(str(reading.get("source") or ""))
        lines.append(
            f'<tr><th scope="row">{escape(plain(str(stage.get("name", ""))))}</th><td class="number">{time}</td>'
            f'<td class="number">{busy}</td><td class="number">{stolen}</td>'
            f'<td class="number">{used}</td><td class="note wrap">{source}</td></tr>'
        )
    columns = [
        "Stage",
        "Time|number",
        "CPU time|number",
        "Stolen by the host|number",
        "Energy|number",
        "How it was measured",
    ]
    return table(columns, lines) if stages else ""


def repeat(stages: list[Row], results: Mapping[str, Row]) -> str:
    """The commands, the checkpoints' digests and the versions."""
    commands = [command for command in (_command(stage.get("command")) for stage in stages) if command]
    parts = [f"<pre>{escape(chr(10).join(commands))}</pre>"] if commands else []
    lines = {}
    for row in results.values():
        for name, evidence in (row.get("checkpoints") or {}).items():
            if isinstance(evidence, dict):
                lines[str(evidence.get("sha256"))] = (name, evidence)
    for digest, (name, evidence) in lines.items():
        seen = f"; {evidence['samples_seen']} samples seen" if evidence.get("samples_seen") is not None else ""
        parts.append(
            f'<p class="note digest">{escape(str(name))}: <code>{escape(str(evidence.get("path")))}</code>'
            f"{escape(seen)}<br>sha256 <code>{escape(digest)}</code></p>"
        )
    versions = {
        json.dumps(row["versions"], sort_keys=True): row["versions"] for row in results.values() if row.get("versions")
    }
    for entry in versions.values():
        text = ", ".join(f"{key} {value}" for key, value in entry.items())
        parts.append(f'<p class="note">Measured with {escape(text)}.</p>')
    return "".join(parts)


def _command(command: Any) -> str:
    return " ".join(str(part) for part in command) if isinstance(command, list) else str(command or "")


def _float(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
