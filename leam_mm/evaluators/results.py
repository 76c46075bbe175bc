"""results.jsonl: one JSON object per line, each metric with what is needed to repeat it."""

import inspect
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
from leam_mm.evaluators.recorded_paths import recorded_path, without_machine_paths
from leam_mm.files import write_bytes
from leam_mm.json_text import parse_lines

RESULTS = "results.jsonl"
NUMBER = int | float | None
NUMBERS = ("value", "low", "high", "samples")
LARGEST = 1e100  # of a number, so that sums and squares are finite
# Types of what other programs read of a line.
COLUMNS: dict[str, Any] = {
    "name": str,
    **dict.fromkeys(NUMBERS, NUMBER),
    **dict.fromkeys(("unit", "note"), str | None),
    **dict.fromkeys(("slices", "checkpoints", "versions", "settings"), dict | None),
}


class Line(Protocol):
    """What can be a line: a Metric, or the result of an audit."""

    def as_dict(self) -> dict[str, Any]:
        """Return a mapping for JSON."""


def evidence(
    context: EvaluationContext, evaluator: object, seconds: float, inputs: dict[str, str] | None = None
) -> dict[str, Any]:
    """Return what is needed to repeat a number: settings, digests of inputs and checkpoints, versions, device, time.

    Args:
        context: The networks that were measured.
        evaluator: What measured them.
        seconds: Duration.
        inputs: Digests of the files and folders that the settings name, see ``input_digests``.
    """
    modules = {"clip": context.clip, "generator": context.generator}
    modules |= {"codec": context.codec} if context.codec is not None else {}
    return {
        "evaluator": class_name(evaluator),
        "settings": settings(evaluator),
        # No metric depends on a checkpoint that only an earlier evaluator used.
        "checkpoints": {
            key: getattr(module, "checkpoint_evidence", None) if key in context.used else None
            for key, module in modules.items()
        },
        "inputs": inputs or {},
        "versions": versions(),
        "device": str(context.device),
        "seconds": round(seconds, 1),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def class_name(value: object) -> str:
    """Return the dotted path of an object's class."""
    return f"{type(value).__module__}.{type(value).__name__}"


def versions() -> dict[str, str]:
    """Return the versions that numbers may depend on."""
    try:
        own = version("leam_mm")
    except PackageNotFoundError:
        own = "not installed"
    return {"leam_mm": own, "torch": torch.__version__, "python": platform.python_version()}


def settings(evaluator: object) -> dict[str, Any]:
    """Return the settings of an evaluator or an audit as values that JSON can hold."""
    return {key: without_machine_paths(_plain(value)) for key, value in vars(evaluator).items()}


def append_results(folder: Path, metrics: Sequence[Line], record: dict[str, Any]) -> None:
    """Append one line for each metric to the folder's file, atomically; no line has an absolute path."""
    path = folder / RESULTS
    before = path.read_bytes() if path.exists() else b""  # of anyone: it may be no UTF-8, or end within a line
    rows = [without_machine_paths(metric.as_dict() | record) for metric in metrics]
    lines = [json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows]
    end = b"\n" if before and not before.endswith(b"\n") else b""
    write_bytes(path, before + end + "".join(lines).encode())


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the newest line of each metric by name, in order of first appearance; empty without a file."""
    return {row["name"]: row for row in read_lines(folder / RESULTS)}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return all lines of a results.jsonl; none without a file.

    Raises:
        UserError: A line holds something else.
    """
    if not path.exists():
        return []
    found = []
    try:
        for number, row in parse_lines(path.read_bytes()):
            if wrong := [name for name, kinds in COLUMNS.items() if not isinstance(row.get(name), kinds)]:
                raise ValueError(f"line {number}: {wrong[0]} is of type {type(row.get(wrong[0])).__name__}")
            if wrong := [name for name in NUMBERS if not _in_range(row.get(name))]:
                raise ValueError(f"line {number}: {wrong[0]} is no finite number below {LARGEST:g}")
            found.append(row | {name: row.get(name) for name in NUMBERS})
    except ValueError as error:
        raise UserError(f"{path} holds something that is not a result ({error}): remove that line") from None
    return found


def _in_range(value: int | float | None) -> bool:
    return value is None or (not isinstance(value, bool) and abs(value) < LARGEST)  # false for NaN


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return recorded_path(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    # Of a nested object, what its constructor takes; networks and what was loaded later are no settings.
    taken = () if isinstance(value, torch.nn.Module) else inspect.signature(type(value).__init__).parameters
    own = {key: _plain(vars(value)[key]) for key in taken if key in getattr(value, "__dict__", {})}
    return {"class": class_name(value)} | own if own else class_name(value)
