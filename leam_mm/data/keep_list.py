"""Keep-lists: the samples of a shard folder that stay, so that filtering copies nothing.

A folder with ``keep.parquet`` (``shard``: number in the manifest, ``row``, ``key``; ascending) and ``keep.json``
(``{"shards": ...}``: path of the shards relative to this folder, or their URL) is read like a shard folder that holds
only these samples. The list identifies its shards by their Merkle root, and is itself identified by its SHA-256.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leam_mm.data.parquet_file import ERRORS, error_reason, open_parquet
from leam_mm.errors import UserError
from leam_mm.files import bytes_sha256, write_bytes
from leam_mm.json_text import parse_object

KEEP, PLACE = "keep.parquet", "keep.json"
ROOT = b"merkle_root"
ROW_GROUP = 100_000
SCHEMA = pa.schema([("shard", pa.int32()), ("row", pa.int32()), ("key", pa.string())])


@dataclass(frozen=True)
class KeepList:
    """A parsed keep-list.

    Args:
        shards: Path of its shards, relative to its own folder or absolute, or their URL.
        merkle_root: Merkle root of those shards.
        sha256: Digest of keep.parquet.
        shard: (N,) numbers of shards in the manifest, ascending.
        row: (N,) numbers of samples in their shard, ascending inside a shard.
    """

    shards: str
    merkle_root: str
    sha256: str
    shard: np.ndarray
    row: np.ndarray

    def rows(self, samples: Sequence[int]) -> list[np.ndarray]:
        """Return the kept rows of each shard.

        Args:
            samples: Number of samples of each shard.

        Raises:
            UserError: A shard or row does not exist.
        """
        if self.shard[0] < 0 or self.shard[-1] >= len(samples):
            raise UserError(f"{KEEP} names a shard that its manifest does not have: vet the shards again")
        edges = np.searchsorted(self.shard, np.arange(len(samples) + 1))
        rows = [self.row[start:end] for start, end in pairwise(edges)]
        if any(len(kept) and (kept[0] < 0 or kept[-1] >= count) for kept, count in zip(rows, samples, strict=True)):
            raise UserError(f"{KEEP} names a sample that its shard does not have: vet the shards again")
        return rows


def write_keep_list(folder: Path, shards: str, merkle_root: str, kept: pa.Table) -> str:
    """Write both files into a folder; the same list gives the same bytes.

    Args:
        folder: Existing folder.
        shards: Path of the shards relative to the folder, or their URL.
        merkle_root: Merkle root of the shards.
        kept: Columns of ``SCHEMA``, in order.

    Returns:
        SHA-256 of the list.
    """
    if not kept.num_rows:
        raise UserError("no sample is kept: loosen the rules; ledger.parquet lists which rule dropped which sample")
    table = kept.select(SCHEMA.names).cast(SCHEMA).replace_schema_metadata({ROOT: merkle_root.encode()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=ROW_GROUP)
    for name, content in ((PLACE, json.dumps({"shards": shards}).encode() + b"\n"), (KEEP, buffer.getvalue())):
        write_bytes(folder / name, content)
    return bytes_sha256(buffer.getvalue())


def read_keep_list(folder: Path) -> KeepList | None:
    """Return the keep-list of a local folder; None if it has none."""
    if not (folder / KEEP).is_file():
        return None
    if not (folder / PLACE).is_file():
        raise UserError(f'{folder / PLACE} is missing: write {{"shards": "PATH OR URL OF THE SHARDS"}} into it')
    return parse_keep_list((folder / PLACE).read_bytes(), (folder / KEEP).read_bytes(), str(folder))


def parse_keep_list(location: bytes, content: bytes, where: str) -> KeepList:
    """Parse both files, which may be hostile.

    Args:
        location: Bytes of keep.json.
        content: Bytes of keep.parquet.
        where: Their folder, for messages.
    """
    try:
        shards = parse_object(location)["shards"]
        with open_parquet(content) as file:
            table = file.read(["shard", "row"])
        root = (table.schema.metadata or {}).get(ROOT, b"").decode()
        shard, row = (table[name].to_numpy().astype(np.int32, casting="safe") for name in ("shard", "row"))
        if not isinstance(shards, str) or not root or not len(shard):
            raise ValueError("no path of the shards, no Merkle root, or no row")
        if (
            not shards.isprintable()
            or any(len(part.encode()) > 255 for part in shards.split("/"))
            or len(shards) > 4000
        ):
            raise ValueError("the path of the shards is none that a file system takes")
    except (ValueError, KeyError, TypeError, RecursionError, pa.ArrowException, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{where}: {KEEP} or {PLACE} is not valid ({reason}); vet the shards again") from None
    step, down = np.diff(shard), np.diff(row)
    if (step < 0).any() or (down[step == 0] <= 0).any():
        raise UserError(f"{where}/{KEEP} is not in the order of the shards: sort it by shard and row")
    return KeepList(shards, root, bytes_sha256(content), shard, row)


def kept_keys(folder: Path) -> list[str]:
    """Return the sample keys of a keep-list, in its order."""
    try:
        with open_parquet(folder / KEEP) as file:
            return file.read(["key"])["key"].cast(pa.string()).to_pylist()
    except ERRORS as error:
        raise UserError(f"{folder / KEEP} names no keys ({error_reason(error)}); vet the shards again") from None
