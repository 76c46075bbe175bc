"""results.jsonl: one JSON object per line, each metric with what is needed to repeat it."""

import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import torch

from leam_mm.errors import UserError
from leam_mm.evaluators.evaluator import EvaluationContext
from leam_mm.files import write_text
from leam_mm.json_text import parse_lines

RESULTS = "results.jsonl"
NUMBER = int | float | None
# Types of what other programs read of a line.
COLUMNS: dict[str, Any] = {
    "name": str,
    **dict.fromkeys(("value", "low", "high", "samples"), NUMBER),
    **dict.fromkeys(("unit", "note"), str | None),
    **dict.fromkeys(("slices", "checkpoints", "versions", "settings"), dict | None),
}


class Line(Protocol):
    """What can be a line: a Metric, or the result of an audit."""

    def as_dict(self) -> dict[str, Any]:
        """Return a mapping for JSON."""


def evidence(context: EvaluationContext, evaluator: object, seconds: float) -> dict[str, Any]:
    """Return what is needed to repeat a number: settings, digests of the checkpoints, versions, device, time."""
    modules = {"clip": context.clip, "generator": context.generator}
    modules |= {"codec": context.codec} if context.codec is not None else {}
    try:
        own = version("leam_mm")
    except PackageNotFoundError:
        own = "not installed"
    return {
        "evaluator": f"{type(evaluator).__module__}.{type(evaluator).__name__}",
        "settings": {key: _plain(value) for key, value in vars(evaluator).items()},
        # A checkpoint that is still a path was not loaded: no metric depends on it.
        "checkpoints": {key: getattr(module, "checkpoint_evidence", None) for key, module in modules.items()},
        "versions": {"leam_mm": own, "torch": torch.__version__, "python": platform.python_version()},
        "device": str(context.device),
        "seconds": round(seconds, 1),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def append_results(folder: Path, metrics: Sequence[Line], record: dict[str, Any]) -> None:
    """Append one line for each metric to the folder's file, atomically."""
    path = folder / RESULTS
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = [json.dumps(metric.as_dict() | record, ensure_ascii=False, default=str) + "\n" for metric in metrics]
    write_text(path, before + "".join(lines))


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the newest line of each metric by name, in order of first appearance; empty without a file."""
    path = folder / RESULTS
    if not path.exists():
        return {}
    found: dict[str, dict[str, Any]] = {}
    try:
        for number, row in parse_lines(path.read_bytes()):
            if wrong := [name for name, kinds in COLUMNS.items() if not isinstance(row.get(name), kinds)]:
                raise ValueError(f"line {number}: {wrong[0]} is of type {type(row.get(wrong[0])).__name__}")
            found[row["name"]] = row | {name: row.get(name) for name in ("value", "low", "high", "samples")}
    except ValueError as error:
        raise UserError(f"{path} holds something that is not a result ({error}): remove that line") from None
    return found


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return f"{type(value).__module__}.{type(value).__name__}"
