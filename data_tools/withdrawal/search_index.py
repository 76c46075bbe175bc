"""Index of a data set: sorted digests and perceptual hashes, memory-mapped when something is looked up.

For each of sha256, url, domain and caption, the first 128 bits of a SHA-256 lie in two sorted columns of 64 bits,
beside the number of the row that each belongs to. PDQ hashes lie in four columns of 64 bits, in the order of the rows.
A lookup scans two of them and compares in full only the hashes that are near enough there (of random hashes and 31
bits, 2 in 1e9), so that the answer is exact. ``rows.arrow`` holds the description of each row.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from leam_mm.errors import UserError
from leam_mm.files import atomic_folder

FORMAT = "leam_mm search index 1"
DESCRIPTION, ROWS = "search.json", "rows.arrow"
KINDS = ("sha256", "url", "domain", "caption")
ENTRY = np.dtype([("high", ">u8"), ("low", ">u8"), ("row", "<u4")])
CODE = np.dtype([("words", ">u8", (4,)), ("row", "<u4")])
ROW_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("data_set", "key", "uid", "url")]
    + [("kept", pa.bool_()), ("reason", pa.string())]
)
BATCH = 1 << 16  # rows in a record batch of rows.arrow
CHUNK = 1 << 16  # hashes compared at a time: their columns fit a core's cache
Digests = dict[str, Iterable[bytes]]  # kind -> 16 bytes each


def digest_of(text: str) -> bytes:
    """Return the 128 bits under which a text is indexed."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


@contextmanager
def write_index(folder: Path, data_sets: list[dict[str, Any]]) -> "Iterator[IndexWriter]":
    """Write an index that replaces an older one when the block ends; an error leaves the older one.

    Args:
        folder: Folder of the index.
        data_sets: Names, Merkle roots and numbers of samples of the indexed shard folders.
    """
    with atomic_folder(folder) as temporary:
        writer = IndexWriter(temporary)
        try:
            yield writer
        finally:
            writer.close()
        content = {"format": FORMAT, "data_sets": data_sets, "rows": writer.rows, "entries": writer.sort()}
        (temporary / DESCRIPTION).write_text(json.dumps(content, indent=1), encoding="utf-8")


class IndexWriter:
    """Appends rows to the files of an index.

    Args:
        folder: Empty folder.
    """

    def __init__(self, folder: Path) -> None:
        """Open the files; see the class for the arguments."""
        self.folder, self.rows = folder, 0
        self._files: dict[str, BinaryIO] = {name: self._raw(name).open("wb") for name in (*KINDS, "pdq")}
        self._table = pa.ipc.new_file(folder / ROWS, ROW_SCHEMA)
        self._waiting: list[dict[str, Any]] = []

    def _raw(self, name: str) -> Path:
        return self.folder / f"{name}.raw"

    def add(self, row: dict[str, Any], digests: Digests, pdq: bytes | None) -> None:
        """Append a row.

        Args:
            row: Columns of ``ROW_SCHEMA``.
            digests: Digests under which the row is found, by kind.
            pdq: PDQ hash of the image, 32 bytes, or None.
        """
        number = np.array(self.rows + len(self._waiting), "<u4").tobytes()
        for kind, found in digests.items():
            for digest in found:
                self._files[kind].write(digest + number)
        if pdq is not None:
            self._files["pdq"].write(pdq + number)
        self._waiting.append(row)
        if len(self._waiting) == BATCH:
            self._flush()

    def add_rows(self, rows: pa.RecordBatch, digests: dict[str, np.ndarray], pdq: np.ndarray) -> None:
        """Append ``BATCH`` rows at once (fewer in the last batch): digests (B, 16) uint8 by kind, PDQ (B, 32) uint8."""
        numbers = np.arange(self.rows, self.rows + rows.num_rows, dtype="<u4")
        for kind, found in {**digests, "pdq": pdq}.items():
            joined = np.concatenate([found, numbers[:, None].view(np.uint8)], axis=1)
            self._files[kind].write(joined.tobytes())
        self._table.write_batch(rows)
        self.rows += rows.num_rows

    def _flush(self) -> None:
        if self._waiting:
            self._table.write_batch(pa.RecordBatch.from_pylist(self._waiting, ROW_SCHEMA))
            self.rows += len(self._waiting)
            self._waiting = []

    def close(self) -> None:
        """Write what is buffered and close the files."""
        self._flush()
        self._table.close()
        for file in self._files.values():
            file.close()

    def sort(self) -> dict[str, int]:
        """Turn the appended entries into sorted columns, one kind at a time in memory; return their counts."""
        counts = {}
        for kind in KINDS:
            entries = np.fromfile(self._raw(kind), ENTRY)
            order = np.lexsort((entries["row"], entries["high"].astype("=u8")))
            for name in ("high", "low", "row"):
                column = entries[name][order]
                np.save(self.folder / f"{kind}.{name}.npy", column.astype(column.dtype.newbyteorder("=")))
            counts[kind] = len(entries)
            self._raw(kind).unlink()
        codes = np.fromfile(self._raw("pdq"), CODE)
        for word in range(4):
            np.save(self.folder / f"pdq.{word}.npy", codes["words"][:, word].astype("=u8"))
        np.save(self.folder / "pdq.row.npy", codes["row"].astype("=u4"))
        self._raw("pdq").unlink()
        return counts | {"pdq": len(codes)}


class SearchIndex:
    """An index to look things up in; only the pages that an answer needs are read.

    Args:
        folder: Folder that ``write_index`` wrote.
    """

    def __init__(self, folder: Path) -> None:
        """Map the files; see the class for the arguments."""
        self.folder = folder
        try:
            self.description = json.loads((folder / DESCRIPTION).read_text("utf-8"))
            if self.description["format"] != FORMAT:
                raise ValueError(f"format {self.description['format']!r}")
            names = [f"{kind}.{name}" for kind in KINDS for name in ("high", "low", "row")]
            names += [f"pdq.{name}" for name in (0, 1, 2, 3, "row")]
            self.columns = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
            self._table = pa.ipc.open_file(pa.memory_map(str(folder / ROWS)))
            self.rows = int(self.description["rows"])
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{folder} is not a search index ({reason}): build it with sample_search.py") from None

    def find(self, kind: str, digest: bytes) -> np.ndarray:
        """Return the rows indexed under 16 bytes, ascending."""
        high = np.frombuffer(digest[:8], ">u8").astype("=u8")[0]
        low = np.frombuffer(digest[8:16], ">u8").astype("=u8")[0]
        column = self.columns[f"{kind}.high"]
        first, last = np.searchsorted(column, high), np.searchsorted(column, high, "right")
        return np.array(self.columns[f"{kind}.row"][first:last])[self.columns[f"{kind}.low"][first:last] == low]

    def near(self, codes: np.ndarray, radius: int) -> list[tuple[int, int]]:
        """Return the rows whose PDQ hash differs from any of the codes in at most ``radius`` bits.

        Args:
            codes: (N, 32) uint8, hashes of one image in N orientations.
            radius: Largest number of different bits, of 256.

        Returns:
            Pairs of different bits and row, nearest first; each row once.
        """
        words = np.ascontiguousarray(codes).view(">u8").astype("=u8")  # (N, 4)
        columns = [self.columns[f"pdq.{word}"] for word in range(4)]
        found: dict[int, int] = {}
        for start in range(0, len(columns[0]), CHUNK):
            first, second = (np.asarray(column[start : start + CHUNK]) for column in columns[:2])
            for word in words:
                near = np.bitwise_count(first ^ word[0])
                near += np.bitwise_count(second ^ word[1])
                candidates = np.flatnonzero(near <= radius) + start
                bits = np.zeros(len(candidates), np.uint16)
                for number, column in enumerate(columns if len(candidates) else ()):
                    bits += np.bitwise_count(column[candidates] ^ word[number])
                rows = self.columns["pdq.row"][candidates[bits <= radius]]
                for row, count in zip(rows.tolist(), bits[bits <= radius].tolist(), strict=True):
                    found[row] = min(count, found.get(row, count))
        return sorted((bits, row) for row, bits in found.items())

    def row(self, number: int) -> dict[str, Any]:
        """Return the columns of ``ROW_SCHEMA`` of a row."""
        return self._table.get_batch(number // BATCH).slice(number % BATCH, 1).to_pylist()[0]
