"""Which evaluators of an evaluation that was interrupted need not run again.

The lines of an evaluator are written at once, so a folder holds all of them or none. They stand if the settings of the
evaluator, the content of the files and folders that they name, the models, and the versions of leam_mm, torch and
Python are the same.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.nn import Module

from leam_mm.checkpoint import find_checkpoint
from leam_mm.data.shard_index import MANIFEST, ShardFolder
from leam_mm.evaluators.evaluator import EvaluationContext
from leam_mm.evaluators.recorded_paths import recorded_path
from leam_mm.evaluators.results import class_name, settings, versions
from leam_mm.files import file_sha256
from leam_mm.model_address import address_kind

ROLES = ("clip", "generator", "codec")


def model_digests(context: EvaluationContext) -> dict[str, str]:
    """Return a digest for each model of a context, whose models are still paths.

    Args:
        context: As given to the first evaluator.
    """
    paths = {role: path for role in ROLES if (path := getattr(context, role)) is not None}
    return {role: _digest(find_checkpoint(p) if address_kind(p) == "run" else Path(p)) for role, p in paths.items()}


def input_digests(evaluator: object) -> dict[str, str]:
    """Return a digest for each file or folder that the settings of an evaluator name, by its recorded path.

    Of several with one name outside the working folder, the later ones get a number.
    """
    found: dict[str, str] = {}
    for path in sorted(_paths(vars(evaluator))):
        name = recorded_path(path)
        same = sum(other == name or other.startswith(f"{name} (") for other in found)
        found[f"{name} ({same + 1})" if same else name] = _digest(path)
    return found


def is_finished(
    lines: Sequence[Mapping[str, Any]], evaluator: object, inputs: Mapping[str, str], models: Mapping[str, str]
) -> bool:
    """Return whether the lines of a results.jsonl hold all results of an evaluator, and none was replaced since.

    Args:
        lines: All lines, in order.
        evaluator: The evaluator, before its run.
        inputs: Its digests, see `input_digests`.
        models: Digests of the models, see `model_digests`.
    """
    wanted = {"evaluator": class_name(evaluator), "settings": settings(evaluator), "versions": versions()}

    def stands(line: Mapping[str, Any]) -> bool:
        if any(line.get(key) != value for key, value in wanted.items()):
            return False
        noted, used = _part(line, "inputs"), _part(line, "checkpoints")
        if {path: digest for path, digest in noted.items() if path not in ROLES} != inputs:
            return False
        # Another model that no result depends on does not matter; one that was not given does.
        return all(
            noted.get(role) == models.get(role) or (role in models and role in noted and used.get(role) is None)
            for role in ROLES
        )

    newest = {line["name"]: line for line in lines}
    found = {line["name"] for line in lines if stands(line)}
    return bool(found) and all(stands(newest[name]) for name in found)


def _part(line: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return found if isinstance(found := line.get(key), dict) else {}


def _paths(value: Any) -> set[Path]:
    if isinstance(value, Path):
        return {value} if value.exists() else set()
    if isinstance(value, list | tuple):
        return set().union(*(_paths(item) for item in value))
    if isinstance(value, dict):
        return set().union(*(_paths(item) for item in value.values()))
    own = type(value).__module__.startswith("leam_mm.") and not isinstance(value, Module)
    return _paths(vars(value)) if own and hasattr(value, "__dict__") else set()


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file, the Merkle root of shards, or a digest of other folders' names, sizes and times."""
    if path.is_file():
        return file_sha256(path)
    if (path / MANIFEST).is_file():
        return ShardFolder(path).merkle_root
    digest = hashlib.sha256(str(path).encode() if not path.exists() else b"")  # the name of a model in a cache
    for file in sorted(path.rglob("*")) if path.is_dir() else ():
        if file.is_file():
            stat = file.stat()
            digest.update(f"{file.relative_to(path)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
