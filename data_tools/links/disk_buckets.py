"""Rows parted into files by a number, so that a table of any length can be sorted or grouped one part at a time.

Rows wait in memory until they are many and are then appended to the files they belong to, each time as one whole Arrow
stream; a file is read as the sequence of its streams. What a killed program leaves behind is thrown away and made anew.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

from leam_mm.errors import UserError

HELD = 48 << 20  # bytes that wait in memory
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


class DiskBuckets:
    """Writes rows into ``folder/NUMBER.arrows``; the folder appears under its name when all is written.

    Args:
        folder: Where; what is there is replaced.
        held: Bytes that wait in memory before they are parted.
    """

    def __init__(self, folder: Path, held: int = HELD) -> None:
        """Make the folder beside its place."""
        self.folder, self.held = folder, held
        self._partial = folder.with_name(folder.name + ".partial")
        for old in (self._partial, folder):
            shutil.rmtree(old, ignore_errors=True)
        self._partial.mkdir(parents=True)
        self._waiting: list[tuple[pa.Table, np.ndarray]] = []
        self._bytes = 0

    def __enter__(self) -> "DiskBuckets":
        """Return itself."""
        return self

    def write(self, table: pa.Table, bucket: np.ndarray) -> None:
        """Add rows.

        Args:
            table: N rows, of the same columns every time.
            bucket: (N,), number of the file of each row, from 0.
        """
        if table.num_rows:
            self._waiting.append((table, bucket))
            self._bytes += table.nbytes
            if self._bytes >= self.held:
                self._part()

    def _part(self) -> None:
        table = pa.concat_tables([table for table, _ in self._waiting])
        bucket = np.concatenate([bucket for _, bucket in self._waiting])
        self._waiting, self._bytes = [], 0
        order = np.argsort(bucket, kind="stable")
        table, bucket = table.take(pa.array(order)), bucket[order]
        starts = np.flatnonzero(np.r_[True, bucket[1:] != bucket[:-1]])
        for start, end in zip(starts, np.r_[starts[1:], len(bucket)], strict=True):
            with (self._partial / f"{bucket[start]:06d}.arrows").open("ab") as file:
                append_stream(file, table.slice(start, end - start))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the folder its name; after an error leave it unfinished."""
        if kind is None:
            if self._waiting:
                self._part()
            os.replace(self._partial, self.folder)


def append_stream(file: pa.NativeFile, table: pa.Table) -> None:
    """Write a table as one whole stream behind what is there."""
    with pa.ipc.new_stream(file, table.schema, options=_OPTIONS) as writer:
        writer.write_table(table.combine_chunks())


def read_bucket(folder: Path, number: int) -> Iterator[pa.Table]:
    """Read a file's rows in the order they were written; nothing where no row went there.

    Raises:
        UserError: The file is damaged.
    """
    yield from read_streams(folder / f"{number:06d}.arrows")


def read_streams(path: Path) -> Iterator[pa.Table]:
    """Read the streams of one file."""
    if not path.exists():
        return
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            while file.tell() < size:
                with pa.ipc.open_stream(file) as stream:
                    yield stream.read_all()
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path} is damaged ({str(error).splitlines()[0]}): delete the work folder, start anew"
        ) from None
