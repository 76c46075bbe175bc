"""The format of a final shard folder: tar files, an index beside each, a manifest, and its Merkle root.

This file needs no torch, so that the programs in data_tools write exactly what the loader reads. Tar members
follow the WebDataset convention (``key.extension``; all members of a sample lie together), in the plain ustar form.
"""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leam_mm.data.keep_list import KeepList, read_keep_list
from leam_mm.data.parquet_file import ERRORS, error_reason, open_parquet
from leam_mm.data.shard_manifest import BLOCK, ShardEntry, merkle_root, parse_manifest
from leam_mm.errors import UserError
from leam_mm.files import named_faults, remove_leftovers, replace_folder, write_text

MANIFEST = "manifest.jsonl"
INDEX = {"key": pa.string(), "offset": pa.int64(), "size": pa.int64(), "sha256": pa.string()}  # of an index file
LONGEST_CHAIN = 20  # keep-lists that refer to each other
# Constant parts of the headers of `_member`, by offset: mode and owner, ends of size, time and digest, kind, version.
PLAIN = (
    (100, b"0000644\x000000000\x000000000\0"),
    (135, b"\x0000000000000\0"),
    (154, b"\0 0"),
    (257, b"ustar\x0000"),
    (329, bytes(17)),
)


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard: keys, byte offset and size of all members of a sample, and their digest."""

    keys: list[str]
    offset: np.ndarray
    size: np.ndarray
    sha256: list[str]


def _member(name: str, content: bytes) -> bytes:
    """Return one tar member with header and padding; no byte depends on clock or user."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    header.mode = 0o644
    return header.tobuf(tarfile.USTAR_FORMAT) + content + b"\0" * (-len(content) % BLOCK)


def _header(block: bytes) -> tuple[str, int, bool]:
    """Return name, size and whether it is a plain file, from a member's header.

    Headers as written by `_member` are parsed here, in a fraction of tarfile's time; tarfile parses all others.
    """
    if all(block.startswith(part, at) for at, part in PLAIN):
        size, digest, name = block[124:135], block[148:154], block[: block.index(b"\0")]
        if size.isdigit() and digest.isdigit() and len(name) < 100:
            with suppress(ValueError):  # an 8 or a 9, or letters beyond ASCII
                if sum(block) - sum(block[148:156]) + 8 * 32 == int(digest, 8):
                    return name.decode("ascii"), int(size, 8), True
    header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    return header.name, header.size, header.isreg()


def walk_sample(raw: bytes) -> Iterator[tuple[str, int, int, bool]]:
    """Yield name, offset of the content, size, and whether it is a plain file, of each member of a sample's bytes.

    Raises:
        UserError: A header is broken, or a member longer than the sample.
    """
    position = 0
    while position + BLOCK <= len(raw):
        try:
            name, size, plain = _header(raw[position : position + BLOCK])
        except tarfile.HeaderError as error:
            raise UserError(
                f"broken tar header at byte {position} of the sample: {error}; download the shard again"
            ) from None
        start = position + BLOCK
        # A header can hold a negative size, which would make this loop endless.
        if size < 0 or start + size > len(raw):
            raise UserError(f"member {name!r} is longer than its sample; download the shard again")
        yield name, start, size, plain
        position = start + size + (-size % BLOCK)


def parse_sample(raw: bytes) -> dict[str, bytes]:
    """Split the byte range of one sample into its members, by extension (``{"png": ..., "json": ...}``)."""
    found = walk_sample(raw)
    return {name.rpartition("/")[2].partition(".")[2]: raw[at : at + size] for name, at, size, plain in found if plain}


class ShardWriter:
    """Writes samples into numbered tar files; the folder gets its final name when it is complete.

    Args:
        folder: The final folder; while writing, ``folder.partial`` grows beside it.
        samples_per_shard: Samples in each tar (the last may hold fewer).
        resume: Keep finished shards of an interrupted run in ``folder.partial``; ``.finished`` counts their samples.
    """

    def __init__(self, folder: Path, samples_per_shard: int, resume: bool = False) -> None:
        """Open the partial folder; see the class for the arguments."""
        if samples_per_shard < 1:
            raise UserError(f"samples_per_shard is {samples_per_shard}: give at least 1")
        self.folder, self.samples_per_shard, self.resume = Path(folder), samples_per_shard, resume
        self.partial = self.folder.with_name(self.folder.name + ".partial")
        self.entries: list[ShardEntry] = []
        if self.partial.exists() and resume and (self.partial / MANIFEST).exists():
            self.entries = parse_manifest((self.partial / MANIFEST).read_bytes(), str(self.partial / MANIFEST))
        elif self.partial.exists():
            shutil.rmtree(self.partial)
        self.partial.mkdir(parents=True, exist_ok=True)
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
        raw = b"".join(_member(f"{key}.{extension}", content) for extension, content in members.items())
        self._rows.append((key, self._chunks.tell(), len(raw), hashlib.sha256(raw).hexdigest()))
        self._chunks.write(raw)
        if len(self._rows) == self.samples_per_shard:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        name = f"{len(self.entries):05d}"
        tar = self._chunks.getvalue() + b"\0" * (2 * BLOCK)
        with named_faults(self.partial / f"{name}.tar"):
            (self.partial / f"{name}.tar").write_bytes(tar)
        keys, offset, size, digest = zip(*self._rows, strict=True)
        table = pa.table(
            {"key": keys, "offset": pa.array(offset, pa.int64()), "size": pa.array(size, pa.int64()), "sha256": digest}
        )
        with named_faults(self.partial / f"{name}.index.parquet"):
            pq.write_table(table, self.partial / f"{name}.index.parquet")
        self.entries.append(ShardEntry(f"{name}.tar", hashlib.sha256(tar).hexdigest(), len(tar), len(self._rows)))
        # The manifest is written last: a shard counts as finished only with both tar and index.
        _write_manifest(self.partial, self.entries)
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
        replace_folder(self.partial, self.folder)


def index_name(shard: str) -> str:
    """Return the file name of the index of a tar."""
    return shard.removesuffix(".tar") + ".index.parquet"


def join_shards(parts: Iterable[Path], folder: Path) -> None:
    """Join folders of one shard each to one shard folder, in their order; may be killed and repeated.

    Args:
        parts: The folders; their tars and indexes are moved.
        folder: Receives 00000.tar and so on, with indexes and manifest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, part in enumerate(parts):
        entry, name = ShardFolder(part).shards[0], f"{number:05d}.tar"
        for before, after in ((entry.shard, name), (index_name(entry.shard), index_name(name))):
            if (part / before).is_file():
                (part / before).replace(folder / after)
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} was written and is missing now: delete {part.parent} and start again")
        entries.append(replace(entry, shard=name))
    _write_manifest(folder, entries)


def _write_manifest(folder: Path, entries: list[ShardEntry]) -> None:
    remove_leftovers(folder, MANIFEST)
    write_text(folder / MANIFEST, "".join(json.dumps(asdict(entry)) + "\n" for entry in entries))


def read_index(path: Path, entry: ShardEntry, where: str) -> ShardIndex:
    """Read an index file and check that it fits its shard; ``where`` names it in messages."""
    try:
        with open_parquet(path) as file:
            if file.rows != entry.samples:
                raise ValueError(f"{file.rows} rows, not the {entry.samples} of the manifest")
            if missing := INDEX.keys() - set(file.schema.names):
                raise ValueError(f"{sorted(missing)[0]} is missing")
            table = file.read(list(INDEX))
            table.validate(full=True)  # text in UTF-8
            # The columns are picked one by one: a name that occurs twice is an error, and so is a missing value.
            keys, offset, size, sha256 = (
                table[name].cast(kind).to_pylist() if kind == pa.string() else table[name].to_numpy()
                for name, kind in INDEX.items()
            )
    except ERRORS as error:
        raise UserError(
            f"{where} is no readable index of its shard ({error_reason(error)}); copy or build the folder again"
        ) from None
    if None in keys or None in sha256:
        raise UserError(f"{where}: a key or digest is missing; build the folder again")
    if offset.dtype != np.int64 or size.dtype != np.int64 or offset.min() < 0 or size.min() < BLOCK:
        raise UserError(f"{where}: offset or size is no range of a tar; build the folder again")
    if size.max() > entry.bytes or (offset > entry.bytes - size).any():  # the sum might exceed 64 bits
        raise UserError(f"{where}: a sample lies beyond the end of its tar; build the folder again")
    return ShardIndex(keys, offset, size, sha256)


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
            raise UserError(
                f"{self.path} is no shard folder: {MANIFEST} is missing; build it with data_tools/download_shards.py"
            )
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
        return f"{self.location}/{self.shards[number].shard}"

    def tar(self, number: int) -> Path:
        """Return the path of one tar; fails if it is missing or truncated."""
        path = Path(self.location) / self.shards[number].shard
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
        path = Path(self.location) / index_name(self.shards[number].shard)
        if not path.is_file():
            raise UserError(f"{path} is missing: copy the whole folder, index files included")
        return self._kept(number, read_index(path, self.stored[number], str(path)))

    def _kept(self, number: int, index: ShardIndex) -> ShardIndex:
        """Return the part of a shard's index that is on the keep-list."""
        if self.rows is None:
            return index
        rows = self.rows[number]
        keys, digests = ([column[row] for row in rows.tolist()] for column in (index.keys, index.sha256))
        return ShardIndex(keys, index.offset[rows], index.size[rows], digests)


def read_samples(path: Path | str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield key and members of all samples of a shard folder, in the order of the manifest."""
    folder = ShardFolder(path)
    for number in range(len(folder.shards)):
        index = folder.index(number)
        with open(folder.tar(number), "rb") as file:
            for key, offset, size in zip(index.keys, index.offset, index.size, strict=True):
                file.seek(int(offset))
                yield key, parse_sample(file.read(int(size)))
