"""Which shards the data of a run were made from: latents name the shards that were encoded."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from leam_mm.data.shard_index import ShardFolder
from leam_mm.documents.release_facts import StageFacts
from leam_mm.documents.training_content import made_from
from leam_mm.errors import UserError


def add_sources(stage: StageFacts, folders: Sequence[Path]) -> StageFacts:
    """Return a stage with the number of samples and the sources of its data, where their folders are found.

    Args:
        stage: The run.
        folders: Where its data may be; a folder counts only if its content has a Merkle root of the run.
    """
    samples, sources = dict(stage.samples), dict(stage.sources)
    for path in folders:
        folder = _opened(path)
        if folder is None or folder.merkle_root not in stage.data:
            continue
        samples[folder.merkle_root] = folder.samples
        if source := made_from(path):
            sources[folder.merkle_root] = [source]
    return replace(stage, samples=samples, sources=sources)


def data_folders(recorded: Mapping[str, str]) -> list[Path]:
    """Return the folders that a checkpoint names as its data, where they still exist.

    Args:
        recorded: Path or address to Merkle root.
    """
    return [Path(name) for name in recorded if "://" not in name and Path(name).is_dir()]


def _opened(path: Path) -> ShardFolder | None:
    try:
        return ShardFolder(path)
    except (UserError, OSError, ValueError):
        return None
