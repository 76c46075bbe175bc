"""Take samples out of a shard folder: only their shards are rewritten, and the folder is exchanged in one step.

A new folder is built beside the old one, with hard links to every unchanged file; then the two swap names. A kill at
any time leaves either the old folder or the new one: ``finish_withdrawal`` completes or removes what a killed run left.
The bytes of the remaining samples, tar headers included, are copied unchanged. A tar that others made is rewritten in
our form if it lies in the folder. If the folder only refers to it, the samples lose their lines in its file of records;
the tar itself, which may be on storage that cannot be written, stays as it is.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.withdrawal.sample_selector import published_hash
from leam_mm.data.folder_card import CARD, write_card
from leam_mm.data.index_file import ShardIndex, index_name, records_name
from leam_mm.data.ledger import LEDGER, SCHEMA, WITHDRAWAL, WITHDRAWN
from leam_mm.data.parquet_file import error_reason, open_parquet
from leam_mm.data.shard_index import MANIFEST, ShardFolder
from leam_mm.data.shard_manifest import BLOCK, ShardEntry, merkle_root
from leam_mm.data.tombstones import STATEMENTS, TOMBSTONES
from leam_mm.errors import UserError
from leam_mm.files import atomic_write, bytes_sha256

BUCKETS = "buckets.json"
READY, LEADER = "ready", "leader"
SCRUBBED = ("url", "domain", "value", "evidence", "sha256")


@dataclass(frozen=True)
class Withdrawn:
    """A sample to withdraw.

    Args:
        folder: Name of the sub-folder of its image shape, or empty.
        shard: File name of its tar.
        row: Its position in the shard.
        key: Its key.
        record: Its JSON.
        reasons: Why it was selected.
        stored: SHA-256 of its image file in the shard, or None.
    """

    folder: str
    shard: str
    row: int
    key: str
    record: dict[str, Any] = field(repr=False)
    reasons: tuple[str, ...] = ()
    stored: str | None = None


@dataclass(frozen=True)
class Change:
    """The manifest of a shard folder before and after a withdrawal.

    Args:
        name: Name of the folder.
        before: Manifest entries before.
        after: Manifest entries after.
    """

    name: str
    before: list[ShardEntry]
    after: list[ShardEntry]

    def public(self) -> dict[str, Any]:
        """Return the part of the statement from which anyone can recompute both Merkle roots."""
        return {
            "name": self.name,
            "merkle_root_before": merkle_root(self.before),
            "merkle_root_after": merkle_root(self.after),
            "samples_before": sum(entry.samples for entry in self.before),
            "samples_after": sum(entry.samples for entry in self.after),
            "manifest_before": [entry.line() for entry in self.before],
            "manifest_after": [entry.line() for entry in self.after],
        }


def staging(folder: Path) -> Path:
    """Return the folder in which the new version is built."""
    return folder.with_name(folder.name + ".withdrawal")


def finish_withdrawal(folder: Path) -> bool:
    """Complete the withdrawal of a killed run in all of its folders if it was committed, else remove what it left.

    Returns:
        Whether a withdrawal was completed.
    """
    work = staging(folder)
    if (work / READY).is_file():
        for follower in json.loads((work / READY).read_text("utf-8")):
            _exchange(folder.parent / follower)
        _exchange(folder)
        return True
    if (work / LEADER).is_file():
        leader = folder.parent / (work / LEADER).read_text("utf-8")
        if finish_withdrawal(leader) and not work.exists():
            return True
    shutil.rmtree(work, ignore_errors=True)
    return False


def _exchange(folder: Path) -> None:
    """Rename the staged folder to its final name and remove the old one; may be killed and repeated."""
    work = staging(folder)
    if (work / "new").exists():
        if folder.exists():
            os.rename(folder, work / "old")
        os.rename(work / "new", folder)
        _sync(folder.parent)
    if work.exists():
        os.replace(work, work.with_name(work.name + "-done"))  # a marker must not outlive what it marks
    shutil.rmtree(work.with_name(work.name + "-done"), ignore_errors=True)


def shard_folders(folder: Path) -> list[tuple[str, ShardFolder]]:
    """Return the folder itself, or the shard folders of image shapes that buckets.json lists, by their names."""
    if not (folder / BUCKETS).is_file() or (folder / MANIFEST).is_file():
        return [("", ShardFolder(folder))]
    try:
        names = [str(entry["folder"]) for entry in json.loads((folder / BUCKETS).read_text("utf-8"))["buckets"]]
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("a name that is not a sub-folder")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / BUCKETS} does not list buckets ({error}): encode the folder again") from None
    return [(name, ShardFolder(folder / name)) for name in names]


def stage(folder: Path, gone: list[Withdrawn], salt: bytes | None) -> list[Change]:
    """Build the new version of a folder beside it; the folder itself does not change yet.

    Args:
        folder: The shard folder, or the folder above those of the image shapes.
        gone: The samples to withdraw.
        salt: Salt of the hashes that replace addresses and digests in the ledger, or None.

    Raises:
        UserError: No sample would remain.
    """
    work = staging(folder)
    shutil.rmtree(work, ignore_errors=True)
    new = work / "new"
    new.mkdir(parents=True)
    parts = shard_folders(folder)
    rewritten: set[Path] = set()
    changes = []
    for name, part in parts:
        rows: dict[str, set[int]] = {}
        for sample in gone:
            if sample.folder == name:
                rows.setdefault(sample.shard, set()).add(sample.row)
        (new / name).mkdir(exist_ok=True)
        for shard in rows:
            rewritten |= {Path(name) / file for file in (shard, index_name(shard), records_name(shard))}
        entries = [_rewrite(part, at, rows.get(entry.shard, set()), new / name) for at, entry in enumerate(part.shards)]
        after = [entry for entry in entries if entry is not None]
        if not after:
            raise UserError(
                f"{folder / name}: all {part.samples} samples would be withdrawn: delete the folder instead"
            )
        text = "".join(json.dumps(entry.line()) + "\n" for entry in after)
        _write(new / name / MANIFEST, text.encode())
        rewritten.add(Path(name) / MANIFEST)
        changes.append(Change(f"{folder.name}/{name}".rstrip("/"), part.shards, after))
    if parts[0][0]:
        _buckets(folder, new, changes)
        rewritten.add(Path(BUCKETS))
    if (folder / LEDGER).is_file():
        write_ledger(folder / LEDGER, new / LEDGER, gone, salt)
        rewritten.add(Path(LEDGER))
    link_rest(folder, new, rewritten)
    for (name, _), change in zip(parts, changes, strict=True):
        if (new / name / CARD).is_file():  # one of ours; those of others stay as they are
            write_card(new / name, change.after)
    return changes


def _rewrite(part: ShardFolder, number: int, rows: set[int], new: Path) -> ShardEntry | None:
    """Write a shard without some rows; return its new manifest entry, or None if no row remains."""
    entry = part.shards[number]
    if not rows:
        return entry
    kept = [row for row in range(entry.samples) if row not in rows]
    if not kept:
        return None
    if entry.records is not None and part.places is not None:
        return _drop_records(part, number, kept, new)
    digest, offsets, sizes, digests, position = hashlib.sha256(), [], [], [], 0
    with part.open_shard(number) as source, open(new / entry.shard, "wb") as target:
        for row in kept:
            raw = source.raw(row)
            if not source.is_intact(row, raw):
                raise UserError(f"{part.tar(number)}: sample {source.keys[row]} is damaged; run check_shards first")
            offsets.append(position)
            sizes.append(len(raw))
            digests.append(hashlib.sha256(raw).hexdigest())
            position += target.write(raw)
            digest.update(raw)
        end = b"\0" * (2 * BLOCK)
        position += target.write(end)
        digest.update(end)
        target.flush()
        os.fsync(target.fileno())
        keys = [source.keys[row] for row in kept]
    ShardIndex(keys, np.array(offsets), np.array(sizes), digests).write(new / index_name(entry.shard))
    return ShardEntry(entry.shard, digest.hexdigest(), position, len(kept))


def _drop_records(part: ShardFolder, number: int, kept: list[int], new: Path) -> ShardEntry:
    """Write the file of records of a tar without some samples; the tar lies in a folder of others and stays."""
    entry = part.shards[number]
    lines = part.records(number).read_bytes().split(b"\n")
    content = b"".join(lines[row] + b"\n" for row in kept)
    _write(new / records_name(entry.shard), content)
    return replace(entry, samples=len(kept), records=bytes_sha256(content))


def _buckets(folder: Path, new: Path, changes: list[Change]) -> None:
    """Update the numbers of samples in buckets.json."""
    content = json.loads((folder / BUCKETS).read_text("utf-8"))
    left = {change.name.rpartition("/")[2]: sum(entry.samples for entry in change.after) for change in changes}
    for entry in content["buckets"]:
        entry["samples"] = left[entry["folder"]]
    _write(new / BUCKETS, json.dumps(content, indent=1).encode())


def link_rest(folder: Path, new: Path, rewritten: set[Path]) -> None:
    """Hard-link every other file of the old folder into the new one; copy where the disk has no links."""
    for root, names, files in os.walk(folder):
        below = Path(root).relative_to(folder)
        for name in names:
            (new / below / name).mkdir(exist_ok=True)
        for name in files:
            if below / name in rewritten:
                continue
            try:
                os.link(Path(root) / name, new / below / name, follow_symlinks=False)
            except OSError:
                shutil.copy2(Path(root) / name, new / below / name, follow_symlinks=False)


def write_ledger(old: Path, new: Path, gone: list[Withdrawn], salt: bytes | None) -> None:
    """Copy a ledger; rows of withdrawn samples lose their content, and one row for each is appended.

    The rule ``kept`` of those rows becomes ``withdrawn``, so that a resumed download does not fetch them again.
    """
    keys = {sample.key for sample in gone}
    common = {"stage": WITHDRAWAL, "kept": False, "reason": WITHDRAWN}
    last = [
        common | {"uid": sample.record.get("uid"), "key": sample.key, "rule": sample.reasons[0].split(",")[0]}
        for sample in gone
    ]
    try:
        with open_parquet(old) as file:
            schema = pa.schema([*SCHEMA, *(column for column in file.schema if column.name not in SCHEMA.names)])
            with atomic_write(new) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
                for batch in file.batches(10_000):
                    rows = [_scrubbed(row, salt) if row.get("key") in keys else row for row in batch.to_pylist()]
                    writer.write_table(pa.Table.from_pylist(rows, schema))
                writer.write_table(pa.Table.from_pylist(last, schema))
    except (ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{old} cannot be read ({error_reason(error)}): build it again") from None


def _scrubbed(row: dict[str, Any], salt: bytes | None) -> dict[str, Any]:
    """Return the row of a withdrawn sample without its content."""
    hashes = {name: published_hash(str(row[name]), salt) for name in ("url", "sha256") if row.get(name)}
    changed = {"rule": WITHDRAWN, "kept": False, "reason": WITHDRAWN} if row.get("rule") == "kept" else {}
    return row | dict.fromkeys(SCRUBBED) | hashes | changed


def add_evidence(folder: Path, tombstones: list[dict[str, Any]], statement: Path) -> None:
    """Add tombstones and the signed statement to the staged folder.

    Args:
        folder: The shard folder whose new version is staged.
        tombstones: One for each withdrawn sample.
        statement: File of the statement; its signature lies beside it.
    """
    new = staging(folder) / "new"
    path = new / TOMBSTONES
    before = path.read_bytes() if path.is_file() else b""
    lines = "".join(json.dumps(tombstone, sort_keys=True) + "\n" for tombstone in tombstones)
    _write(path, before + lines.encode())
    (new / STATEMENTS).mkdir(exist_ok=True)
    for file in (statement, statement.with_name(statement.name + ".sig")):
        if file.is_file():
            _write(new / STATEMENTS / file.name, file.read_bytes())


def commit(folders: Iterable[Path]) -> None:
    """Exchange all staged folders; once the leader has its marker, a kill can no longer undo the withdrawal."""
    leader, *followers = folders
    for follower in followers:
        _write(staging(follower) / LEADER, os.path.relpath(leader, follower.parent).encode())
    names = [os.path.relpath(follower, leader.parent) for follower in followers]
    _write(staging(leader) / READY, json.dumps(names).encode())
    _sync(staging(leader))
    finish_withdrawal(leader)


def earlier_roots(folder: Path) -> list[str]:
    """Return the Merkle roots that a folder had before its withdrawals, newest first.

    Raises:
        UserError: A statement in the folder cannot be read.
    """
    current = {part.merkle_root for _, part in shard_folders(folder)}
    roots: list[str] = []
    for path in sorted((folder / STATEMENTS).glob("*.json"), reverse=True):
        try:
            steps = [
                (str(change["merkle_root_before"]), str(change["merkle_root_after"]))
                for change in json.loads(path.read_text("utf-8"))["data_sets"]
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a statement of a withdrawal ({error}): restore or remove it") from None
        found = [before for before, after in steps if after in current and before != after]
        roots += found
        current |= set(found)
    return roots


def _write(path: Path, content: bytes) -> None:
    # Never in place: the file may be a hard link to the old folder's.
    with atomic_write(path, durable=True) as temporary:
        temporary.write_bytes(content)


def _sync(folder: Path) -> None:
    """Flush a folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
