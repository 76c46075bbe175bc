"""Find the checkpoints and releases whose training data held certain samples, and whether they were drawn.

A checkpoint names the Merkle roots of its data and the number of samples it saw, and the order of samples is a pure
function of (manifest, seed, n). From these follows not only whether the data contained a sample, but how often training
drew it. A model built on an affected one (a frozen encoder or codec, pretrained weights) is affected as well.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leam_mm.checkpoint import EVIDENCE, checkpoint_config, read_evidence
from leam_mm.checkpoint_generations import LAST
from leam_mm.data.sample_plan import SamplePlan, Source
from leam_mm.data.shard_index import ShardFolder
from leam_mm.errors import UserError
from leam_mm.files import file_sha256

RELEASE = "leam_mm_release.json"
MOST_STEPS = 3_000_000  # samples of a mixture or of buckets, whose order has no inverse and is replayed
MOST_EPOCHS = 1000


@dataclass(frozen=True)
class Position:
    """Position of a sample before its withdrawal.

    Args:
        root: Merkle root of its shard folder.
        path: The folder.
        shard: Number of the shard.
        row: Row in the shard.
    """

    root: str
    path: Path
    shard: int
    row: int


@dataclass
class Model:
    """A checkpoint or release as its own evidence describes it.

    Args:
        name: Path below the searched folder.
        kind: ``checkpoint`` or ``release``.
        sha256: Digests of its checkpoints.
        roots: Merkle roots of its training data, by the name of the folder at that time.
        samples_seen: Samples seen in training, or None if not recorded.
        built_on: Digests of the models it was built on.
        config: Resolved config of the run; empty for a release.
    """

    name: str
    kind: str
    sha256: list[str]
    roots: dict[str, str]
    samples_seen: int | None
    built_on: list[str]
    config: dict[str, Any] = field(default_factory=dict, repr=False)


def models_below(folder: Path) -> tuple[list[Model], list[str]]:
    """Return all checkpoints and releases below a folder, and the names of those that cannot be read."""
    if not folder.is_dir():
        raise UserError(f"--runs {folder} does not exist: give the folder that holds the runs and releases")
    models, unreadable = [], []
    for path in [*_checkpoint_files(folder), *sorted(folder.rglob(RELEASE))]:
        name = path.relative_to(folder).as_posix()
        try:
            models.append(_release(path, name) if path.name == RELEASE else _checkpoint(path, name))
        except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError):
            unreadable.append(name)
    return models, unreadable


def _checkpoint_files(folder: Path) -> list[Path]:
    """Return the checkpoints below a folder, each once: last.ckpt is a second name of a run's newest generation."""
    seen: dict[tuple[int, int], Path] = {}
    files = [file for file in folder.rglob("*.ckpt") if file.is_file()]
    for file in sorted(files, key=lambda file: (file.name != LAST, file)):
        seen.setdefault((file.stat().st_dev, file.stat().st_ino), file)
    return sorted(seen.values())


def _checkpoint(path: Path, name: str) -> Model:
    evidence = read_evidence(path)
    config = checkpoint_config({EVIDENCE: evidence})
    built_on = [str(part["sha256"]) for part in _parts(evidence) if part.get("sha256")]
    roots = {str(name): str(root) for name, root in evidence["data"].items()}
    return Model(name, "checkpoint", [file_sha256(path)], roots, evidence.get("samples_seen"), built_on, config)


def _release(path: Path, name: str) -> Model:
    stages = json.loads(path.read_text(encoding="utf-8"))["stages"].values()
    roots = {str(label): str(root) for stage in stages for root, label in stage["data"].items()}
    built_on = [str(stage["base"]["sha256"]) for stage in stages if (stage.get("base") or {}).get("sha256")]
    return Model(name, "release", [str(stage["checkpoint_sha256"]) for stage in stages], roots, None, built_on)


def _parts(evidence: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Yield the descriptions of the models that a run used: frozen parts, and the weights it started from."""
    found = [*(evidence.get("frozen") or {}).values(), evidence.get("pretrained")]
    return [part for part in found if isinstance(part, dict)]


def affected(models: list[Model], positions: list[Position], earlier: set[str]) -> list[dict[str, Any]]:
    """Describe the models that were trained on the samples, or built on a model that was.

    Args:
        models: Models from ``models_below``.
        positions: Positions of the samples in every folder that holds them.
        earlier: Merkle roots of earlier states of those folders, in which the positions are unknown.

    Returns:
        For each affected model: name, kind, sha256, data (roots that held the samples), samples_seen, and ``drawn``:
        ``yes`` with the number of times and the first index, ``no``, or ``not known`` with the reason.
    """
    by_root: dict[str, list[Position]] = {}
    for position in positions:
        by_root.setdefault(position.root, []).append(position)
    touched: dict[str, dict[str, Any]] = {}
    tainted: set[str] = set()
    for model in models:
        roots = sorted(set(model.roots.values()) & (set(by_root) | earlier))
        if roots:
            touched[model.name] = _entry(model, roots) | _drawn(model, by_root, earlier)
            tainted |= set(model.sha256)
    grown = True
    while grown:  # transitively: a generator built on an encoder, a fine-tuned version of it, a release of that
        grown = False
        for model in models:
            shared = tainted & {*model.built_on, *model.sha256}
            if shared and model.name not in touched:
                why = {"drawn": "not known", "reason": "built on an affected model", "built_on": sorted(shared)}
                touched[model.name] = _entry(model, []) | why
                tainted |= set(model.sha256)
                grown = True
    return [touched[name] for name in sorted(touched)]


def _entry(model: Model, roots: list[str]) -> dict[str, Any]:
    names = {"name": model.name, "kind": model.kind, "sha256": model.sha256}
    return names | {"data": roots, "samples_seen": model.samples_seen}


def _drawn(model: Model, by_root: dict[str, list[Position]], earlier: set[str]) -> dict[str, Any]:
    """Return how often training drew the samples before the checkpoint was written."""
    if model.kind == "release":
        return {"drawn": "not known", "reason": "a release tells what its data contained; see its checkpoints"}
    if set(model.roots.values()) & earlier - set(by_root):
        return {"drawn": "not known", "reason": "trained on an earlier state, whose order is not kept"}
    if model.samples_seen is None:
        return {"drawn": "not known", "reason": "the checkpoint does not say how many samples it saw"}
    try:
        plan, wanted = _plan(model, by_root)
        times = _count(plan, wanted, model.samples_seen)
    except UserError as error:
        return {"drawn": "not known", "reason": str(error)}
    drawn = [times[key] for key in wanted if key in times]
    answer = {"drawn": "yes" if drawn else "no", "samples_drawn": len(drawn), "samples_asked": len(wanted)}
    if drawn:
        answer |= {"times": sum(count for count, _ in drawn), "first": min(first for _, first in drawn)}
    return answer


def _plan(model: Model, by_root: dict[str, list[Position]]) -> tuple[SamplePlan, set[tuple[int, int, int]]]:
    """Return the order of samples in the run, and the searched samples as (folder, shard, row) of it."""
    settings = (model.config.get("data") or {}).get("init_args") or {}
    train, seed = settings.get("train"), settings.get("seed")
    if train is None or not isinstance(seed, int):
        raise UserError("its config names no training data or no seed")
    given = [{"path": train}] if isinstance(train, str) else [each.get("init_args") or each for each in train]
    if len(given) > 1 and (settings.get("captions") or {}).get("language_balance"):
        raise UserError("its mixture was balanced by languages, which is not followed here")
    sources = [Source(_where(str(each["path"]), model, by_root), float(each.get("weight") or 1.0)) for each in given]
    accumulated = int((model.config.get("trainer") or {}).get("accumulate_grad_batches") or 1)
    runs = settings.get("bucket_batch") or int(settings["batch_size"]) // accumulated
    plan = SamplePlan(sources, seed, True, None, runs)
    numbers = {reader.folder.merkle_root: number for number, reader in enumerate(plan.readers)}
    if set(numbers) != set(model.roots.values()):
        raise UserError("the folders that its config names hold other data now")
    found = [each for root, positions in by_root.items() if root in numbers for each in positions]
    return plan, {(numbers[each.root], each.shard, each.row) for each in found}


def _where(path: str, model: Model, by_root: dict[str, list[Position]]) -> Path:
    """Return the current path of a run's data folder: its recorded path, or a searched folder with the same root."""
    wanted = {root for name, root in model.roots.items() if name == path or name.startswith(path.rstrip("/") + "/")}
    for root in wanted:
        for found in by_root.get(root, []):
            return found.path if model.roots.get(path) == root else found.path.parent
    try:
        if ShardFolder(path).merkle_root in wanted:
            return Path(path)
    except UserError:
        pass
    raise UserError(f"its data {Path(path).name} is no longer where it was")


def _count(plan: SamplePlan, wanted: set[tuple[int, int, int]], seen: int) -> dict[tuple[int, int, int], list[int]]:
    """Return, for each sample among the first ``seen``, how often it occurs and its first index."""
    times: dict[tuple[int, int, int], list[int]] = {}
    if len(plan.readers) == 1 and plan.buckets is None:
        order = plan.orders[0]
        epochs = -(-seen // order.samples)
        if epochs > MOST_EPOCHS:
            raise UserError(f"{epochs} epochs are more than are walked here ({MOST_EPOCHS})")
        for epoch in range(epochs):
            for position in wanted:
                index = order.index_of(epoch, position[1], position[2])
                if index < seen:
                    times.setdefault(position, [0, index])[0] += 1
        return times
    if seen > MOST_STEPS:
        raise UserError(f"{seen} samples of a mixture are more than are walked here ({MOST_STEPS})")
    for index in range(seen):
        position = plan.locate(index)
        if position in wanted:
            times.setdefault(position, [0, index])[0] += 1
    return times
