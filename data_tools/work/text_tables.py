"""Read tables of text that come from strangers, in batches whose memory no table can exceed.

Formats: parquet; csv and tsv (csv_table.py); JSON lines and arrays (json_table.py); lists of addresses in txt. All but
parquet may be compressed (``.gz``) and in UTF-16 (text_file.py).

A row that breaks a limit stays in the table, shortened, with the reason in the column ``too_long``: whoever reads the
table records it. What cannot be read row by row, such as a damaged file, is an error of the whole table.
"""

import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_tools.work.csv_table import Choose, csv_parts
from data_tools.work.json_table import KEPT, TOO_LONG, Row, json_rows
from data_tools.work.nested_cells import check_nested, json_cells
from data_tools.work.text_file import MAX_LINE, open_text, rest_of_line, table_suffix
from leam_mm.data.parquet_file import READ, open_parquet
from leam_mm.errors import UserError

MAX_CELL = 1 << 16  # bytes of a cell
MAX_BATCH = 1 << 27  # bytes of all cells of a batch
NULL = pa.nulls(1, pa.int64())[0]  # pa.scalar would import pandas


def text_batches(
    path: Path, rows: int, choose: Choose, suffixes: Collection[str] = (), encoding: str = ""
) -> Iterator[pa.Table]:
    """Read a table of any length in batches, in constant memory.

    Args:
        path: A file in one of the formats of ``READERS``.
        rows: Rows of each batch; only the last one is shorter.
        choose: Returns those of a file's columns that are read, or raises UserError. It is asked again where later
            lines of a JSON file have more columns.
        suffixes: Endings to accept; by default all of ``READERS``.
        encoding: Encoding of a text file without a mark; empty for UTF-8.

    Yields:
        Tables of strings. A batch with rows that break a limit has the column ``TOO_LONG``.

    Raises:
        UserError: The file is missing or unreadable, or breaks a limit as a whole. An empty file is no error.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file: give an existing table ({', '.join(suffixes or READERS)})")
    suffix = table_suffix(path)
    packed = path.name.lower().endswith(".gz")
    if suffix not in (suffixes or READERS) or (packed and suffix == ".parquet"):
        *first, last = suffixes or READERS
        raise UserError(f"{path}: the ending {path.suffix!r} is not supported; use {', '.join(first)} or {last}")
    waiting: list[pa.Table] = []
    held, free = 0, MAX_BATCH
    try:
        for part in READERS[suffix](path, rows, choose, encoding):
            while part.num_rows:
                checked, used = _checked(part.slice(0, rows - held), free)
                part, held, free = part.slice(checked.num_rows), held + checked.num_rows, free - used
                waiting.append(checked)
                if held == rows:
                    yield _joined(waiting)
                    waiting, held, free = [], 0, MAX_BATCH
    except (pa.ArrowException, OSError, EOFError, ValueError, KeyError, RecursionError, zlib.error) as error:
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path} cannot be read as {suffix[1:]} ({message}); write it again, with all columns as strings"
        ) from None
    if held:
        yield _joined(waiting)


def text_entries(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a list with their numbers, without comments (``#``) and empty lines.

    Raises:
        UserError: The file is not readable or not UTF-8, or has a line of more than ``MAX_LINE`` characters.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), ""), 1):
                if len(line) == MAX_LINE:
                    raise ValueError(f"line {number} has more than {MAX_LINE} characters")
                if text := line.partition("#")[0].strip():
                    yield number, text
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); give a UTF-8 text file of one entry a line") from None


def _joined(parts: list[pa.Table]) -> pa.Table:
    table = pa.concat_tables(parts, promote_options="default").combine_chunks()
    return table if table[TOO_LONG].null_count < table.num_rows else table.drop_columns([TOO_LONG])


def _checked(part: pa.Table, free: int) -> tuple[pa.Table, int]:
    """Shorten the rows that break a limit.

    Args:
        part: Columns of bytes or text, possibly as dictionaries.
        free: Bytes that the rows may have together.

    Returns:
        A table of strings with the column ``TOO_LONG``, and the bytes of its cells.
    """
    given = part[TOO_LONG].to_pylist() if TOO_LONG in part.column_names else [None] * part.num_rows
    reasons: dict[int, str] = {row: reason for row, reason in enumerate(given) if reason}
    columns: dict[str, tuple[pa.Array, pa.Array]] = {}
    total = np.zeros(part.num_rows, np.int64)
    for name in part.column_names:
        if name == TOO_LONG:
            continue
        values, index = _distinct(part[name])
        length = pc.fill_null(pc.binary_length(values), 0).cast(pa.int64()).to_numpy(zero_copy_only=False)
        lengths = _taken(length, index)
        for row in np.flatnonzero(lengths > MAX_CELL):
            reasons.setdefault(int(row), f"{name} has {lengths[row]} bytes, more than {MAX_CELL}")
        values, broken = _decoded(values)
        for row in np.flatnonzero(_taken(broken, index)):
            reasons.setdefault(int(row), f"{name} is not UTF-8")
        total += lengths
        columns[name] = values, index
    stays = np.ones(part.num_rows, bool)
    stays[list(reasons)] = False
    for row in np.flatnonzero(stays & (np.cumsum(np.where(stays, total, 0)) > free)):
        reasons[int(row)] = f"the rows around it have more than {MAX_BATCH} bytes together"
        stays[row] = False
    texts = {}
    for name, (values, index) in columns.items():
        whole = values.take(pc.if_else(pa.array(stays), index, NULL))
        short = pc.utf8_slice_codeunits(values, 0, KEPT) if reasons else values
        texts[name] = pc.coalesce(whole, short.take(pc.if_else(pa.array(stays), NULL, index))) if reasons else whole
    texts[TOO_LONG] = pa.array([reasons.get(row) for row in range(part.num_rows)], pa.string())
    return pa.table(texts), int(total[stays].sum())


def _distinct(column: pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
    """Return the values of a column as bytes, and the number of each row's value (null for null)."""
    if pa.types.is_dictionary(column.type):
        array = column.unify_dictionaries().combine_chunks() if column.num_chunks else None
        array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
        if array is not None and (
            pa.types.is_string(array.dictionary.type) or pa.types.is_binary(array.dictionary.type)
        ):
            values, index = array.dictionary.cast(pa.binary()), array.indices.cast(pa.int64())
            if len(index) > index.null_count and not 0 <= pc.min(index).as_py() <= pc.max(index).as_py() < len(values):
                raise ValueError("a dictionary is damaged")  # pyarrow does not compare them
            return values, index
        column = column.cast(column.type.value_type)
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        column = column.cast(pa.string())
    array = column.cast(pa.binary()).combine_chunks()
    array = pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
    numbers = pa.array(np.arange(len(array)), pa.int64())
    return array, numbers if not array.null_count else pc.if_else(array.is_valid(), numbers, NULL)


def _taken(values: np.ndarray, index: pa.Array) -> np.ndarray:
    """Return the value of each row, 0 where it is null."""
    if not len(values):
        return np.zeros(len(index), values.dtype)
    return np.where(index.is_valid().to_numpy(zero_copy_only=False), values[index.fill_null(0).to_numpy()], 0)


def _decoded(values: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Return bytes as text, and which of them are not UTF-8."""
    try:
        return values.cast(pa.string()), np.zeros(len(values), bool)
    except pa.ArrowInvalid:
        texts = [None if value is None else value.decode("utf-8", "replace") for value in values.to_pylist()]
        broken = [
            text is not None and text.encode() != value for text, value in zip(texts, values.to_pylist(), strict=True)
        ]
        return pa.array(texts, pa.string()), np.array(broken, bool)


def _parquet_parts(path: Path, rows: int, choose: Choose, encoding: str) -> Iterator[pa.Table]:
    with open_parquet(path) as file:
        names = choose(file.schema.names)
        kinds = {name: file.schema.field(name).type for name in names}
        nested = {name: kind for name, kind in kinds.items() if pa.types.is_nested(kind)}
        for name, kind in nested.items():
            check_nested(name, kind)
        for batch in file.nested_batches(rows, names) if nested else file.coded_batches(rows, names):
            yield _flat(batch, nested) if nested else pa.Table.from_batches([batch])


def _flat(batch: pa.RecordBatch, nested: Collection[str]) -> pa.Table:
    """Return a batch whose nested columns are JSON; rows that are too long have their reason in ``TOO_LONG``."""
    columns, reasons = dict[str, pa.Array](), dict[int, str]()
    for name in batch.schema.names:
        columns[name] = batch.column(name)
        if name in nested:
            columns[name], broken = json_cells(name, columns[name], MAX_CELL)
            reasons = broken | reasons
    columns[TOO_LONG] = pa.array([reasons.get(row) for row in range(batch.num_rows)], pa.string())
    return pa.table(columns)


def _csv_parts(path: Path, rows: int, choose: Choose, encoding: str) -> Iterator[pa.Table]:
    yield from csv_parts(path, rows, choose, encoding)


def _json_parts(path: Path, rows: int, choose: Choose, encoding: str) -> Iterator[pa.Table]:
    with open_text(path, encoding) as file:
        yield from _row_parts(json_rows(file, table_suffix(path) == ".json"), rows, choose)


def _list_parts(path: Path, rows: int, choose: Choose, encoding: str) -> Iterator[pa.Table]:
    """Yield a list of addresses, one a line, without comments and empty lines; lines with tabs are a table."""
    with open_text(path, encoding) as file:
        is_table = b"\t" in file.read(MAX_LINE)
    if is_table:
        yield from csv_parts(path, rows, choose, encoding)
        return
    with open_text(path, encoding) as file:
        yield from _row_parts(_list_rows(file), rows, choose)


def _list_rows(lines: BinaryIO) -> Iterator[tuple[Row, int]]:
    while line := lines.readline(MAX_LINE):
        if len(line) == MAX_LINE and not line.endswith(b"\n"):
            for _ in rest_of_line(lines.readline):
                pass
            yield {TOO_LONG: f"the line has more than {MAX_LINE} bytes"}, KEPT
            continue
        try:
            text = line.decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            yield {TOO_LONG: "the line is not UTF-8"}, KEPT
            continue
        if text and not text.startswith("#"):
            yield {"url": text}, len(line)


def _row_parts(found: Iterator[tuple[Row, int]], rows: int, choose: Choose) -> Iterator[pa.Table]:
    waiting: list[Row] = []
    held, known = 0, dict[str, None]()
    for row, length in found:
        waiting.append(row)
        known |= dict.fromkeys(name for name in row if name != TOO_LONG)
        held += length
        if known and (len(waiting) == rows or held > READ):
            yield _row_table(waiting, choose(known.keys()))
            waiting, held = [], 0
    if waiting:
        yield _row_table(waiting, choose(known.keys()))


def _row_table(rows: list[Row], names: list[str]) -> pa.Table:
    return pa.table({name: pa.array([row.get(name) for row in rows], pa.string()) for name in (*names, TOO_LONG)})


READERS = {
    ".parquet": _parquet_parts,
    ".csv": _csv_parts,
    ".tsv": _csv_parts,
    ".jsonl": _json_parts,
    ".json": _json_parts,
    ".txt": _list_parts,
}
