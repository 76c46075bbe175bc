"""Checks of a recipe before its job is submitted: batch size, shards, and models that compute nodes cannot download."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from leam_mm.data.shard_index import ShardFolder
from leam_mm.errors import UserError, one_line
from leam_mm.launch.job import Job
from leam_mm.launch.preflight import Finding
from leam_mm.launch.resolved_recipe import ResolvedRecipe

NAME_TAG = re.compile(r"[\w.-]+:[\w.-]+")  # of open_clip
HUB_NAME = re.compile(r"(?:hf-hub:)?[\w.-]+/[\w.-]+")


def check_batch(recipe: ResolvedRecipe, job: Job) -> Iterator[Finding]:
    """Check that the tasks share the batch evenly."""
    size, tasks = recipe.batch_size, job.nodes * job.tasks_per_node
    parts = tasks * int(recipe.at("trainer.accumulate_grad_batches") or 1)
    if not isinstance(size, int):
        yield Finding("batch", "not checked", "the recipe has no data.init_args.batch_size")
    elif size % parts:
        fitting = [nodes for nodes in range(1, job.nodes + 1) if size % (parts // job.nodes * nodes) == 0]
        fix = f"give --nodes {fitting[-1]}" if fitting else f"give a batch size that is a multiple of {parts}"
        yield Finding("batch", "failed", f"data.init_args.batch_size {size} is no multiple of {parts} shares: {fix}")
    else:
        yield Finding("batch", "ok", f"{size:,} samples, {size // parts:,} for each task")


def check_shards(recipe: ResolvedRecipe) -> Iterator[Finding]:
    """Count the shards by their manifests and look whether each tar has the size written there."""
    for key, path in recipe.shard_folders():
        if "://" in path:
            yield Finding("shards", "not checked", f"{key}: {path} is remote")
            continue
        try:
            shards, samples = _counted(recipe.directory / path)
        except UserError as error:
            yield Finding("shards", "failed", f"{key}: {one_line(error)}")
        else:
            yield Finding("shards", "ok", f"{key}: {path} has {samples:,} samples in {shards:,} shards")


def _counted(path: Path) -> tuple[int, int]:
    """Return the shards and samples of a folder, or of its buckets."""
    from leam_mm.data.bucket_order import read_buckets  # imports torch

    if not path.is_dir():
        raise UserError(f"{path} does not exist: make the shards first, or correct the path")
    buckets = read_buckets(path)
    if buckets is not None:
        counts = [_counted(Path(bucket.path)) for bucket in buckets]
        return sum(shards for shards, _ in counts), sum(samples for _, samples in counts)
    folder = ShardFolder(path)
    for number, entry in enumerate(folder.shards):
        name = folder.shard_name(number)
        if "://" in name:
            continue
        try:
            size = os.stat(name).st_size
        except OSError as error:
            raise UserError(f"{name} cannot be read ({error.strerror}): copy it again") from None
        if size != entry.bytes:
            raise UserError(f"{name} has {size} bytes, its manifest says {entry.bytes}: copy it again")
    return len(folder.shards), folder.samples


def check_models(recipe: ResolvedRecipe) -> Iterator[Finding]:
    """Check that tokenizers, encoders and codecs are on disk or in the local cache: compute nodes download nothing."""
    shards = {path for _, path in recipe.shard_folders()}
    texts = [(key, text) for key, text in recipe.inputs() if text not in shards and "://" not in text]
    faults = [f"{key}: {fault}" for key, text in texts if (fault := _missing(recipe.directory / text, text))]
    for fault in faults:
        yield Finding("models", "failed", fault)
    if not faults:
        yield Finding("models", "ok", f"{len(texts)} paths and names are on disk or in the local cache")


def _missing(path: Path, text: str) -> str | None:
    """Return why a path or the name of a published model cannot be opened offline; None if it can."""
    if path.exists():
        return None
    if NAME_TAG.fullmatch(text):
        from leam_mm.encoders.pretrained_encoder import find_weights  # imports torch

        try:
            find_weights(text, None)
        except UserError as error:
            return one_line(error)
        return None
    if "/" not in text:
        return None
    if not HUB_NAME.fullmatch(text):
        return f"{text} does not exist: correct the path, or finish the run that makes it"
    from huggingface_hub.constants import HF_HUB_CACHE  # a second of imports

    kept = Path(HF_HUB_CACHE) / f"models--{text.removeprefix('hf-hub:').replace('/', '--')}" / "snapshots"
    if any(kept.glob("*/*")):
        return None
    return (
        f"{text} does not exist, and {HF_HUB_CACHE} holds no model of that name: correct the path, finish the run that "
        "makes it, or download the model there while online"
    )
