"""The facts of a release in its own folder: written by ``build``, read again by ``verify``.

``leam_mm_release.json`` holds them, except for the settings of the runs (``configs/KIND.yaml``) and the results
(``results.jsonl``).
"""

import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from leam_mm.documents.content_file import read_training_content
from leam_mm.documents.release_facts import DataFacts, ReleaseFacts, StageFacts
from leam_mm.errors import UserError
from leam_mm.evaluators.results import read_results
from leam_mm.files import files_sha256
from leam_mm.json_text import parse_object

EVIDENCE_FILE = "leam_mm_release.json"
MAX_EVIDENCE, MAX_CONFIG = 64 << 20, 1 << 20  # bytes
ELSEWHERE = ("recipe",)  # of a stage
LATER = ("README.md", "configs/release.yaml", "provenance.json", "model.sig", EVIDENCE_FILE)


def facts_record(facts: ReleaseFacts) -> dict[str, Any]:
    """Return the entries of ``leam_mm_release.json`` that hold the facts."""
    record = {entry.name: getattr(facts, entry.name) for entry in fields(facts)}
    for name in ("metrics", "stages", "data", "files", "content"):
        record.pop(name)
    stages = {stage.kind: _without(asdict(stage), ELSEWHERE) for stage in facts.stages}
    data = [asdict(entry) for entry in facts.data]
    return {**record, "stages": stages, "data": data, "documents_sha256": documents_sha256()}


@lru_cache
def documents_sha256() -> str:
    """Return the digest of the code and templates that write documents: the same facts then give the same words."""
    folder = Path(__file__).parent
    return files_sha256(sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".jinja", ".yaml")))


def recorded_documents_sha256(folder: Path) -> object:
    """Return the digest of the code that wrote the documents of a release; None where it is not recorded."""
    return _read_object(folder / EVIDENCE_FILE).get("documents_sha256")


def read_facts(folder: Path) -> ReleaseFacts:
    """Read the facts of a release folder.

    Raises:
        UserError: A file is missing, too large, or of another form.
    """
    path = folder / EVIDENCE_FILE
    record = _read_object(path)
    stages = record.get("stages")
    if not isinstance(stages, dict) or not isinstance(record.get("data"), list):
        raise UserError(f"{path}: stages or data is missing: build the release again")
    found = []
    for kind, stage in stages.items():
        recipe = _read_recipe(folder / "configs" / f"{Path(str(kind)).name}.yaml")
        filled = _filled(StageFacts, stage, f"{path}: stages.{kind}", recipe=recipe)
        found.append(replace(filled, inference=filled.inference or ()))  # a stranger's settings build no network
    data = [_filled(DataFacts, entry, f"{path}: data") for entry in record["data"]]
    given: dict[str, Any] = {"stages": found, "data": data, "metrics": list(read_results(folder).values())}
    given |= {"files": _model_files(record.get("files")), "content": read_training_content(folder)}
    return _filled(ReleaseFacts, record, str(path), **given)


def _model_files(listed: Any) -> dict[str, str]:
    """Return the digests of the files that were there before the documents were written."""
    found = listed if isinstance(listed, dict) else {}
    return {
        str(name): str(entry["sha256"]) for name, entry in found.items()
        if isinstance(entry, dict) and "sha256" in entry and not is_document(str(name))
    }  # fmt: skip


def is_document(name: str) -> bool:
    """Return whether a file of a release is written from the facts, or after them."""
    return name in LATER or (name.startswith("documents/") and not name.startswith("documents/images/"))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_EVIDENCE:
            raise UserError(f"{path} has more than {MAX_EVIDENCE:,} bytes: it was not written by this project")
        return parse_object(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a release folder") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): build the release again") from None


def _read_recipe(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise ValueError("it is too large")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}): build the release again") from None
    return content if isinstance(content, dict) else {}


def _filled(kind: type[Any], record: Any, where: str, **given: Any) -> Any:
    """Return a dataclass from a record of JSON, after a check of the types."""
    if not isinstance(record, dict):
        raise UserError(f"{where} is of type {type(record).__name__}: build the release again")
    hints, values = typing.get_type_hints(kind), dict(given)
    for entry in fields(kind):
        if entry.name in record and entry.name not in given:
            if not _fits(record[entry.name], hints[entry.name]):
                raise UserError(f"{where}.{entry.name} is of a wrong type: build the release again")
            values[entry.name] = record[entry.name]
    try:
        return kind(**values)
    except TypeError as error:
        raise UserError(f"{where}: {str(error).rpartition('__init__() ')[2]}: build the release again") from None


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value of JSON has the type of a field."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if hint is types.NoneType:
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(_fits(inner, parts[1]) for inner in value.values())
    if origin is not None:  # sequences
        return isinstance(value, list | tuple) and all(_fits(inner, parts[0]) for inner in value)
    return isinstance(value, hint)


def _without(record: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in names}
