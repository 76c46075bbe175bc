"""Find the samples of a withdrawal in shard folders and in folders derived from them: keep-lists, latents, embeddings.

A derived folder names the Merkle root of the shards it was made from. If that is the root of a searched folder, now or
before an earlier withdrawal, equal keys are the same samples.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.progress import track

from data_tools.withdrawal.sample_selector import copies_hash, stored_image
from data_tools.withdrawal.shard_withdrawal import (
    Withdrawn,
    earlier_roots,
    link_rest,
    shard_folders,
    staging,
    write_ledger,
)
from leam_mm.data.keep_list import KEEP, PLACE, kept_keys, read_keep_list, write_keep_list
from leam_mm.data.ledger import LEDGER
from leam_mm.data.sample_json import read_sample_json
from leam_mm.data.shard_index import ShardFolder
from leam_mm.data.tombstones import withdrawn_keys
from leam_mm.errors import UserError
from leam_mm.files import bytes_sha256

LINEAGE = {"encoding.json": "encode_latents", "embedding.json": "embed_shards"}


@dataclass(frozen=True)
class Origin:
    """A searched shard folder, from which other folders were derived.

    Args:
        folder: The folder.
        root: Its Merkle root before this withdrawal.
        roots: Its current and earlier Merkle roots.
        keys: Keys of all samples withdrawn now or earlier.
        gone: The samples to withdraw now.
    """

    folder: Path
    root: str
    roots: frozenset[str]
    keys: frozenset[str]
    gone: tuple[Withdrawn, ...]

    @classmethod
    def of(cls, folder: Path, gone: list[Withdrawn]) -> "Origin":
        """Describe a shard folder that was searched."""
        now = [part.merkle_root for _, part in shard_folders(folder)]
        keys = withdrawn_keys(folder) | {sample.key for sample in gone}
        return cls(folder, now[0], frozenset([*now, *earlier_roots(folder)]), frozenset(keys), tuple(gone))

    def match(self, key: str, members: dict[str, bytes]) -> list[str]:
        """Return a reason if a derived sample was made from a withdrawn one."""
        return ["made from the sample"] if key in self.keys else []

    def changes(self, derived: Path) -> bool:
        """Return whether a derived keep-list must be rewritten because the Merkle root of its shards changes."""
        return is_keep_list(derived) and bool(self.gone)


def is_keep_list(folder: Path) -> bool:
    """Return whether a folder holds a keep-list and no shards."""
    return (folder / KEEP).is_file() and not (folder / "manifest.jsonl").is_file()


def origin_of(derived: Path, sources: list[Origin]) -> Origin:
    """Return the searched folder from which a derived folder was made.

    Raises:
        UserError: The derived folder does not name its shards, or was made from others.
    """
    kept = read_keep_list(derived) if is_keep_list(derived) else None
    if kept is not None:
        wanted = kept.merkle_root
    else:
        name = next((name for name in LINEAGE if (derived / name).is_file()), None)
        if name is None:
            raise UserError(f"--derived {derived} has no {KEEP}, {', '.join(LINEAGE)}: search it by --shards instead")
        try:
            wanted = str(json.loads((derived / name).read_text("utf-8"))["shards"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{derived / name} does not name its shards: run {LINEAGE[name]} again") from None
    for source in sources:
        if wanted in source.roots or wanted.partition("+")[0] in source.roots:
            if kept is not None and wanted != source.root:
                raise UserError(f"{derived} keeps samples of {source.folder} as it was before: vet these shards again")
            return source
    raise UserError(f"--derived {derived} was made from {wanted[:12]}, which is none of --shards: leave it out")


def find(folder: Path, matches: Callable[[str, dict[str, bytes]], list[str]]) -> tuple[list[Withdrawn], int]:
    """Find the selected samples of a folder.

    Args:
        folder: Shard folder, keep-list, or the folder above those of the image shapes.
        matches: Returns the reasons why (key, members) is selected; none keeps the sample.

    Returns:
        The selected samples, and the number of all samples. ``pdq`` in their records is None if the image is flat.
    """
    found, total = [], 0
    for name, part in shard_folders(folder):
        total += part.samples
        for number in track(range(len(part.shards)), description=f"search {folder.name}", transient=True):
            with part.open_shard(number) as opened:
                for row, key in enumerate(opened.keys):
                    try:
                        members = opened.members(row)
                        reasons = matches(key, members)
                        record = read_sample_json(members) if reasons else {}
                    except UserError as error:
                        raise UserError(f"{part.tar(number)}: sample {key}: {error}") from None
                    if reasons:
                        record["pdq"] = copies_hash(members)
                        image = stored_image(members)
                        stored = bytes_sha256(image) if image is not None else None
                        shard = part.shards[number].shard
                        found.append(Withdrawn(name, shard, row, key, record, tuple(reasons), stored))
    return found, total


def stage_keep_list(folder: Path, origin: Origin, salt: bytes | None) -> dict[str, Any]:
    """Build the new version of a keep-list, for the staged new version of its shards; nothing is exchanged yet.

    Args:
        folder: Folder of the keep-list.
        origin: Its shards, whose new version is staged already.
        salt: Salt of the hashes that replace addresses and digests in the ledger, or None.

    Returns:
        Its part of the statement.
    """
    before, kept = ShardFolder(folder), read_keep_list(folder)
    assert kept is not None
    shards, after = ShardFolder(origin.folder), ShardFolder(staging(origin.folder) / "new")
    numbers = {entry.shard: number for number, entry in enumerate(after.shards)}
    gone: dict[int, list[int]] = {}
    old_numbers = {entry.shard: number for number, entry in enumerate(shards.shards)}
    for sample in origin.gone:
        gone.setdefault(old_numbers[sample.shard], []).append(sample.row)
    columns: tuple[list[np.ndarray], list[np.ndarray], list[str]] = ([], [], [])
    keys = np.array(kept_keys(folder), dtype=object)
    for number in np.unique(kept.shard):
        at = np.flatnonzero(kept.shard == number)
        removed = np.sort(np.array(gone.get(int(number), []), dtype=np.int32))
        at = at[~np.isin(kept.row[at], removed)]
        if len(at):
            columns[0].append(np.full(len(at), numbers[shards.shards[number].shard], np.int32))
            columns[1].append((kept.row[at] - np.searchsorted(removed, kept.row[at])).astype(np.int32))
            columns[2].extend(keys[at])
    new = staging(folder) / "new"
    shutil.rmtree(staging(folder), ignore_errors=True)
    new.mkdir(parents=True)
    table = pa.table(
        {
            "shard": np.concatenate([np.empty(0, np.int32), *columns[0]]),
            "row": np.concatenate([np.empty(0, np.int32), *columns[1]]),
            "key": pa.array(columns[2], pa.string()),
        }
    )
    digest = write_keep_list(new, kept.shards, after.merkle_root, table)
    written = {Path(KEEP), Path(PLACE)}
    if (folder / LEDGER).is_file():
        write_ledger(folder / LEDGER, new / LEDGER, list(origin.gone), salt)
        written.add(Path(LEDGER))
    link_rest(folder, new, written)
    return {
        "name": folder.name,
        "keep_list_of": shards.merkle_root,
        "merkle_root_before": before.merkle_root,
        "merkle_root_after": f"{after.merkle_root}+keep.{digest}",
        "samples_before": before.samples,
        "samples_after": table.num_rows,
    }
