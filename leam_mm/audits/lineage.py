"""Lineage of trained models: config, code, data roots and parents that a checkpoint or a release records."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from leam_mm.checkpoint import find_checkpoint, is_run, read_evidence
from leam_mm.data.shard_index import ShardFolder
from leam_mm.documents.facts_file import EVIDENCE_FILE, read_facts
from leam_mm.documents.training_content import made_from
from leam_mm.errors import UserError
from leam_mm.files import bytes_sha256, file_sha256


@dataclass(frozen=True)
class Lineage:
    """What a model says about its training.

    Args:
        kind: clip, codec or generator.
        sha256: Digest of its checkpoint.
        config_sha256: Digest of the resolved config; None where there is none.
        commit: Commit of the code; None where it is not recorded.
        samples_seen: Samples seen; None where it is not recorded.
        roots: Merkle root of each folder of training data, by the name of the folder at that time.
        parents: SHA-256 of the models that it was built on, by their part: clip, codec, pretrained.
    """

    kind: str
    sha256: str
    config_sha256: str | None
    commit: str | None
    samples_seen: int | None
    roots: Mapping[str, str]
    parents: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold."""
        return asdict(self) | {"roots": dict(self.roots), "parents": dict(self.parents)}


def model_lineages(kind: str, model: Any) -> list[Lineage]:
    """Return what a model records; empty for weights of others, which record nothing.

    Args:
        kind: clip, codec or generator.
        model: Run, checkpoint or release, or a module with the evidence of the one that it was loaded from.

    Raises:
        UserError: Its file is damaged.
    """
    loaded = getattr(model, "checkpoint_evidence", None)
    path = Path(str(loaded.get("path") if isinstance(loaded, dict) else model))
    if is_run(path):
        return [_of_run(kind, path)]
    if (path / EVIDENCE_FILE).is_file():
        return [one for one in release_lineages(path) if one.kind == kind]
    return []


def release_lineages(folder: Path) -> list[Lineage]:
    """Return what a release records about each of its parts that a run of this project trained."""
    found = []
    for stage in read_facts(folder).stages:
        if stage.trained:
            config = folder / "configs" / f"{stage.kind}.yaml"
            digest = file_sha256(config) if config.is_file() else None
            parents = {"pretrained": stage.base["sha256"]} if stage.base.get("sha256") else {}
            found.append(
                Lineage(
                    stage.kind, stage.checkpoint_sha256, digest, None, stage.samples_seen,
                    {name: root for root, name in stage.data.items()}, parents,
                )
            )  # fmt: skip
    return found


def _of_run(kind: str, path: Path) -> Lineage:
    file = find_checkpoint(path)
    evidence = read_evidence(file)
    parts = {**(evidence.get("frozen") or {}), "pretrained": evidence.get("pretrained")}
    parents = {name: str(part["sha256"]) for name, part in parts.items() if isinstance(part, dict) and "sha256" in part}
    config, code = evidence.get("config"), evidence.get("code")
    return Lineage(
        kind,
        file_sha256(file),
        bytes_sha256(config.encode()) if config else None,
        str(code["commit"]) if isinstance(code, dict) and code.get("commit") else None,
        evidence.get("samples_seen"),
        {str(name): str(root) for name, root in (evidence.get("data") or {}).items()},
        parents,
    )


def lineage_faults(models: list[Lineage], folders: list[ShardFolder]) -> list[str]:
    """Return what does not fit together, one line each.

    Args:
        models: The models under audit.
        folders: The folders of training data that were recomputed.
    """
    known = {folder.merkle_root for folder in folders}
    digests = {model.kind: model.sha256 for model in models}
    return [fault for model in models for fault in _faults(model, known, digests)]


def _faults(model: Lineage, known: set[str], digests: Mapping[str, str]) -> Iterator[str]:
    if model.config_sha256 is None:
        yield f"{model.kind}: no config"
    if not model.roots:
        yield f"{model.kind}: no Merkle root of its data"
    for name, root in model.roots.items():
        if root not in known and not _is_derived(name, root, known):
            yield f"{model.kind}: its data {Path(name).name} has the root {root[:12]}, which no given folder has"
    for part in model.parents.keys() & digests.keys():
        if model.parents[part] != digests[part]:
            yield f"{model.kind}: was built on the {part} {model.parents[part][:12]}, not on {digests[part][:12]}"


def _is_derived(name: str, root: str, known: set[str]) -> bool:
    """Return whether latents that are still in their place have this root and were made from a known folder."""
    try:
        folder = ShardFolder(name)
        return folder.merkle_root == root and made_from(folder.path) in known
    except (UserError, OSError, ValueError):
        return False
