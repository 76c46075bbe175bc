"""Read tables of text that come from strangers (parquet, csv, jsonl), in batches whose memory no table can exceed.

A row that breaks a limit stays in the table, shortened, with the reason in the column ``too_long``: whoever reads the
table records it. What cannot be read row by row, such as a damaged file, is an error of the whole table.
"""

import io
import json
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from leam_mm.data.parquet_file import MAX_COLUMNS, READ, open_parquet
from leam_mm.errors import UserError

TOO_LONG = "too_long"  # column with the reason why a row is refused; only in batches that have such rows
MAX_CELL = 1 << 16  # bytes of a cell
MAX_BATCH = 1 << 27  # bytes of all cells of a batch
MAX_LINE = 1 << 20  # bytes of a line of csv or jsonl
KEPT = 200  # characters that stay of the cells of a refused row
NULL = pa.nulls(1, pa.int64())[0]  # pa.scalar would import pandas
OPENING = re.compile(rb'(?:\A(?:\xef\xbb\xbf)?|[,\r\n])"')  # of a quoted cell; elsewhere a quote is a letter
WHOLE = re.compile(rb'[^"]*+(?:(?<![^,])"[^"]*+(?:""[^"]*+)*+"[^"]*+)*+')  # lines whose cells all end, the usual case
CLOSING = re.compile(rb'[^"]*+(?:""[^"]*+)*+"')  # from within a quoted cell
Choose = Callable[[Collection[str]], list[str]]  # from the columns of a file to those that are read


def text_batches(path: Path, rows: int, choose: Choose, suffixes: Collection[str] = ()) -> Iterator[pa.Table]:
    """Read a table of any length in batches, in constant memory.

    Args:
        path: A parquet, csv or jsonl file.
        rows: Rows of each batch; only the last one is shorter.
        choose: Returns those of a file's columns that are read, or raises UserError.
        suffixes: Endings to accept; by default all of ``READERS``.

    Yields:
        Tables of strings. A batch with rows that break a limit has the column ``TOO_LONG``.

    Raises:
        UserError: The file is missing or unreadable, or breaks a limit as a whole. An empty file is no error.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file: give an existing table ({', '.join(suffixes or READERS)})")
    if path.suffix not in (suffixes or READERS):
        *first, last = suffixes or READERS
        raise UserError(f"{path}: the ending {path.suffix!r} is not supported; use {', '.join(first)} or {last}")
    waiting: list[pa.Table] = []
    held, free = 0, MAX_BATCH
    try:
        for part in READERS[path.suffix](path, rows, choose):
            while part.num_rows:
                checked, used = _checked(part.slice(0, rows - held), free)
                part, held, free = part.slice(checked.num_rows), held + checked.num_rows, free - used
                waiting.append(checked)
                if held == rows:
                    yield _joined(waiting)
                    waiting, held, free = [], 0, MAX_BATCH
    except (pa.ArrowException, OSError, ValueError, KeyError, RecursionError) as error:
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path} cannot be read as {path.suffix[1:]} ({message}); write it again, with all columns as strings"
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
    table = pa.concat_tables(parts).combine_chunks()
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


def _parquet_parts(path: Path, rows: int, choose: Choose) -> Iterator[pa.Table]:
    with open_parquet(path) as file:
        names = choose(file.schema.names)
        for batch in file.coded_batches(rows, names):
            yield pa.Table.from_batches([batch])


def _csv_parts(path: Path, rows: int, choose: Choose) -> Iterator[pa.Table]:
    with path.open("rb") as file:
        start = file.read(MAX_LINE)
    first = re.search(rb"\r?\n|\r", start)
    commas = start[: first and first.start()].count(b",")
    if commas >= MAX_COLUMNS:
        raise ValueError(f"it has more than {MAX_COLUMNS} columns")
    form = commas, b"\r" if first and first[0] == b"\r" else b"\n"
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    read = pyarrow.csv.ReadOptions(block_size=2 * MAX_LINE)
    with path.open("rb") as file, pyarrow.csv.open_csv(_ShortLines(file, *form), read, parse) as reader:
        names = choose(reader.schema.names)
    # As bytes, because one cell that is not UTF-8 must not end the table.
    options = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.binary()), include_columns=names)
    with path.open("rb") as file, pyarrow.csv.open_csv(_ShortLines(file, *form), read, parse, options) as reader:
        for batch in reader:
            yield pa.Table.from_batches([batch])


class _ShortLines(io.RawIOBase):
    """A csv file without what goes beyond ``MAX_LINE`` in its lines.

    Quotes stay balanced, and cells that are cut off are empty.

    Args:
        file: The file.
        commas: Commas of its first line.
        end: What ends a line; some spreadsheets write a carriage return alone.

    Raises:
        UserError: While reading, a quoted cell does not end as a cell does: all rows behind it would become one.
    """

    def __init__(self, file: BinaryIO, commas: int, end: bytes) -> None:
        self.commas, self.end, self.rest = commas, end, b""
        self.name, self.number = file.name, 0
        self.opened = self.spanned = 0  # line in which the current quoted cell begins, or 0; bytes of its lines
        self.next_line: Callable[[int], bytes] = file.readline
        if end == b"\r":  # lines of bytes end at line feeds only
            text = io.TextIOWrapper(file, "latin-1", newline="\r")
            self.next_line = lambda size: text.readline(size).encode("latin-1")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        pieces, held = [self.rest], len(self.rest)
        while held < size and (line := self._line()):
            pieces.append(line)
            held += len(line)
        whole = b"".join(pieces)
        self.rest = whole[size:]
        return whole[:size]

    def _line(self) -> bytes:
        line = self.next_line(MAX_LINE)
        if len(line) == MAX_LINE and not line.endswith(self.end):
            quotes = sum(piece.count(b'"') for piece in _rest_of_line(self.next_line, self.end))
            line += b'"' if quotes % 2 else b""
            parts = line.split(b'"')
            if len(parts) % 2:  # the row ends here, not inside a cell of several lines
                line += b"," * (self.commas - sum(part.count(b",") for part in parts[::2]))
            line += self.end
        self.number += 1
        if self.opened or not WHOLE.fullmatch(line):
            self._follow_quotes(line)
        return line

    def _follow_quotes(self, line: bytes) -> None:
        """Note whether a quoted cell continues in the next line."""
        self.spanned += len(line)
        start, broken = 0, not line
        while not broken:
            if not self.opened:
                opening = OPENING.search(line, start)
                if not opening:
                    return
                self.opened, self.spanned, start = self.number, len(line), opening.end()
            closing = CLOSING.match(line, start)
            if not closing:
                broken = self.spanned > 2 * MAX_LINE
                break
            start = closing.end()
            broken = self.opened < self.number and line[start : start + 1] not in (b",", b"\r", b"\n", b"")
            self.opened = self.opened if broken else 0
        if broken:
            raise UserError(
                f"{self.name}: the quote that opens a cell in line {self.opened} is not closed: close it there, or "
                "double it if it is a letter of the cell"
            )


def _rest_of_line(readline: Callable[[int], bytes], end: bytes = b"\n") -> Iterator[bytes]:
    while piece := readline(MAX_LINE):
        yield piece
        if piece.endswith(end):
            return


def _jsonl_parts(path: Path, rows: int, choose: Choose) -> Iterator[pa.Table]:
    with path.open("rb") as lines:
        waiting: list[dict[str, str | None]] = []
        held, known = 0, set[str]()
        for row, length in _json_rows(lines):
            waiting.append(row)
            known |= row.keys() - {TOO_LONG}
            held += length
            if known and (len(waiting) == rows or held > READ):
                yield _row_table(waiting, choose(known))
                waiting, held = [], 0
        if waiting:
            yield _row_table(waiting, choose(known))


def _row_table(rows: list[dict[str, str | None]], names: list[str]) -> pa.Table:
    return pa.table({name: pa.array([row.get(name) for row in rows], pa.string()) for name in (*names, TOO_LONG)})


def _json_rows(lines: BinaryIO) -> Iterator[tuple[dict[str, str | None], int]]:
    """Yield the rows, with all values as text, and their bytes in the file."""
    while line := lines.readline(MAX_LINE):
        if len(line) == MAX_LINE and not line.endswith(b"\n"):
            for _ in _rest_of_line(lines.readline):
                pass
            yield {TOO_LONG: f"the line has more than {MAX_LINE} bytes"}, KEPT
        elif line.strip():
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except json.JSONDecodeError:
                raise
            except ValueError as error:  # no UTF-8, or a number of thousands of digits
                yield {TOO_LONG: f"the line cannot be read: {str(error)[:KEPT]}"}, KEPT
                continue
            if not isinstance(row, dict):
                raise ValueError("a line is not a JSON object")
            yield {name: _text(value) for name, value in row.items() if name != TOO_LONG}, len(line)


def _text(value: object) -> str | None:
    text = value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if text is None or text.isascii() else text.encode("utf-8", "replace").decode()  # "\\ud800" in JSON


READERS = {".parquet": _parquet_parts, ".csv": _csv_parts, ".jsonl": _jsonl_parts}
