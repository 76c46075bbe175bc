"""The only place that opens parquet files: what a stranger's file claims takes no more memory than the limits here.

pyarrow believes footers and page headers: a file of a kilobyte makes it ask for gigabytes. Its pages are therefore
looked at before they are read, and texts are decoded in pieces.
"""

import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from leam_mm.data.arrow_without_pandas import leave_pandas_out
from leam_mm.data.parquet_pages import DELTA_BYTE_ARRAY, DELTA_LENGTH_BYTE_ARRAY, PageHeader, page_headers

leave_pandas_out()
MAX_COLUMNS = 10_000
MAX_DENSITY = 1000  # values of a column for each byte of the file
MAX_FOOTER = 1 << 26  # bytes of a parquet file's own description
MAX_PAGE = 1 << 28  # bytes of a page, unpacked
MAX_MEMORY = 1 << 28  # bytes of a table that is read whole, beyond those that its file allows
EXPANSION = 64  # bytes of a table that is read whole, for each byte of its file
WIDEST = 8  # bytes of a number
READ = 1 << 25  # bytes that are decoded at a time, where a page does not hold more
ERRORS = (pa.ArrowException, OSError, ValueError, KeyError)  # of a file that is damaged or beyond the limits


def error_reason(error: BaseException) -> str:
    """Return the first line of an error of ``ERRORS``, for messages."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]


@contextmanager
def own_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a file of a work folder, which this program itself has written; it is trusted."""
    with pq.ParquetFile(path) as file:
        yield file


@contextmanager
def open_parquet(source: Path | bytes) -> "Iterator[ForeignParquet]":
    """Open a parquet file that may be hostile.

    Args:
        source: The file, or its content.

    Raises:
        ValueError: It breaks a limit.
        OSError, pa.ArrowException: It is missing or damaged.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as raw:
        size = raw.seek(0, os.SEEK_END)
        raw.seek(max(0, size - 8))
        if int.from_bytes(raw.read(4), "little") > MAX_FOOTER:
            raise ValueError(f"its footer has more than {MAX_FOOTER} bytes")
        given = pa.BufferReader(source) if isinstance(source, bytes) else source
        with pq.ParquetFile(given, pre_buffer=False, thrift_container_size_limit=1_000_000) as file:
            if file.metadata.num_columns > MAX_COLUMNS:
                raise ValueError(f"it has {file.metadata.num_columns} columns, more than {MAX_COLUMNS}")
            if file.metadata.num_rows > MAX_DENSITY * size:
                raise ValueError(f"it claims {file.metadata.num_rows} rows in {size} bytes")
            yield ForeignParquet(source, raw, size, file)


class ForeignParquet:
    """An open parquet file whose pages are looked at before they are read.

    Args:
        source: The file, or its content.
        raw: The same, opened.
        size: Its bytes.
        file: The same, its footer read.
    """

    def __init__(self, source: Path | bytes, raw: BinaryIO, size: int, file: pq.ParquetFile) -> None:
        """See the class for the arguments."""
        self._source, self._raw, self._size, self._file = source, raw, size, file
        self.schema: pa.Schema = file.schema_arrow
        self.rows: int = file.metadata.num_rows

    def coded_batches(self, rows: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Read some columns in batches; in those of text and bytes, equal values of a batch are held once, if possible.

        Args:
            rows: Most rows of a batch; there are fewer where values are long.
            columns: Names of columns that are not nested.

        Raises:
            ValueError: A column is nested, a page breaks a limit, or there are other rows than the file claims.
        """
        single = several = 1  # bytes of a value, if equal ones are held once, and if not
        delta = False
        for page in self._pages(columns):
            average = page.unpacked // max(page.values, 1) if page.is_data else 0
            single = max(single, average)
            several = max(several, average if page.is_data and page.encoding != DELTA_BYTE_ARRAY else page.unpacked)
            delta = delta or page.encoding in (DELTA_BYTE_ARRAY, DELTA_LENGTH_BYTE_ARRAY)
        at_once = max(1, min(rows, READ // (several if delta else single)))
        # pyarrow gives no dictionaries for these two encodings.
        as_dictionary = [] if delta else list(columns)
        given = pa.BufferReader(self._source) if isinstance(self._source, bytes) else self._source
        with pq.ParquetFile(
            given, metadata=self._file.metadata, pre_buffer=False, buffer_size=1 << 20, read_dictionary=as_dictionary
        ) as file:
            yield from self._all_rows(file.iter_batches(at_once, columns=list(columns), use_threads=False), columns)

    def batches(self, rows: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Read columns, by default all, in batches of at most ``rows`` rows; see ``coded_batches`` for errors.

        Raises:
            ValueError: A batch takes more memory than ``MAX_MEMORY``.
        """
        names = list(self.schema.names if columns is None else columns)
        schema = self._plain_schema(names)
        for batch in self.coded_batches(rows, names):
            yield plain_batch(batch, MAX_MEMORY).cast(schema)

    def nested_batches(self, rows: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Read some columns in batches; they may be nested, and hold bytes of images.

        Args:
            rows: Most rows of a batch; there are fewer where values are long.
            columns: Names of columns.

        Raises:
            ValueError: A page breaks a limit, a column claims too many values, a batch takes more than
                ``MAX_MEMORY``, or there are other rows than the file claims.
        """
        longest, values = 1, Counter[str]()
        for page in self._pages(columns, nested=True):
            single = page.unpacked // max(page.values, 1) if page.is_data else page.unpacked
            longest = max(longest, page.unpacked if page.encoding == DELTA_BYTE_ARRAY else single)
            values[page.column] += page.values
        if values and max(values.values()) > MAX_DENSITY * self._size:
            raise ValueError(f"a column claims {max(values.values())} values in {self._size} bytes")
        at_once = max(1, min(rows, READ // longest))
        batches = self._file.iter_batches(at_once, columns=list(columns), use_threads=False)
        for batch in self._all_rows(batches, columns):
            if batch.nbytes > MAX_MEMORY:
                raise ValueError("it takes too much memory for a file of its size")
            batch.validate(full=True)
            yield batch

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read columns, by default all, as a whole; see ``coded_batches`` for errors.

        Raises:
            ValueError: They take more memory than ``MAX_MEMORY`` and ``EXPANSION`` allow.
        """
        names = list(self.schema.names if columns is None else columns)
        free, schema, parts = MAX_MEMORY + EXPANSION * self._size, self._plain_schema(names), []
        if self._most_memory(names) <= free:
            # No thread pool: one that existed before a fork has no threads in the worker.
            table = self._file.read(names, use_threads=False).select(names).cast(schema)
            self._check_rows(len(table))
            return table.replace_schema_metadata(self.schema.metadata)
        for batch in self.coded_batches(1 << 20, names):
            parts.append(plain_batch(batch, free))
            free -= parts[-1].nbytes
        table = pa.Table.from_batches(parts).cast(schema) if parts else schema.empty_table()
        return table.replace_schema_metadata(self.schema.metadata)

    def _all_rows(self, batches: Iterator[pa.RecordBatch], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Return batches with their columns in order; fail at the end if they do not hold all rows."""
        found = 0
        for batch in batches:
            found += len(batch)
            yield batch.select(columns)
        self._check_rows(found)

    def _check_rows(self, found: int) -> None:
        """Fail if another number of rows was read than the footer claims, which pyarrow does not compare."""
        if found != self.rows:
            raise ValueError(f"it claims {self.rows} rows and has {found}")

    def _pages(self, columns: Sequence[str], nested: bool = False) -> list[PageHeader]:
        for name in columns:
            if pa.types.is_nested(kind := self.schema.field(name).type) and not nested:
                raise ValueError(f"the column {name} is of type {str(kind)[:200]}")
        pages = []
        for page in page_headers(self._raw, set(columns)):
            if page.unpacked > MAX_PAGE:
                raise ValueError(f"a page has {page.unpacked} bytes, more than {MAX_PAGE}; write smaller ones")
            pages.append(page)
        return pages

    def _most_memory(self, columns: Sequence[str]) -> int:
        """Return the bytes that columns cannot exceed, as if each value were as long as a page of its column."""
        longest, values = Counter[str](), Counter[str]()
        for page in self._pages(columns):
            fixed = pa.types.is_primitive(self.schema.field(page.column).type)
            longest[page.column] = max(longest[page.column], WIDEST if fixed else page.unpacked)
            values[page.column] += page.values
        return sum(longest[name] * values[name] for name in columns)

    def _plain_schema(self, names: Sequence[str]) -> pa.Schema:
        kinds = {name: self.schema.field(name).type for name in names}
        return pa.schema(
            [(name, kind.value_type if pa.types.is_dictionary(kind) else kind) for name, kind in kinds.items()]
        )


def plain_batch(batch: pa.RecordBatch, free: int) -> pa.RecordBatch:
    """Return a batch without dictionaries.

    Args:
        batch: Its columns are not nested.
        free: Bytes that it may have then.

    Raises:
        ValueError: It has more, or points outside of a dictionary.
    """
    columns = []
    for column in batch.columns:
        if isinstance(column, pa.DictionaryArray):
            values, index = column.dictionary, column.indices.cast(pa.int64())
            if len(index) > index.null_count and not 0 <= pc.min(index).as_py() <= pc.max(index).as_py() < len(values):
                raise ValueError("a dictionary is damaged")  # pyarrow does not compare them
            if not pa.types.is_primitive(values.type):
                free -= pc.sum(pc.binary_length(values).take(index)).as_py() or 0
            column = values.take(index) if free >= 0 else column
        else:
            free -= column.nbytes
        if free < 0:
            raise ValueError("it takes too much memory for a file of its size")
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, batch.schema.names)
