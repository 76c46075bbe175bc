"""A whole release: encoder, generator, model card, licence, unchanged configs, and the digests of all files.

The folder is flat, so that it is one repository of a hub for every library that loads it. It is written under a
temporary name and renamed at the end, so that a folder under the final name is complete.
"""

import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from leam_mm.captions.hugging_face_captions import HuggingFaceCaptions
from leam_mm.checkpoint import find_checkpoint, load_module
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.denoisers.denoiser import PRXDenoiser, UNetDenoiser
from leam_mm.denoisers.sd3_denoiser import SD3Denoiser
from leam_mm.diffusion.rectified_flow import RectifiedFlow
from leam_mm.diffusion_module import LatentDiffusionModule
from leam_mm.documents.content_file import described_content
from leam_mm.documents.facts_file import facts_record
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.release_facts import TEXT_ENCODER, ReleaseFacts, StageFacts
from leam_mm.documents.training_content import TrainingContent, count_training_content
from leam_mm.documents.write_documents import write_documents
from leam_mm.errors import UserError
from leam_mm.files import atomic_folder, file_sha256, give_default_permissions
from leam_mm.release.card_image import copy_card_image
from leam_mm.release.data_sources import add_sources
from leam_mm.release.diffusers_folder import write_diffusers_folder
from leam_mm.release.encoder_folder import ROOT, Formats, write_encoder
from leam_mm.release.half_precision import HalfPrecision, embedding_differences, write_variants
from leam_mm.release.half_precision_generator import generator_differences
from leam_mm.release.licence_text import check_licence, write_licence
from leam_mm.release.low_rank_folder import has_low_rank, write_low_rank_folder
from leam_mm.release.onnx_folder import check_libraries, write_onnx_folder
from leam_mm.release.provenance import LIBRARIES, release_ingredients, write_provenance
from leam_mm.release.released_average import averaged_generator, check_measured, release_average
from leam_mm.release.released_results import released_metrics, write_results
from leam_mm.release.shard_counts import data_facts
from leam_mm.release.stage_facts import codec_facts, stage_facts, taken_over
from leam_mm.release_record import RELEASE, write_record
from leam_mm.run_lock import beside, run_lock

log = logging.getLogger(__name__)
EVIDENCE_FILE = RELEASE
ONNX = "onnx"  # folder of the networks in ONNX
LOW_RANK = "generator_lora"  # folder of the generator's low-rank additions
MAX_CARD = 1 << 20  # bytes
WEIGHTS = ".safetensors"


def write_release(
    folder: Path,
    name: str,
    licence: str,
    clip: Path | None = None,
    generator: Path | None = None,
    codec: Path | None = None,
    results: Sequence[Path] = (),
    shards: Sequence[Path] = (),
    publisher: PublisherFields | None = None,
    description: Path | None = None,
    onnx: bool = False,
    variants: Sequence[HalfPrecision] = (),
    average: str = "trained",
    check: Callable[[ReleaseFacts, PublisherFields], None] | None = None,
) -> ReleaseFacts:
    """Write a release folder; an older release under that name is replaced.

    Args:
        folder: The release folder.
        name: Name of the release; owner/name if the folder of the encoder will be published on a hub.
        licence: SPDX identifier of the licence of the weights.
        clip: Checkpoint or run folder of the encoder; None for a generator alone, which brings its own text encoder.
        generator: Checkpoint or run folder of the generator, or None for an encoder alone.
        codec: Checkpoint or run folder of the generator's codec, if it was moved since training.
        results: results.jsonl files of evaluate.py, or their folders.
        shards: Shard folders of the training, to count samples and licences.
        publisher: What only the publisher knows, see ``read_publisher``; None leaves it open.
        description: Output folder of data_tools/describe_dataset.py, whose counts of the shards are taken over; None
            counts the shards.
        onnx: Write the networks as ONNX files, too.
        variants: Precisions of further files of weights, for transformers and diffusers.
        average: Which weights to release, see ``BuildOptions``.
        check: Called with the content of the documents before they are written; raises to refuse the release.

    Returns:
        The content of the model card.

    Raises:
        UserError: Something is missing or does not belong together; nothing is left behind.
    """
    if clip is None and generator is None:
        raise UserError("a release needs a model: give --clip, --generator or both")
    publisher = publisher or PublisherFields()
    check_licence(licence)
    if publisher.licence is not None and publisher.licence != licence:
        raise UserError(
            f"--licence {licence} and licence: {publisher.licence} of release.yaml contradict each other: drop one"
        )
    check_folder(folder)
    if onnx:
        check_libraries()
    with (
        run_lock(beside(folder), folder),
        averaged_generator(generator, average, folder) as generator,
        atomic_folder(folder) as temporary,
    ):
        (temporary / "configs").mkdir()
        weights: dict[str, str] = {}
        stages, towers, low_rank, formats, encoder = [], None, False, Formats(), None
        differences: Mapping[str, Mapping[str, float | str]] = {variant: {} for variant in variants}
        if clip is not None:
            encoder = load_module(clip, ContrastiveModule)
            weights["clip"] = release_average(encoder, clip, average)
            formats = write_encoder(encoder, temporary, name)
            differences = embedding_differences(encoder, variants)
            towers = encoder.ema_encoder()
            stages.append(stage_facts("clip", clip, towers, temporary))
        module = load_generator(generator, clip, codec) if generator is not None else None
        if generator is not None and module is not None:
            weights["generator"] = release_average(module, generator, average)
            write_diffusers_folder(module, temporary)
            formats.folders["diffusers"] = ROOT
            denoiser = module.ema_denoiser()
            if low_rank := has_low_rank(denoiser):
                write_low_rank_folder(denoiser, temporary / LOW_RANK)
            # A caption tower is another one than that of the encoder.
            own = [denoiser.plain_model(), *filter(None, [denoiser.caption_tower])]
            stages.append(stage_facts("generator", generator, nn.ModuleList(own), temporary))
            stages.append(codec_facts(Path(str(module.frozen.paths["codec"])), module.codec, temporary))
            captions: Any = module.caption_encoder
            if isinstance(captions, HuggingFaceCaptions):
                folder_of_text = Path(str(module.frozen.paths["clip"]))
                stages.append(taken_over(TEXT_ENCODER, folder_of_text, captions.model, captions.sha256))
        exported = write_onnx_folder(temporary / ONNX, encoder, module) if onnx else []
        if any(record.files for record in exported):
            formats.folders["onnx"] = ONNX
        formats.left_out |= {f"onnx/{record.name}": record.reason for record in exported if not record.files}
        write_variants(temporary, variants)
        if module is not None:
            drawn = generator_differences(module, variants)
            differences = {variant: {**differences[variant], **drawn[variant]} for variant in variants}
        stages = [replace(add_sources(stage, shards), weights=weights.get(stage.kind, "")) for stage in stages]
        metrics = [metric for file in results for metric in released_metrics(file, stages)]
        check_measured(weights, metrics)
        write_results(metrics, temporary)
        write_licence(temporary, licence, publisher.licence_link)
        images = copy_card_image(results, stages, temporary)
        facts = ReleaseFacts(
            name,
            licence,
            towers.image_size if towers is not None else None,
            captions_length(module) if towers is None else towers.context_length,
            stages,
            data=[data_facts(path, stages) for path in shards],
            metrics=metrics,
            generated_size=module.latent_size * module.codec.downscale if module is not None else None,
            low_rank=low_rank,
            straight_paths=module is None or isinstance(module.process, RectifiedFlow),
            images=images,
            files={name: file_sha256(temporary / name) for name in released_names(temporary)},
            content=_content(shards, description, stages),
            denoiser=network_kind(module),
            formats=formats.folders,
            left_out=formats.left_out,
            onnx=[asdict(record) for record in exported],
            variants=differences,
        )
        if check is not None:
            check(facts, publisher)
        write_documents(facts, publisher, temporary)
        give_default_permissions(temporary)
        write_evidence(facts, temporary, publisher.version)
    return facts


def _content(shards: Sequence[Path], description: Path | None, stages: Sequence[StageFacts]) -> TrainingContent | None:
    """Return the counts of the training data: taken over, or counted."""
    if description is None:
        return count_training_content(shards)
    return described_content(shards, description, {root for stage in stages for root in stage.origins})


def captions_length(module: LatentDiffusionModule | None) -> int:
    """Return the most tokens of a caption that a generator reads, begin and end included."""
    assert module is not None
    captions: Any = module.caption_encoder
    return captions.context_length if isinstance(captions, HuggingFaceCaptions) else captions.encoder.context_length


def network_kind(module: LatentDiffusionModule | None) -> str:
    """Return the kind of a generator's network, on which the lines depend that load it in diffusers."""
    kinds = (UNetDenoiser, SD3Denoiser)
    found = [kind.__name__ for kind in kinds if module is not None and isinstance(module.denoiser, kind)]
    return found[0] if found else PRXDenoiser.__name__


def check_folder(folder: Path) -> None:
    """Refuse to replace anything but a release or an empty folder."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / EVIDENCE_FILE).is_file():
        raise UserError(f"{folder} holds files that are no release (no {EVIDENCE_FILE}): give --output another folder")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give --output another folder")


def load_generator(path: Path, clip: Path | None, codec: Path | None) -> LatentDiffusionModule:
    """Load the generator; frozen parts that were moved are identified by their digests."""
    module = load_module(path, LatentDiffusionModule)
    recorded = module.frozen.record()
    if codec is not None:
        module.frozen.paths["codec"] = str(codec)
    if clip is None:
        return module
    if recorded.get("clip", {}).get("sha256") == file_sha256(find_checkpoint(clip)):
        module.frozen.paths["clip"] = str(clip)
    else:
        log.warning("the generator was trained with another encoder than --clip; text_encoder/ is its own")
    return module


def released_names(folder: Path) -> list[str]:
    """Return the paths of all files in a release folder, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def write_evidence(facts: ReleaseFacts, folder: Path, version_name: str | None = None) -> None:
    """Write provenance.json and, last of all, leam_mm_release.json: digests, facts about data, energy and versions.

    Args:
        facts: The content of the documents.
        folder: The release; all other files are complete.
        version_name: Version of the release, if its publisher gave it one.
    """
    # Weights are large; nothing has written to them since the documents named their digests.
    known = {name: digest for name, digest in facts.files.items() if name.endswith(WEIGHTS)}
    digests = {name: known.get(name) or file_sha256(folder / name) for name in released_names(folder)}
    parts = [stage.kind for stage in facts.stages]
    options = {"name": facts.name, "licence": facts.licence, "parts": parts, "shards": [d.name for d in facts.data]}
    digests |= write_provenance(folder, digests, options, release_ingredients(facts))
    evidence = {
        **facts_record(facts),
        "version": version_name,
        "versions": {"python": platform.python_version(), **{library: version(library) for library in LIBRARIES}},
    }
    write_record(folder, digests, evidence)
