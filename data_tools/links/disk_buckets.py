"""Rows distributed over files by a number, so that a table of any length can be sorted or grouped one file at a time.

Rows are collected in memory and appended to their files in large pieces, each piece a complete Arrow stream. A file is
read as a sequence of streams.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

from leam_mm.errors import UserError
from leam_mm.files import atomic_folder

HELD = 48 << 20  # bytes that are collected in memory
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


class DiskBuckets:
    """Writes rows to ``folder/NUMBER.arrows``; the folder gets its name when the context ends without an error.

    Args:
        folder: The folder; an existing one is replaced.
        held: Bytes that are collected in memory before they are distributed.
    """

    def __init__(self, folder: Path, held: int = HELD) -> None:
        """Create a temporary folder; see the class for the arguments."""
        self.held = held
        self._context = ExitStack()
        self._partial = self._context.enter_context(atomic_folder(folder))
        self._waiting: list[tuple[pa.Table, np.ndarray]] = []
        self._bytes = 0

    def __enter__(self) -> "DiskBuckets":
        """Return itself."""
        return self

    def write(self, table: pa.Table, bucket: np.ndarray) -> None:
        """Add rows.

        Args:
            table: N rows, always with the same columns.
            bucket: (N,) number of each row's file, from 0.
        """
        if table.num_rows:
            self._waiting.append((table, bucket))
            self._bytes += table.nbytes
            if self._bytes >= self.held:
                self._distribute()

    def _distribute(self) -> None:
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
        """Write the remaining rows and rename the folder; after an error remove it."""
        if kind is None and self._waiting:
            self._distribute()
        self._context.__exit__(kind, error, trace)


def append_stream(file: pa.NativeFile, table: pa.Table) -> None:
    """Append a table to a file as one complete stream."""
    with pa.ipc.new_stream(file, table.schema, options=_OPTIONS) as writer:
        writer.write_table(table.combine_chunks())


def read_bucket(folder: Path, number: int) -> Iterator[pa.Table]:
    """Yield the rows of a file in the order in which they were written; nothing if there are none.

    Raises:
        UserError: The file is damaged.
    """
    yield from read_streams(folder / f"{number:06d}.arrows")


def read_streams(path: Path) -> Iterator[pa.Table]:
    """Yield the tables of all streams of a file."""
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
            f"{path} is damaged ({str(error).splitlines()[0]}): delete the work folder and start again"
        ) from None
