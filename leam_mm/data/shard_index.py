"""The format of a final shard folder: tar files, an index beside each, a manifest, and its Merkle root.

This file needs no torch, so that the programs in data_tools write exactly what the loader reads. Tar members
follow the WebDataset convention (``key.extension``; all members of a sample lie together), in the plain ustar form.
Tars that others made keep their bytes: a file of records beside each holds what they lack (data/index_file.py), and
every program reads their samples through ``ShardFolder.open_shard`` as it reads ours.
"""

import hashlib
import io
import json
import shutil
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from leam_mm.data.folder_card import write_card
from leam_mm.data.index_file import ShardIndex, index_name, read_index, read_records, records_name
from leam_mm.data.keep_list import KeepList, read_keep_list
from leam_mm.data.open_shard import OpenShard
from leam_mm.data.shard_manifest import BLOCK, ShardEntry, merkle_root, parse_manifest
from leam_mm.data.shard_places import TARS, ShardPlaces, parse_places
from leam_mm.data.tar_members import parse_sample as parse_sample
from leam_mm.data.tar_members import tar_member
from leam_mm.data.tar_members import walk_sample as walk_sample
from leam_mm.errors import UserError
from leam_mm.files import file_sha256, named_faults, remove_leftovers, replace_folder, write_text

MANIFEST = "manifest.jsonl"
LONGEST_CHAIN = 20  # keep-lists that refer to each other


class ShardWriter:
    """Writes samples into numbered tar files; the folder gets its final name when it is complete.

    Args:
        folder: The final folder; while writing, ``folder.partial`` grows beside it.
        samples_per_shard: Samples in each tar (the last may hold fewer).
        resume: Keep finished shards of an interrupted run in ``folder.partial``; ``.finished`` counts their samples.
        card: Write a README.md at the end, see data/folder_card.py; parts that are joined later need none.
    """

    def __init__(self, folder: Path, samples_per_shard: int, resume: bool = False, card: bool = True) -> None:
        """Open the partial folder; see the class for the arguments."""
        if samples_per_shard < 1:
            raise UserError(f"samples_per_shard is {samples_per_shard}: give at least 1")
        self.folder, self.samples_per_shard, self.resume, self.card = Path(folder), samples_per_shard, resume, card
        self.partial = self.folder.with_name(self.folder.name + ".partial")
        self.entries: list[ShardEntry] = []
        if self.partial.exists() and resume and (self.partial / MANIFEST).exists():
            self.entries = parse_manifest((self.partial / MANIFEST).read_bytes(), str(self.partial / MANIFEST))
        elif self.partial.exists():
            shutil.rmtree(self.partial)
        self.partial.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.partial)
        if self.entries and self.entries[-1].samples < samples_per_shard:
            self.entries.pop()  # the short last shard of a run killed just before its end is written again
        odd = next((entry for entry in self.entries if entry.samples != samples_per_shard), None)
        if odd:
            raise UserError(
                f"{self.partial / odd.shard} holds {odd.samples} samples, not {samples_per_shard}: continue with the "
                "old number, or delete that folder"
            )
        self.finished = sum(entry.samples for entry in self.entries)
        self._rows: list[tuple[str, int, int, str]] = []
        self._chunks = io.BytesIO()

    def __enter__(self) -> "ShardWriter":
        """Start writing."""
        return self

    def write(self, key: str, members: dict[str, bytes]) -> None:
        """Append one sample; members are written in the given order as ``key.extension``."""
        if not key or "/" in key or "." in key or len(key.encode()) > 80:  # a ustar name ends at 100 bytes
            raise UserError(f"sample key {key!r} must be non-empty, without '/' and '.', and at most 80 bytes long")
        raw = b"".join(tar_member(f"{key}.{extension}", content) for extension, content in members.items())
        self._rows.append((key, self._chunks.tell(), len(raw), hashlib.sha256(raw).hexdigest()))
        self._chunks.write(raw)
        if len(self._rows) == self.samples_per_shard:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        name = f"{len(self.entries):05d}"
        self._chunks.write(b"\0" * (2 * BLOCK))
        tar = self._chunks.getbuffer()
        with named_faults(self.partial / f"{name}.tar"):
            (self.partial / f"{name}.tar").write_bytes(tar)
        keys, offset, size, digest = zip(*self._rows, strict=True)
        with named_faults(self.partial / index_name(f"{name}.tar")):
            index = ShardIndex(list(keys), np.array(offset, np.int64), np.array(size, np.int64), list(digest))
            index.write(self.partial / index_name(f"{name}.tar"))
        self.entries.append(ShardEntry(f"{name}.tar", hashlib.sha256(tar).hexdigest(), len(tar), len(self._rows)))
        # The manifest is written last: a shard counts as finished only with both tar and index.
        write_manifest(self.partial, self.entries)
        self._rows, self._chunks = [], io.BytesIO()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the last shard and rename the folder; after an error remove it, or keep it to resume."""
        if kind is not None:
            if not self.resume:
                shutil.rmtree(self.partial, ignore_errors=True)
            return
        self._flush()
        if not self.entries:
            shutil.rmtree(self.partial, ignore_errors=True)
            raise UserError(f"no sample was written to {self.folder}: the input holds nothing usable")
        if self.card:
            write_card(self.partial, self.entries)
        replace_folder(self.partial, self.folder)


def join_shards(parts: Iterable[Path], folder: Path) -> None:
    """Join folders of one shard each to one shard folder, in their order; may be killed and repeated.

    Args:
        parts: The folders; their tars and indexes are moved.
        folder: Receives 00000.tar and so on, with indexes, README.md and manifest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, part in enumerate(parts):
        entry, tar = ShardFolder(part).shards[0], f"{number:05d}.tar"
        for before, after in ((entry.shard, tar), (index_name(entry.shard), index_name(tar))):
            if (part / before).is_file():
                (part / before).replace(folder / after)
        if not (folder / tar).is_file():
            raise UserError(f"{folder / tar} was written and is missing now: delete {part.parent} and start again")
        entries.append(replace(entry, shard=tar))
    write_card(folder, entries)
    write_manifest(folder, entries)


def write_manifest(folder: Path, entries: Iterable[ShardEntry]) -> None:
    """Write the manifest of a folder, which makes it a shard folder."""
    remove_leftovers(folder, MANIFEST)
    write_text(folder / MANIFEST, "".join(json.dumps(entry.line()) + "\n" for entry in entries))


class ShardFolder:
    """A finished shard folder, opened by its manifest; or the samples of one that are on a keep-list.

    Args:
        path: The folder that holds ``manifest.jsonl``, or ``keep.parquet`` and ``keep.json``.
    """

    def __init__(self, path: Path | str, _followed: Collection[Path] = ()) -> None:
        """Read the manifest; see the class for the arguments."""
        self.path = Path(path)
        manifest, kept = self.path / MANIFEST, None
        if manifest.is_file():
            self._keep(manifest.read_bytes(), str(self.path))
        elif (kept := read_keep_list(self.path)) is None:
            raise UserError(f"{self.path} is no shard folder: {MANIFEST} is missing; {_cure(self.path)}")
        elif "://" in kept.shards:
            raise UserError(
                f"the shards of {self.path} are at {kept.shards}: train.py reads them there, other programs need a "
                "local copy and its path in keep.json"
            )
        elif not (self.path / kept.shards).is_dir():
            raise UserError(
                f"{self.path}/keep.json gives {kept.shards} as the folder of its shards, which does not exist: write "
                "their path into it, relative to that file"
            )
        else:
            followed = {*_followed, self.path.resolve()}
            if (self.path / kept.shards).resolve() in followed or len(followed) > LONGEST_CHAIN:
                raise UserError(f"{self.path}/keep.json refers to itself: write the shards' path into it")
            vars(self).update(vars(ShardFolder(self.path / kept.shards, followed)) | {"path": self.path})
            self.follow(kept, str(self.path))

    def _keep(self, manifest: bytes, name: str) -> None:
        self.name = self.location = name  # the name may become a keep-list's; the location stays that of the tars
        self._manifest = self.shards = self.stored = parse_manifest(manifest, f"{name}/{MANIFEST}")
        self.samples = sum(entry.samples for entry in self.shards)
        self.rows: list[np.ndarray] | None = None
        self.keeps: list[str] = []
        self.places: ShardPlaces | None = None
        if any(entry.records for entry in self._manifest) and (places := self._read_places()) is not None:
            self.places = parse_places(places, f"{name}/{TARS}")

    def _read_places(self) -> bytes | None:
        path = self.path / TARS
        return path.read_bytes() if path.is_file() else None

    def follow(self, kept: KeepList, name: str) -> None:
        """Restrict the folder to the samples of a keep-list; shards without any are left out.

        Raises:
            UserError: The list was made for other shards.
        """
        if kept.merkle_root != self.merkle_root:
            raise UserError(
                f"{name} keeps samples of shards with Merkle root {kept.merkle_root[:12]}, {self.name} has "
                f"{self.merkle_root[:12]}: vet these shards again, or correct keep.json"
            )
        rows, before = kept.rows([entry.samples for entry in self.shards]), self.rows
        if before is not None:
            rows = [old[new] for old, new in zip(before, rows, strict=True)]
        used = [number for number, each in enumerate(rows) if len(each)]
        self.name, self.keeps, self.rows = name, [*self.keeps, kept.sha256], [rows[number] for number in used]
        self.stored = [self.stored[number] for number in used]
        self.shards = [replace(self.stored[number], samples=len(each)) for number, each in enumerate(self.rows)]
        self.samples = len(kept.row)

    @property
    def merkle_root(self) -> str:
        """Identity of the data set: changes with any byte of any shard; a keep-list's SHA-256 is appended."""
        return "+keep.".join([merkle_root(self._manifest), *self.keeps])

    def shard_name(self, number: int) -> str:
        """Return the location of one tar, for messages."""
        return self.address(self.shards[number])

    def address(self, entry: ShardEntry) -> str:
        """Return path or address of a tar of the manifest."""
        if self.places is None or not entry.records:
            return f"{self.location}/{entry.shard}"
        return self.places.address(entry.shard, self.location)

    def tar(self, number: int) -> Path:
        """Return the path of one tar; fails if it is missing or truncated."""
        if "://" in (address := self.shard_name(number)):
            raise UserError(
                f"the tars of {self.path} are at {address.rpartition('/')[0]}: train.py reads them there, other "
                f"programs need a local copy and its path in {TARS}; or index_shards --materialise"
            )
        path = Path(address)
        size = path.stat().st_size if path.is_file() else -1
        if size != self.shards[number].bytes:
            found = "is missing" if size < 0 else f"has {size} bytes"
            raise UserError(
                f"{path} {found}, the manifest says {self.shards[number].bytes}: copy or build the shard again"
            )
        return path

    def open(self, number: int) -> BinaryIO:
        """Open one tar, unbuffered, for random access."""
        return open(self.tar(number), "rb", buffering=0)  # type: ignore[return-value]

    def prefetch(self, numbers: list[int]) -> None:
        """Announce the shards that are read next; does nothing for a local folder."""

    def index(self, number: int) -> ShardIndex:
        """Read the index of one tar."""
        if self.stored[number].records is not None:
            path = self.records(number)
            return self._kept(number, read_records(path, self.stored[number], str(path)))
        path = Path(self.location) / index_name(self.shards[number].shard)
        if not path.is_file():
            raise UserError(f"{path} is missing: copy the whole folder, index files included")
        return self._kept(number, read_index(path, self.stored[number], str(path)))

    def _kept(self, number: int, index: ShardIndex) -> ShardIndex:
        """Return the part of a shard's index that is on the keep-list."""
        return index if self.rows is None else index.take(self.rows[number])

    def records(self, number: int) -> Path:
        """Return the path of the file of records of a tar that others made."""
        path = Path(self.location) / records_name(self.shards[number].shard)
        if not path.is_file():
            raise UserError(f"{path} is missing: copy the whole folder, files of records included")
        return path

    def open_shard(self, number: int) -> OpenShard:
        """Open one shard to read its samples; close it, or use it as a context manager."""
        tar, records = self.open(number), None
        try:
            index = self.index(number)
            if index.records is not None:
                records = open(self.records(number), "rb", buffering=0)  # noqa: SIM115 (it stays open for the reader)
        except BaseException:
            tar.close()
            raise
        return OpenShard(tar, index, records)  # type: ignore[arg-type]

    def digest_fault(self, number: int) -> str | None:
        """Return which file of a shard has another digest than the manifest says; None if none has."""
        entry = self.shards[number]
        if file_sha256(self.tar(number)) != entry.sha256:
            return f"its sha256 is not the one in {MANIFEST}"
        if entry.records is not None and file_sha256(self.records(number)) != entry.records:
            return f"the sha256 of {records_name(entry.shard)} is not the one in {MANIFEST}"
        return None


def _cure(folder: Path) -> str:
    """Return how a folder becomes a shard folder."""
    if folder.is_dir() and next(folder.glob("*.tar"), None) is not None:
        return "it holds tars, which data_tools/index_shards.py indexes where they are"
    return "build it with data_tools/download_shards.py"


def read_samples(path: Path | str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield key and members of all samples of a shard folder, in the order of the manifest."""
    folder = ShardFolder(path)
    for number in range(len(folder.shards)):
        with folder.open_shard(number) as shard:
            for row, key in enumerate(shard.keys):
                yield key, shard.members(row)
