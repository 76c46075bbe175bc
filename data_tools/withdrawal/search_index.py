"""The files behind data_tools/sample_search.py: sorted digests and perceptual hashes, mapped into memory when asked.

For each of sha256, url, domain and caption: the first 128 bits of SHA-256 of what is looked for, as two columns of
64 bits, sorted, and the row that each belongs to. PDQ hashes lie in four columns of 64 bits, in the order of the rows:
a question runs through two of them, and only what is near enough there is compared in full (of random hashes and 31
bits, 2 of a thousand million), so that the answer is exact. ``rows.arrow`` holds what is told of a row.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from leam_mm.errors import UserError

FORMAT = "leam_mm search index 1"
DESCRIPTION, ROWS = "search.json", "rows.arrow"
KINDS = ("sha256", "url", "domain", "caption")
ENTRY = np.dtype([("high", ">u8"), ("low", ">u8"), ("row", "<u4")])
CODE = np.dtype([("words", ">u8", (4,)), ("row", "<u4")])
TOLD = pa.schema(
    [(name, pa.string()) for name in ("data_set", "key", "uid", "url")]
    + [("kept", pa.bool_()), ("reason", pa.string())]
)
BATCH = 1 << 16  # rows of rows.arrow that lie together
CHUNK = 1 << 16  # hashes that are compared at a time: their columns fit a core's cache


def digest_of(text: str) -> bytes:
    """The 128 bits under which a text is filed."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


class IndexWriter:
    """Writes an index beside its place and renames it at the end.

    Args:
        folder: Of the index; an older one is replaced.
        data_sets: What stands in it of the data: names, Merkle roots, samples.
    """

    def __init__(self, folder: Path, data_sets: list[dict[str, Any]]) -> None:
        """Open the files; see the class for the arguments."""
        self.folder, self.data_sets = folder, data_sets
        self._place = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
        shutil.rmtree(self._place, ignore_errors=True)
        self._place.mkdir(parents=True)
        self._files: dict[str, BinaryIO] = {name: self._raw(name).open("wb") for name in (*KINDS, "pdq")}
        self._told = pa.ipc.new_file(self._place / ROWS, TOLD)
        self._waiting: list[dict[str, Any]] = []
        self.rows = 0

    def _raw(self, name: str) -> Path:
        return self._place / f"{name}.raw"

    def __enter__(self) -> "IndexWriter":
        """Return itself."""
        return self

    def add(self, told: dict[str, Any], found_by: dict[str, Iterable[bytes]], pdq: bytes | None) -> None:
        """Append a row.

        Args:
            told: Columns of ``TOLD``.
            found_by: 16 bytes each, by kind.
            pdq: Its hash, 32 bytes, or None.
        """
        row = np.array(self.rows + len(self._waiting), "<u4").tobytes()
        for kind, digests in found_by.items():
            for digest in digests:
                self._files[kind].write(digest + row)
        if pdq is not None:
            self._files["pdq"].write(pdq + row)
        self._waiting.append(told)
        if len(self._waiting) == BATCH:
            self._flush()

    def add_rows(self, told: pa.RecordBatch, found_by: dict[str, np.ndarray], pdq: np.ndarray) -> None:
        """Append ``BATCH`` rows at once (fewer in the last): (B, 16) uint8 of each kind, and PDQ (B, 32) uint8."""
        numbers = np.arange(self.rows, self.rows + told.num_rows, dtype="<u4")
        for kind, digests in {**found_by, "pdq": pdq}.items():
            joined = np.concatenate([digests, numbers[:, None].view(np.uint8)], axis=1)
            self._files[kind].write(joined.tobytes())
        self._told.write_batch(told)
        self.rows += told.num_rows

    def _flush(self) -> None:
        if self._waiting:
            self._told.write_batch(pa.RecordBatch.from_pylist(self._waiting, TOLD))
            self.rows += len(self._waiting)
            self._waiting = []

    def _sort(self) -> dict[str, int]:
        """Turn what was appended into sorted columns; one kind at a time is in memory."""
        counts = {}
        for kind in KINDS:
            entries = np.fromfile(self._raw(kind), ENTRY)
            order = np.lexsort((entries["row"], entries["high"].astype("=u8")))
            for name in ("high", "low", "row"):
                column = entries[name][order]
                np.save(self._place / f"{kind}.{name}.npy", column.astype(column.dtype.newbyteorder("=")))
            counts[kind] = len(entries)
            self._raw(kind).unlink()
        codes = np.fromfile(self._raw("pdq"), CODE)
        for word in range(4):
            np.save(self._place / f"pdq.{word}.npy", codes["words"][:, word].astype("=u8"))
        np.save(self._place / "pdq.row.npy", codes["row"].astype("=u4"))
        self._raw("pdq").unlink()
        return counts | {"pdq": len(codes)}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Sort and rename; after an error leave nothing behind."""
        try:
            for file in self._files.values():
                file.close()
            if kind is None:
                self._flush()
                self._told.close()
                description = {"format": FORMAT, "data_sets": self.data_sets, "rows": self.rows} | {
                    "entries": self._sort()
                }
                (self._place / DESCRIPTION).write_text(json.dumps(description, indent=1), encoding="utf-8")
                shutil.rmtree(self.folder, ignore_errors=True)
                os.replace(self._place, self.folder)
        finally:
            shutil.rmtree(self._place, ignore_errors=True)


class SearchIndex:
    """An index as it is asked; only the pages that an answer needs are read.

    Args:
        folder: What IndexWriter wrote.
    """

    def __init__(self, folder: Path) -> None:
        """Map the files; see the class for the arguments."""
        self.folder = folder
        try:
            self.about = json.loads((folder / DESCRIPTION).read_text("utf-8"))
            if self.about["format"] != FORMAT:
                raise ValueError(f"format {self.about['format']!r}")
            names = [f"{kind}.{name}" for kind in KINDS for name in ("high", "low", "row")]
            names += [f"pdq.{name}" for name in (0, 1, 2, 3, "row")]
            self.columns = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
            self._told = pa.ipc.open_file(pa.memory_map(str(folder / ROWS)))
            self.rows = int(self.about["rows"])
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise UserError(
                f"{folder} is no search index ({str(error).splitlines()[0]}): build it with data_tools/sample_search.py"
            ) from None

    def find(self, kind: str, digest: bytes) -> np.ndarray:
        """Rows filed under 16 bytes, ascending."""
        high = np.frombuffer(digest[:8], ">u8").astype("=u8")[0]
        low = np.frombuffer(digest[8:16], ">u8").astype("=u8")[0]
        column = self.columns[f"{kind}.high"]
        first, last = np.searchsorted(column, high), np.searchsorted(column, high, "right")
        return np.array(self.columns[f"{kind}.row"][first:last])[self.columns[f"{kind}.low"][first:last] == low]

    def near(self, codes: np.ndarray, radius: int) -> list[tuple[int, int]]:
        """Rows whose PDQ hash differs from any of the codes in at most so many bits.

        Args:
            codes: (Q, 32) uint8, hashes of one picture in several positions.
            radius: In bits.

        Returns:
            (bits, row), nearest first; each row once.
        """
        words = np.ascontiguousarray(codes).view(">u8").astype("=u8")  # (Q, 4)
        columns = [self.columns[f"pdq.{word}"] for word in range(4)]
        found: dict[int, int] = {}
        for start in range(0, len(columns[0]), CHUNK):
            first, second = (np.asarray(column[start : start + CHUNK]) for column in columns[:2])
            for word in words:
                near = np.bitwise_count(first ^ word[0])
                near += np.bitwise_count(second ^ word[1])
                places = np.flatnonzero(near <= radius) + start
                bits = np.zeros(len(places), np.uint16)
                for at, column in enumerate(columns if len(places) else ()):
                    bits += np.bitwise_count(column[places] ^ word[at])
                rows = self.columns["pdq.row"][places[bits <= radius]]
                for row, count in zip(rows.tolist(), bits[bits <= radius].tolist(), strict=True):
                    found[row] = min(count, found.get(row, count))
        return sorted((bits, row) for row, bits in found.items())

    def told(self, row: int) -> dict[str, Any]:
        """What is known of a row."""
        return self._told.get_batch(row // BATCH).slice(row % BATCH, 1).to_pylist()[0]
