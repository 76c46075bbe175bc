"""The index of a tar: where each of its samples lies.

A sample of a tar of ours is one range of bytes with all of its members; ``NAME.index.parquet`` lists the ranges. A tar
that others made keeps its bytes: each line of ``NAME.records.jsonl`` says where the image of a sample lies, and ends
with its record, our json. The manifest has the digest of that file.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leam_mm.data.parquet_file import ERRORS, error_reason, open_parquet
from leam_mm.data.shard_manifest import BLOCK, ShardEntry
from leam_mm.errors import UserError
from leam_mm.json_text import parse_json

INDEX = {"key": pa.string(), "offset": pa.int64(), "size": pa.int64(), "sha256": pa.string()}
MAX_RECORD = 16_000_000  # bytes of a record
LINE = re.compile(  # up to the record; suffixes are those under which programs find images
    rb'\{"key": ("(?:[^"\\\x00-\x1f]|\\[^\x00-\x1f])+"), "offset": (\d{1,18}), "size": (\d{1,18}), '
    rb'"suffix": "(jpg|png|webp)", "sha256": "([0-9a-f]{64})", "record": (?=\{)'
)


@dataclass(frozen=True)
class RecordIndex:
    """For a tar that others made: suffix of each image, and offset and size of its record in the file of records."""

    suffix: list[str]
    offset: np.ndarray
    size: np.ndarray


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard.

    Args:
        keys: Keys of the samples.
        offset: (N,) int64, offset in the tar of all members of a sample; of the image alone if there are records.
        size: (N,) int64, their bytes.
        sha256: Digest of these bytes; of image and record, one after the other, if there are records.
        records: For a tar that others made, else None.
    """

    keys: list[str]
    offset: np.ndarray
    size: np.ndarray
    sha256: list[str]
    records: RecordIndex | None = None

    def take(self, rows: np.ndarray) -> "ShardIndex":
        """Return some of the rows."""
        keys, digests = ([column[row] for row in rows.tolist()] for column in (self.keys, self.sha256))
        records = self.records
        if records is not None:
            suffix = [records.suffix[row] for row in rows.tolist()]
            records = RecordIndex(suffix, records.offset[rows], records.size[rows])
        return ShardIndex(keys, self.offset[rows], self.size[rows], digests, records)

    def write(self, path: Path) -> None:
        """Write the file."""
        columns = [self.keys, pa.array(self.offset, pa.int64()), pa.array(self.size, pa.int64()), self.sha256]
        pq.write_table(pa.table(columns, list(INDEX)), path)


def index_name(shard: str) -> str:
    """Return the file name of the index of a tar."""
    return shard.removesuffix(".tar") + ".index.parquet"


def records_name(shard: str) -> str:
    """Return the name of the file of records beside a tar that others made."""
    return shard.removesuffix(".tar") + ".records.jsonl"


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
    return _checked(ShardIndex(keys, offset, size, sha256), entry, BLOCK, where)


def _checked(index: ShardIndex, entry: ShardEntry, least: int, where: str) -> ShardIndex:
    """Check that all samples lie in the tar."""
    offset, size = index.offset, index.size
    if offset.dtype != np.int64 or size.dtype != np.int64 or offset.min() < 0 or size.min() < least:
        raise UserError(f"{where}: offset or size is no range of a tar; build the folder again")
    if size.max() > entry.bytes or (offset > entry.bytes - size).any():  # the sum might exceed 64 bits
        raise UserError(f"{where}: a sample lies beyond the end of its tar; build the folder again")
    return index


def records_line(key: str, offset: int, size: int, suffix: str, sha256: str, record: bytes) -> bytes:
    """Return the line of a sample in a file of records.

    Args:
        key: Key of the sample.
        offset: Offset of the image in the tar.
        size: Bytes of the image.
        suffix: ``jpg``, ``png`` or ``webp``.
        sha256: Digest of image and record, one after the other.
        record: The record.
    """
    place = f'"offset": {offset}, "size": {size}, "suffix": "{suffix}", "sha256": "{sha256}"'
    return f'{{"key": {json.dumps(key, ensure_ascii=False)}, {place}, "record": '.encode() + record + b"}\n"


def read_records(path: Path, entry: ShardEntry, where: str) -> ShardIndex:
    """Read the index of a tar that others made from its file of records, which may be hostile.

    Args:
        path: The file.
        entry: Entry of the tar in the manifest.
        where: Name of the file in messages.

    Raises:
        UserError: A line has another form, or does not fit the tar.
    """
    content = path.read_bytes()
    keys: list[str] = []
    suffixes, digests, ranges, position = [], [], [], 0
    while position < len(content):
        end = content.find(b"\n", position)
        found = LINE.match(content, position, end) if end > position else None
        if found is None or not content.endswith(b"}}", found.end(), end):
            raise UserError(f"{where}: line {len(keys) + 1} is no record of a sample; index the tars again")
        key, offset, size, suffix, digest = found.groups()
        try:
            keys.append(parse_json(key))
        except ValueError:
            raise UserError(f"{where}: the key in line {len(keys) + 1} is no text; index the tars again") from None
        suffixes.append(suffix.decode())
        digests.append(digest.decode())
        ranges.append((int(offset), int(size), found.end(), end - 1 - found.end()))
        position = end + 1
    if len(keys) != entry.samples:
        raise UserError(f"{where} has {len(keys)} lines, not the {entry.samples} of the manifest; copy it again")
    offsets, sizes, starts, lengths = np.array(ranges, np.int64).T.copy()
    if lengths.max() > MAX_RECORD:
        raise UserError(f"{where}: a record has more than {MAX_RECORD} bytes; index the tars again")
    index = ShardIndex(keys, offsets, sizes, digests, RecordIndex(suffixes, starts, lengths))
    return _checked(index, entry, 1, where)
