"""Read tables of text whose lines are divided by commas, semicolons, tabs or bars, with or without a line of names.

The delimiter is the one that gives the first line most cells. A first line with an address or the name of an image file
holds no names: of two columns, the one with addresses is then ``url`` and the other ``caption``; other columns are
named by their number, from 1. Cells may be quoted (RFC 4180), except in tables of tabs without names, which quote
nothing (Conceptual Captions writes them so).
"""

import csv
import functools
import io
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.csv

from data_tools.work.text_file import MAX_LINE, open_text, rest_of_line, table_suffix
from leam_mm.data.parquet_file import MAX_COLUMNS
from leam_mm.errors import UserError

DELIMITERS = (",", ";", "\t", "|")  # of equal counts the first counts
ADDRESS = re.compile(
    r"\s*[A-Za-z][A-Za-z0-9+.-]+://|\s*file:|[^\n]*\.(?:png|jpe?g|webp|gif|bmp|tiff?|avif|svg)\s*$", re.I
)
Choose = Callable[[Collection[str]], list[str]]  # from the columns of a file to those that are read


@dataclass(frozen=True)
class CsvLayout:
    """How the lines of a table are divided.

    Args:
        delimiter: Character between cells.
        names: Names of the columns, or None if the first line holds them.
        columns: Number of columns.
        end: What ends a line; some spreadsheets write a carriage return alone.
        quoted: Whether cells may be quoted.
    """

    delimiter: str
    names: tuple[str, ...] | None
    columns: int
    end: bytes
    quoted: bool


def csv_layout(path: Path, encoding: str = "") -> CsvLayout:
    """Recognise the layout of a table from its first line.

    Raises:
        ValueError: The line has more than ``MAX_COLUMNS`` columns, or cannot be divided.
    """
    with open_text(path, encoding) as file:
        start = file.read(MAX_LINE)
    first = re.search(rb"\r?\n|\r", start)
    end = b"\r" if first and first[0] == b"\r" else b"\n"
    line = start[: first and first.start()]
    delimiters = "\t" if table_suffix(path) == ".tsv" else DELIMITERS
    if max(line.count(delimiter.encode()) for delimiter in delimiters) >= MAX_COLUMNS:
        raise ValueError(f"it has more than {MAX_COLUMNS} columns")
    text = start[: 1 << 18].decode("utf-8-sig", "replace")
    found = {delimiter: _first_cells(text, delimiter) for delimiter in delimiters}
    if "\t" in found and any(map(ADDRESS.match, found["\t"])) and len(found["\t"]) > 1:
        delimiter = "\t"  # captions have commas, addresses have no tabs
    else:
        delimiter = max(found, key=lambda name: len(found[name]))
    cells = found[delimiter]
    names = _names_by_content(cells)
    return CsvLayout(delimiter, names, len(cells), end, not (names and delimiter == "\t"))


def csv_parts(path: Path, rows: int, choose: Choose, encoding: str = "") -> Iterator[pa.Table]:
    """Yield a table in parts, with the cells of the chosen columns as bytes.

    Raises:
        ValueError, OSError, pa.ArrowException: It cannot be read.
        UserError: A quoted cell does not end.
    """
    layout = csv_layout(path, encoding)
    parse = pyarrow.csv.ParseOptions(
        delimiter=layout.delimiter, newlines_in_values=layout.quoted, quote_char='"' if layout.quoted else False
    )
    names, chosen = layout.names, None
    with open_text(path, encoding) as file:
        for block in _Lines(file, path, layout).blocks(2 * MAX_LINE):
            # A buffer instead of the file: a thread of pyarrow that calls Python aborts the program as it exits.
            source = pa.BufferReader(block)
            read = pyarrow.csv.ReadOptions(block_size=len(block), column_names=names, use_threads=False)
            if chosen is None:
                with pyarrow.csv.open_csv(source, read, parse) as reader:
                    found = reader.schema.names
                chosen, source = choose(found), pa.BufferReader(block)
                names = tuple(found)
            # As bytes, because one cell that is not UTF-8 must not end the table.
            options = pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(chosen, pa.binary()), include_columns=chosen
            )
            yield pyarrow.csv.read_csv(source, read, parse, options)


def _first_cells(text: str, delimiter: str) -> list[str]:
    try:
        return next((row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row), [])
    except csv.Error:  # a cell of more than 128 KiB
        return text.splitlines()[0].split(delimiter)


def _names_by_content(cells: list[str]) -> tuple[str, ...] | None:
    """Return names of the columns if the first line holds addresses, and so no names; else None."""
    addresses = [bool(ADDRESS.match(cell)) for cell in cells]
    if not any(addresses):
        return None
    if sum(addresses) == 1 and len(cells) <= 2:
        return tuple("url" if address else "caption" for address in addresses)
    alone = sum(addresses) == 1
    return tuple("url" if alone and address else str(number) for number, address in enumerate(addresses, 1))


@functools.cache
def _quotes(delimiter: str) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """Patterns of a quote that opens a cell (elsewhere it is a letter), and of lines whose cells all end."""
    mark = re.escape(delimiter.encode())
    opening = re.compile(rb"(?:\A(?:\xef\xbb\xbf)?|[" + mark + rb'\r\n])"')
    return opening, re.compile(rb'[^"]*+(?:(?<![^' + mark + rb'])"[^"]*+(?:""[^"]*+)*+"[^"]*+)*+')


CLOSING = re.compile(rb'[^"]*+(?:""[^"]*+)*+"')  # from within a quoted cell


class _Lines:
    """The lines of a csv file without what goes beyond ``MAX_LINE`` in each.

    Quotes stay balanced, and cells that are cut off are empty.

    Args:
        file: The file.
        path: Its path, for messages.
        layout: How its lines are divided.

    Raises:
        UserError: While reading, a quoted cell does not end as a cell does: all rows behind it would become one.
    """

    def __init__(self, file: BinaryIO, path: Path, layout: CsvLayout) -> None:
        self.path, self.end, self.quoted = path, layout.end, layout.quoted
        self.mark, self.marks = layout.delimiter.encode(), layout.columns - 1
        self.opening, self.whole = _quotes(layout.delimiter)
        self.number = 0
        self.opened = self.spanned = 0  # line in which the current quoted cell begins, or 0; bytes of its lines
        self.next_line: Callable[[int], bytes] = file.readline
        if self.end == b"\r":  # lines of bytes end at line feeds only
            text = io.TextIOWrapper(file, "latin-1", newline="\r")
            self.next_line = lambda size: text.readline(size).encode("latin-1")

    def blocks(self, size: int) -> Iterator[bytes]:
        """Yield whole rows in blocks of at least so many bytes; only the last one is shorter."""
        pieces, held = list[bytes](), 0
        while line := self._line():
            if self.opened or line.strip(b"\r\n"):  # empty lines are no rows
                pieces.append(line)
                held += len(line)
            if held >= size and not self.opened:
                yield b"".join(pieces)
                pieces, held = [], 0
        if held:
            yield b"".join(pieces)

    def _line(self) -> bytes:
        line = self.next_line(MAX_LINE)
        if len(line) == MAX_LINE and not line.endswith(self.end):
            line = self._shortened(line)
        self.number += 1
        if self.quoted and (self.opened or not self.whole.fullmatch(line)):
            self._follow_quotes(line)
        return line

    def _shortened(self, line: bytes) -> bytes:
        """Return the beginning of a line as a whole line, and skip its rest."""
        quotes = sum(piece.count(b'"') for piece in rest_of_line(self.next_line, self.end))
        if not self.quoted:
            return line + self.mark * (self.marks - line.count(self.mark)) + self.end
        line += b'"' if quotes % 2 else b""
        parts = line.split(b'"')
        if len(parts) % 2:  # the row ends here, not inside a cell of several lines
            line += self.mark * (self.marks - sum(part.count(self.mark) for part in parts[::2]))
        return line + self.end

    def _follow_quotes(self, line: bytes) -> None:
        """Note whether a quoted cell continues in the next line."""
        self.spanned += len(line)
        start, broken = 0, not line
        while not broken:
            if not self.opened:
                opening = self.opening.search(line, start)
                if not opening:
                    return
                self.opened, self.spanned, start = self.number, len(line), opening.end()
            closing = CLOSING.match(line, start)
            if not closing:
                broken = self.spanned > 2 * MAX_LINE
                break
            start = closing.end()
            follows = line[start : start + 1]
            broken = self.opened < self.number and follows not in (self.mark, b"\r", b"\n", b"")
            self.opened = self.opened if broken else 0
        if broken:
            raise UserError(
                f"{self.path}: the quote that opens a cell in line {self.opened} is not closed: close it there, or "
                "double it if it is a letter of the cell"
            )
