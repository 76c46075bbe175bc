"""provenance.json: what a release was built from, as an in-toto statement with the provenance predicate of SLSA v1.

The builder states it about itself, which is SLSA build level 1. No path, user or host of the machine is in it.

Specification: https://slsa.dev/spec/v1.0/provenance, https://github.com/in-toto/attestation/tree/main/spec/v1.
"""

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from leam_mm.code_commit import code_commit
from leam_mm.documents.release_facts import ReleaseFacts
from leam_mm.errors import UserError
from leam_mm.files import file_sha256, write_json

PROVENANCE = "provenance.json"
BUILD_TYPE, BUILDER = "urn:leam_mm:release:2", "urn:leam_mm:release:build"
NOT_KNOWN = "not known"
LIBRARIES = ("torch", "open_clip_torch", "diffusers", "transformers", "safetensors", "lightning")


@dataclass(frozen=True)
class Ingredient:
    """Something that a release was made of.

    Args:
        name: What it is, such as ``checkpoint of clip``.
        digest: Digests by algorithm, such as sha256, gitCommit or merkleRoot.
        facts: Further values, such as the samples seen.
    """

    name: str
    digest: Mapping[str, str]
    facts: Mapping[str, Any]


def write_provenance(
    folder: Path, digests: Mapping[str, str], parameters: Mapping[str, Any], ingredients: Sequence[Ingredient]
) -> dict[str, str]:
    """Write provenance.json into a release and return its digest by its name.

    Args:
        folder: The release, before its record and its signature are written.
        digests: SHA-256 of each file that is in it now.
        parameters: Options of the command, without paths of this machine.
        ingredients: Checkpoints, data and weights of others that it was made of.
    """
    write_json(folder / PROVENANCE, statement(digests, parameters, ingredients), indent=2)
    return {PROVENANCE: file_sha256(folder / PROVENANCE)}


def release_ingredients(facts: ReleaseFacts) -> list[Ingredient]:
    """Return what a release was made of: checkpoints, their data, and the weights that they started from."""
    found, samples = [], {entry.merkle_root: entry.samples for entry in facts.data}
    for stage in facts.stages:
        record = stage.energy or {}
        times = {"began_at": record.get("began_at"), "ended_at": record.get("ended_at")}
        seen = {
            "samples_seen": stage.samples_seen,
            "training_seconds": stage.seconds,
            **times,
            "hardware": record.get("hardware"),
        }
        found.append(Ingredient(f"checkpoint of {stage.kind}", {"sha256": stage.checkpoint_sha256}, seen))
        for root, name in stage.data.items():
            counted = {"samples": samples.get(root)}
            found.append(Ingredient(f"data of {stage.kind}: {name}", {"merkleRoot": root}, counted))
        if stage.base:
            digest = {"sha256": stage.base["sha256"]} if "sha256" in stage.base else {}
            stated = {key: value for key, value in stage.base.items() if key != "sha256"}
            found.append(Ingredient(f"weights that {stage.kind} started from", digest, stated))
    return found


def statement(
    digests: Mapping[str, str], parameters: Mapping[str, Any], ingredients: Sequence[Ingredient]
) -> dict[str, Any]:
    """Return the in-toto statement; see `write_provenance` for the arguments.

    Args:
        digests: SHA-256 of each file of the release.
        parameters: Options of the command.
        ingredients: What the release was made of.
    """
    time = build_time().isoformat().replace("+00:00", "Z")
    configs = {name: digest for name, digest in digests.items() if name.startswith("configs/")}
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(digests.items())],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "command": "python -m leam_mm.release build",
                    "options": dict(parameters),
                    "configs": {name: {"sha256": digest} for name, digest in sorted(configs.items())},
                },
                "internalParameters": {"python": platform.python_version(), "system": platform.system()},
                "resolvedDependencies": [*_software(), *map(_descriptor, ingredients)],
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"leam_mm": _version("leam_mm")}},
                "metadata": {"startedOn": time, "finishedOn": time},
            },
        },
    }


def build_time() -> datetime:
    """Return the time of the build: that of SOURCE_DATE_EPOCH if it is set, so that a build can be repeated.

    Raises:
        UserError: SOURCE_DATE_EPOCH is not a number of seconds.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch is None:
        return datetime.now(UTC).replace(microsecond=0)
    try:
        return datetime.fromtimestamp(int(epoch), UTC)
    except (ValueError, OverflowError, OSError):
        raise UserError(f"SOURCE_DATE_EPOCH is {epoch!r}: give seconds since 1970, or unset it") from None


def _software() -> Iterator[dict[str, Any]]:
    commit, changed = code_commit()
    state = NOT_KNOWN if changed is None else changed
    code: dict[str, Any] = {"name": "leam_mm", "uri": f"pkg:pypi/leam_mm@{_version('leam_mm')}"}
    yield code | ({"digest": {"gitCommit": commit}} if commit else {}) | {"annotations": {"modified": state}}
    for library in LIBRARIES:
        yield {"name": library, "uri": f"pkg:pypi/{library.replace('_', '-')}@{_version(library)}"}


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "0"


def _descriptor(one: Ingredient) -> dict[str, Any]:
    annotations = {key: NOT_KNOWN if value is None else value for key, value in one.facts.items()}
    return {"name": one.name, "digest": dict(one.digest)} | ({"annotations": annotations} if annotations else {})
