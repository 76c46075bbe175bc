"""A whole release: encoder, generator, model card, the configs verbatim, and the digests of all of it.

It is written beside its place and renamed at the end, so that a folder under the final name is complete.
"""

import json
import logging
import os
import platform
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from torch import nn

from leam_mm.checkpoint import EVIDENCE, find_checkpoint, load_module, read_checkpoint
from leam_mm.codecs.pretrained_codec import codec_file
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.data.shard_index import ShardFolder, read_samples
from leam_mm.diffusion.rectified_flow import RectifiedFlow
from leam_mm.diffusion_module import LatentDiffusionModule
from leam_mm.errors import UserError
from leam_mm.evaluators.results import read_results
from leam_mm.files import file_sha256
from leam_mm.release.diffusers_folder import write_diffusers_folder
from leam_mm.release.low_rank_folder import has_low_rank, write_low_rank_folder
from leam_mm.release.model_card import DataFacts, ReleaseFacts, StageFacts, model_card
from leam_mm.release.open_clip_folder import write_open_clip_folder

log = logging.getLogger(__name__)
EVIDENCE_FILE = "leam_mm_release.json"
MAX_CARD = 1 << 20  # bytes
LIBRARIES = ("torch", "open_clip_torch", "diffusers", "transformers", "safetensors", "lightning")


def write_release(
    folder: Path,
    name: str,
    licence: str,
    clip: Path,
    generator: Path | None = None,
    codec: Path | None = None,
    results: Sequence[Path] = (),
    shards: Sequence[Path] = (),
) -> ReleaseFacts:
    """Write a release folder; an older release under that name is replaced.

    Args:
        folder: Where it goes.
        name: Of the release; owner/name if the folder of the encoder will be published on a hub.
        licence: Of the weights, as SPDX writes it.
        clip: Checkpoint or run folder of the encoder.
        generator: Checkpoint or run folder of the generator, or None.
        codec: Checkpoint or run folder of the generator's codec, where it lies elsewhere than in training.
        results: results.jsonl files of evaluate.py, or their folders.
        shards: Shard folders of the training, to count samples and licences.

    Raises:
        UserError: Something is missing or does not belong together; nothing is left behind.
    """
    check_place(folder)
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "configs").mkdir(parents=True)
    try:
        encoder, low_rank = load_module(clip, ContrastiveModule), False
        write_open_clip_folder(encoder, temporary / "clip", name)
        stages = [stage_facts("clip", clip, encoder.ema_encoder(), temporary)]
        drawer = load_generator(generator, clip, codec) if generator is not None else None
        if generator is not None and drawer is not None:
            write_diffusers_folder(drawer, temporary / "generator")
            denoiser = drawer.ema_denoiser()
            if low_rank := has_low_rank(denoiser):
                write_low_rank_folder(denoiser, temporary / "low_rank")
            own = [denoiser.plain_model(), *filter(None, [denoiser.caption_tower])]  # clip/ has another text tower then
            stages.append(stage_facts("generator", generator, nn.ModuleList(own), temporary))
            stages.append(codec_facts(Path(str(drawer.frozen.paths["codec"])), drawer.codec, temporary))
        metrics = [metric for file in results for metric in released_metrics(file, stages)]
        data = [data_facts(path, stages) for path in shards]
        towers = encoder.ema_encoder()
        size = drawer.latent_size * drawer.codec.downscale if drawer is not None else None
        straight = drawer is None or isinstance(drawer.process, RectifiedFlow)
        facts = ReleaseFacts(
            name, licence, towers.image_size, towers.context_length, stages, data, metrics, size, low_rank, straight
        )
        (temporary / "README.md").write_text(model_card(facts), encoding="utf-8")
        write_evidence(facts, temporary)
        put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return facts


def check_place(folder: Path) -> None:
    """Only a release of ours, or nothing, may stand where the new one goes."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / EVIDENCE_FILE).is_file():
        raise UserError(f"{folder} holds files that are no release (no {EVIDENCE_FILE}): give --output another folder")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give --output another folder")


def put_in_place(temporary: Path, folder: Path) -> None:
    """Give the finished folder its name; the older release goes only when the new one stands."""
    old = folder.with_name(f"{folder.name}.old-{os.getpid()}")
    if folder.exists():
        os.rename(folder, old)
    os.rename(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_generator(path: Path, clip: Path, codec: Path | None) -> LatentDiffusionModule:
    """Open the generator; its frozen parts may have moved, and are known again by their digests."""
    module = load_module(path, LatentDiffusionModule)
    recorded = module.frozen.record()
    if codec is not None:
        module.frozen.paths["codec"] = str(codec)
    if recorded.get("clip", {}).get("sha256") == file_sha256(find_checkpoint(clip)):
        module.frozen.paths["clip"] = str(clip)
    else:
        log.warning("the generator was trained with another encoder than --clip; its own goes into generator/")
    return module


def stage_facts(kind: str, path: Path, released: nn.Module, temporary: Path) -> StageFacts:
    """What the checkpoint tells about one training; its config is copied verbatim into the release."""
    checkpoint = read_checkpoint(path)
    evidence = checkpoint[EVIDENCE]
    (temporary / "configs" / f"{kind}.yaml").write_text(evidence["config"], encoding="utf-8")
    return StageFacts(
        kind=kind,
        parameters=sum(parameter.numel() for parameter in released.parameters()),
        samples_seen=evidence.get("samples_seen"),
        checkpoint_sha256=file_sha256(find_checkpoint(path)),
        data={root: Path(name).name for name, root in evidence.get("data", {}).items()},
        energy=checkpoint.get("callbacks", {}).get("EnergyRecord"),
        versions=evidence.get("versions", {}),
        base=base_facts(evidence),
    )


def codec_facts(path: Path, released: nn.Module, temporary: Path) -> StageFacts:
    """The codec's training; or, where it is a folder of diffusers, whose weights these are and what they say of it."""
    if not (path / "config.json").is_file():
        return stage_facts("codec", path, released, temporary)
    digest = file_sha256(codec_file(path))
    base = {"weights": "/".join(path.resolve().parts[-2:]), "sha256": digest, **stated_licence(path)}
    parameters = sum(parameter.numel() for parameter in released.parameters())
    return StageFacts("codec", parameters, None, digest, {}, None, {}, base)


def stated_licence(folder: Path) -> dict[str, str]:
    """The licence in the front matter of a folder's model card, or of the pipeline's around it, as the Hub reads it."""
    around = [folder.parent] if (folder.parent / "model_index.json").is_file() else []
    for card in (place / "README.md" for place in (folder, *around)):
        if not card.is_file() or card.stat().st_size > MAX_CARD:
            continue
        begin, _, rest = card.read_text(encoding="utf-8", errors="replace").partition("---")
        try:
            front = yaml.safe_load(rest.partition("\n---")[0]) if not begin.strip() else None
        except (yaml.YAMLError, ValueError, RecursionError):
            log.warning("the front matter of %s cannot be read: the licence of these weights stays unknown", card)
            continue
        told = front if isinstance(front, dict) else {}
        for licence in (told.get("license_name") if told.get("license") == "other" else None, told.get("license")):
            if isinstance(licence, str):
                return {"licence": licence[:200]}
    return {}


def base_facts(evidence: dict[str, Any]) -> dict[str, str]:
    """What a training started from: named without the place on this machine, as a hub or a release names it."""
    known = evidence.get("pretrained") or {}
    base = {key: str(value) for key, value in known.items() if key not in ("config", "caption_tower")}
    if "weights" in base and Path(base["weights"]).is_absolute():
        base["weights"] = "/".join(Path(base["weights"]).parts[-2:])
    return base


def data_facts(path: Path, stages: Sequence[StageFacts]) -> DataFacts:
    """Count a shard folder, once it is sure that the release was trained on it."""
    folder = ShardFolder(path)
    root = folder.merkle_root
    if not any(root in stage.data for stage in stages):
        raise UserError(
            f"no part of this release was trained on {path} (Merkle root {root[:12]}): leave it out of --shards"
        )
    licences, legal_bases = (count_column(folder, column) for column in ("licence", "legal_basis"))
    return DataFacts(path.name, root, folder.samples, licences, legal_bases)


def count_column(folder: ShardFolder, column: str) -> dict[str, int]:
    """Samples by the value of one field: from the ledger where it has that of every sample, else from the samples."""
    ledger = folder.path / "ledger.parquet"
    try:
        names = set(pq.read_schema(ledger).names) if ledger.is_file() else set()
        if column in names:
            table = pq.read_table(ledger, columns=sorted({column, "kept"} & names))
            kept = table.filter(table["kept"]) if "kept" in names else table  # it tells the fate of every link
            if kept.num_rows == folder.samples and not kept[column].null_count:
                return dict(Counter(str(value) for value in kept[column].to_pylist()))
        records = (json.loads(members["json"]) for _, members in read_samples(folder.path))
        return dict(Counter(str(record.get(column) or "") for record in records))
    except (pa.ArrowInvalid, OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"{folder.path}: its {column} column cannot be counted ({error!r}): copy the folder again"
        ) from None


def released_metrics(path: Path, stages: Sequence[StageFacts]) -> list[dict[str, Any]]:
    """The newest line of each metric in a results.jsonl, once it is sure that it was measured on these checkpoints.

    Args:
        path: The file, or the folder that holds it.
        stages: Of the release; metrics of a network that is not released are left out.
    """
    digests = {stage.kind: stage.checkpoint_sha256 for stage in stages}
    metrics, left_out = [], 0
    if not path.exists():
        raise UserError(f"{path} is missing: give the results.jsonl of evaluate.py, or leave out --results")
    for name, row in read_results(path if path.is_dir() else path.parent).items():
        for key in ("value", "low", "high"):
            if not isinstance(row.get(key), int | float | None):
                raise UserError(f"{path}: {key} of {name!r} is {row[key]!r}, no number: evaluate again")
        tested = {kind: entry["sha256"] for kind, entry in (row.get("checkpoints") or {}).items() if entry}
        if not tested.keys() <= digests.keys():
            left_out += 1
            continue
        for kind, digest in tested.items():
            if digest != digests[kind]:
                raise UserError(
                    f"{path}: {name!r} was measured on another {kind} checkpoint (sha256 {digest[:12]}, released "
                    f"{digests[kind][:12]}): evaluate the released one"
                )
        metrics.append(row)
    if left_out:
        log.warning("%d metrics of %s belong to networks that are not released; they are left out", left_out, path)
    return metrics


def write_evidence(facts: ReleaseFacts, folder: Path) -> None:
    """Write leam_mm_release.json: digests of all other files, and what is known about data, energy and versions."""
    files = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        files[file.relative_to(folder).as_posix()] = {"sha256": file_sha256(file), "bytes": file.stat().st_size}
    evidence = {
        "format": "leam_mm release 1",
        "name": facts.name,
        "licence": facts.licence,
        "files": files,
        "stages": {stage.kind: asdict(stage) for stage in facts.stages},
        "data": [asdict(entry) for entry in facts.data],
        "versions": {"python": platform.python_version(), **{library: version(library) for library in LIBRARIES}},
    }
    text = json.dumps(evidence, indent=2, ensure_ascii=False)
    (folder / EVIDENCE_FILE).write_text(text + "\n", encoding="utf-8")
