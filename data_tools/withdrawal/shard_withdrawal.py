"""Take samples out of a shard folder: only their shards are written again, and the folder changes in one step.

A second folder is built beside the first, with hard links to every file that stays as it is; the two then change names.
A kill at any moment leaves either the old folder or the new one: ``finish_withdrawal`` completes or clears away what an
earlier run left. The bytes of samples that stay, tar headers included, are copied as they are.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.work.ledger import LEDGER, SCHEMA
from leam_mm.data.shard_index import BLOCK, MANIFEST, ShardEntry, ShardFolder, index_name, merkle_root
from leam_mm.errors import UserError

TOMBSTONES, STATEMENTS, BUCKETS = "tombstones.jsonl", "withdrawals", "buckets.json"
READY, LEADER = "ready", "leader"
STAGE, WITHDRAWN = "withdraw_samples", "withdrawn"
SCRUBBED = ("url", "domain", "value", "evidence", "sha256")


@dataclass(frozen=True)
class Withdrawn:
    """One sample that goes.

    Args:
        folder: Name of the sub-folder of its shape, or empty.
        shard: File name of its tar.
        row: Its place in the shard.
        key: Its name.
        record: Its json.
        reasons: Why it was found.
    """

    folder: str
    shard: str
    row: int
    key: str
    record: dict[str, Any] = field(repr=False)
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Change:
    """What becomes of one shard folder: its manifest before and after.

    Args:
        name: Of the folder.
        before: Entries of its manifest.
        after: Likewise.
    """

    name: str
    before: list[ShardEntry]
    after: list[ShardEntry]

    def public(self) -> dict[str, Any]:
        """As it stands in the statement: enough to compute both roots again."""
        return {
            "name": self.name,
            "merkle_root_before": merkle_root(self.before),
            "merkle_root_after": merkle_root(self.after),
            "samples_before": sum(entry.samples for entry in self.before),
            "samples_after": sum(entry.samples for entry in self.after),
            "manifest_before": [asdict(entry) for entry in self.before],
            "manifest_after": [asdict(entry) for entry in self.after],
        }


def staging(folder: Path) -> Path:
    """Where the new folder grows."""
    return folder.with_name(folder.name + ".withdrawal")


def lock_folder(folder: Path) -> TextIO:
    """Keep other withdrawals away from a folder until the returned file is closed."""
    lock = open(folder.with_name(folder.name + ".withdrawal-lock"), "w")  # noqa: SIM115 # held until the program ends
    for attempt in range(10):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if attempt < 9:
                time.sleep(0.5)
    lock.close()
    raise UserError(f"{folder} is being changed by another withdrawal: wait for it, then start again")


def finish_withdrawal(folder: Path) -> bool:
    """Complete what a killed run had decided, for all folders that it was about; or clear away what it had not.

    Returns:
        Whether a decided withdrawal was completed.
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
    """Give the staged folder its name, and remove the old one; may be killed and repeated."""
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
    """The folder itself, or those of its shapes that buckets.json lists, by their names below it."""
    if not (folder / BUCKETS).is_file() or (folder / MANIFEST).is_file():
        return [("", ShardFolder(folder))]
    try:
        names = [str(entry["folder"]) for entry in json.loads((folder / BUCKETS).read_text("utf-8"))["buckets"]]
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("a name leaves the folder")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / BUCKETS} does not list buckets ({error}): encode the folder again") from None
    return [(name, ShardFolder(folder / name)) for name in names]


def stage(
    folder: Path,
    gone: list[Withdrawn],
    veil: Callable[[str], str],
) -> list[Change]:
    """Build the folder without some samples, beside it; nothing changes yet.

    Args:
        folder: The shard folder, or the one above the folders of its shapes.
        gone: The samples that go.
        veil: Hash that stands for what the ledger said of them.

    Raises:
        UserError: No sample would stay.
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
            rewritten |= {Path(name) / shard, Path(name) / index_name(shard)}
        entries = [_rewrite(part, at, rows.get(entry.shard, set()), new / name) for at, entry in enumerate(part.shards)]
        after = [entry for entry in entries if entry is not None]
        if not after:
            raise UserError(
                f"{folder / name}: all {part.samples} samples would go, and a data set without samples has no name: "
                "delete the folder instead"
            )
        text = "".join(json.dumps(asdict(entry)) + "\n" for entry in after)
        _write(new / name / MANIFEST, text.encode())
        rewritten.add(Path(name) / MANIFEST)
        changes.append(Change(f"{folder.name}/{name}".rstrip("/"), part.shards, after))
    if parts[0][0]:
        _buckets(folder, new, changes)
        rewritten.add(Path(BUCKETS))
    if (folder / LEDGER).is_file():
        write_ledger(folder / LEDGER, new / LEDGER, gone, veil)
        rewritten.add(Path(LEDGER))
    link_rest(folder, new, rewritten)
    return changes


def _rewrite(part: ShardFolder, number: int, rows: set[int], new: Path) -> ShardEntry | None:
    """Write a shard without some rows; its entry in the new manifest, or none where nothing is left of it."""
    entry = part.shards[number]
    if not rows:
        return entry
    index = part.index(number)
    kept = [row for row in range(entry.samples) if row not in rows]
    if not kept:
        return None
    digest, offsets, position = hashlib.sha256(), [], 0
    with part.open(number) as source, open(new / entry.shard, "wb") as target:
        for row in kept:
            source.seek(int(index.offset[row]))
            raw = source.read(int(index.size[row]))
            if hashlib.sha256(raw).hexdigest() != index.sha256[row]:
                raise UserError(f"{part.tar(number)}: sample {index.keys[row]} is damaged; run check_shards first")
            offsets.append(position)
            position += target.write(raw)
            digest.update(raw)
        end = b"\0" * (2 * BLOCK)
        position += target.write(end)
        digest.update(end)
        target.flush()
        os.fsync(target.fileno())
    table = pa.table(
        {
            "key": [index.keys[row] for row in kept],
            "offset": pa.array(offsets, pa.int64()),
            "size": pa.array([int(index.size[row]) for row in kept], pa.int64()),
            "sha256": [index.sha256[row] for row in kept],
        }
    )
    pq.write_table(table, new / index_name(entry.shard))
    return ShardEntry(entry.shard, digest.hexdigest(), position, len(kept))


def _buckets(folder: Path, new: Path, changes: list[Change]) -> None:
    """Say the new numbers of samples in buckets.json."""
    content = json.loads((folder / BUCKETS).read_text("utf-8"))
    left = {change.name.rpartition("/")[2]: sum(entry.samples for entry in change.after) for change in changes}
    for entry in content["buckets"]:
        entry["samples"] = left[entry["folder"]]
    _write(new / BUCKETS, json.dumps(content, indent=1).encode())


def link_rest(folder: Path, new: Path, rewritten: set[Path]) -> None:
    """Give the new folder every other file of the old one; hard links, copies where the disk has none."""
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


def write_ledger(old: Path, new: Path, gone: list[Withdrawn], veil: Callable[[str], str]) -> None:
    """Copy a ledger; rows of the withdrawn samples lose what they quote, and get a row of their own at the end.

    Where they stood as ``kept``, they stand as ``withdrawn``: a download that is resumed does not ask for them again.
    """
    keys = {sample.key: sample for sample in gone}
    columns = pq.read_schema(old)
    extra = [column for column in columns if column.name not in SCHEMA.names]
    schema = pa.schema([*SCHEMA, *extra])
    temporary = new.with_name(new.name + ".tmp")
    with pq.ParquetFile(old) as file, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for batch in file.iter_batches(10_000):
            rows = batch.to_pylist()
            for row in rows:
                if row.get("key") in keys:
                    veiled = {name: veil(str(row[name])) for name in ("url", "sha256") if row.get(name)}
                    row.update(dict.fromkeys(SCRUBBED) | veiled)
                    if row.get("rule") == "kept":
                        row.update(rule=WITHDRAWN, kept=False, reason=WITHDRAWN)
            writer.write_table(pa.Table.from_pylist(rows, schema))
        last = [
            {
                "uid": sample.record.get("uid"),
                "key": sample.key,
                "stage": STAGE,
                "rule": sample.reasons[0].split(",")[0],
            }
            | {"kept": False, "reason": WITHDRAWN}
            for sample in gone
        ]
        writer.write_table(pa.Table.from_pylist(last, schema))
    os.replace(temporary, new)


def add_evidence(folder: Path, tombstones: list[dict[str, Any]], statement: Path) -> None:
    """Put tombstones and the signed statement into the staged folder.

    Args:
        folder: The shard folder whose new version is staged.
        tombstones: One for each sample that goes.
        statement: The statement's file; its signature lies beside it.
    """
    new = staging(folder) / "new"
    place = new / TOMBSTONES
    before = place.read_bytes() if place.is_file() else b""
    lines = "".join(json.dumps(tombstone, sort_keys=True) + "\n" for tombstone in tombstones)
    _write(place, before + lines.encode())
    (new / STATEMENTS).mkdir(exist_ok=True)
    for file in (statement, statement.with_name(statement.name + ".sig")):
        if file.is_file():
            _write(new / STATEMENTS / file.name, file.read_bytes())


def commit(folders: Iterable[Path]) -> None:
    """Give the staged folders their names; one marker decides for all of them, after which no kill undoes anything."""
    leader, *followers = folders
    for follower in followers:
        _write(staging(follower) / LEADER, os.path.relpath(leader, follower.parent).encode())
    names = [os.path.relpath(follower, leader.parent) for follower in followers]
    _write(staging(leader) / READY, json.dumps(names).encode())
    _sync(staging(leader))
    finish_withdrawal(leader)


def carry_evidence(old: Path, new: Path) -> None:
    """Copy tombstones and statements into a folder that will replace another one, as a repeated download does."""
    if (old / TOMBSTONES).is_file():
        shutil.copy2(old / TOMBSTONES, new / TOMBSTONES)
    if (old / STATEMENTS).is_dir():
        shutil.copytree(old / STATEMENTS, new / STATEMENTS, dirs_exist_ok=True)


def dead_keys(folder: Path) -> set[str]:
    """Keys of the samples that earlier withdrawals took out of a folder."""
    path = folder / TOMBSTONES
    try:
        return (
            {str(json.loads(line)["key"]) for line in path.read_text("utf-8").splitlines()} if path.is_file() else set()
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: a line is no tombstone ({error}); restore the file") from None


def earlier_roots(folder: Path) -> list[str]:
    """Merkle roots that a folder had before its withdrawals, newest first: those states held what was withdrawn since.

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
            raise UserError(f"{path} is no statement of a withdrawal ({error}): restore or remove it") from None
        found = [before for before, after in steps if after in current and before != after]
        roots += found
        current |= set(found)
    return roots


def _write(path: Path, content: bytes) -> None:
    """Beside and renamed: a hard link to the old folder's file must not be written through."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _sync(folder: Path) -> None:
    """Have the disk know a folder's names."""
    place = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)
