"""The file of results: one JSON object a line, each metric with what is needed to repeat it."""

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from leam_mm.errors import UserError
from leam_mm.evaluators.evaluator import EvaluationContext, Evaluator, Metric

RESULTS = "results.jsonl"


def evidence(context: EvaluationContext, evaluator: Evaluator, seconds: float) -> dict[str, Any]:
    """What a reader needs to repeat a number: settings, digests of the checkpoints, versions, device, time."""
    modules = {"clip": context.clip, "generator": context.generator}
    modules |= {"codec": context.codec} if context.codec is not None else {}
    try:
        own = version("leam_mm")
    except PackageNotFoundError:
        own = "not installed"
    return {
        "evaluator": f"{type(evaluator).__module__}.{type(evaluator).__name__}",
        "settings": {key: _plain(value) for key, value in vars(evaluator).items()},
        # A path that is still a path was not needed: no number rests on that checkpoint.
        "checkpoints": {key: getattr(module, "checkpoint_evidence", None) for key, module in modules.items()},
        "versions": {"leam_mm": own, "torch": torch.__version__, "python": platform.python_version()},
        "device": str(context.device),
        "seconds": round(seconds, 1),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def append_results(folder: Path, metrics: list[Metric], record: dict[str, Any]) -> None:
    """Add one line for each metric to the folder's file; a reader sees it before or after, never in between."""
    path = folder / RESULTS
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = [json.dumps(metric.as_dict() | record, ensure_ascii=False, default=str) + "\n" for metric in metrics]
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    temporary.write_text(before + "".join(lines), encoding="utf-8")
    os.replace(temporary, path)


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """The newest line of each metric by name, in the order in which the names first came; empty without a file."""
    path = folder / RESULTS
    if not path.exists():
        return {}
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            found[str(row["name"])] = row
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number}: is no result ({type(error).__name__}); remove the line") from None
    return found


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return f"{type(value).__module__}.{type(value).__name__}"
