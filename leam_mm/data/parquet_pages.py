"""Headers of the pages of a parquet file, so that its memory is known before a page is decompressed.

Footers and headers come from strangers. A page of some bytes may unpack to gigabytes, whatever the footer says, because
pyarrow believes the header. Format: https://github.com/apache/parquet-format (parquet.thrift), in Thrift's compact
protocol.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

DELTA_LENGTH_BYTE_ARRAY = 6
DELTA_BYTE_ARRAY = 7  # each value repeats the beginning of the one before, so that few bytes hold many long values
LONGEST_HEADER = 1 << 20  # bytes; statistics hold the smallest and the largest value
DEEPEST = 12  # structures and lists within each other; a footer has six levels
LONGER = 100  # bytes by which old writers count a column too short, which forgot the header of its dictionary
DESCRIPTIONS = (5, 7, 8)  # fields of the page header: a data page, a dictionary, a data page of version 2


@dataclass(frozen=True)
class PageHeader:
    """What decides the memory of one page.

    Args:
        column: Name of its column.
        unpacked: Bytes after decompression.
        values: Number of values.
        is_data: Whether it is a page of values, not of a dictionary.
        encoding: Number of the encoding of its values.
    """

    column: str
    unpacked: int
    values: int
    is_data: bool
    encoding: int


def page_headers(file: BinaryIO, columns: set[str]) -> Iterator[PageHeader]:
    """Yield the headers of all pages of some columns.

    Args:
        file: The parquet file.
        columns: Names of the columns.

    Raises:
        ValueError: The footer or a header is damaged, or names bytes outside of its file or column.
    """
    size = file.seek(0, os.SEEK_END)
    for column in _column_chunks(file):
        if column.name not in columns:
            continue
        if column.start + column.bytes > size:
            raise ValueError("the footer is damaged: a column lies outside of the file")
        position, end, values = column.start, column.start + column.bytes, 0
        while position < end and values < column.values:
            header, length = _read_header(file, position)
            described = [header[key] for key in DESCRIPTIONS if isinstance(header.get(key), dict)]
            description: dict[int, Any] = described[0] if described else {}
            sizes = header.get(2), header.get(3), description.get(1, 0)
            unpacked, packed, count = (size if isinstance(size, int) else -1 for size in sizes)
            if min(unpacked, packed, count) < 0:
                raise ValueError("the header of a page is damaged")
            if position + length + packed > end + LONGER:
                raise ValueError("the header of a page is damaged: it lies outside of its column")
            is_data = isinstance(header.get(5), dict) or isinstance(header.get(8), dict)
            yield PageHeader(column.name, unpacked, count, is_data, description.get(4 if 8 in header else 2, -1))
            values += count if is_data else 0
            position += length + packed


class _ColumnChunk(NamedTuple):
    name: str  # of the column, without its parts
    start: int
    bytes: int
    values: int


def _column_chunks(file: BinaryIO) -> Iterator[_ColumnChunk]:
    """Yield what the footer says of each column of each row group.

    The footer is read here, because pyarrow's access to a single column ends the process if its statistics do not fit.
    """
    end = file.seek(-8, os.SEEK_END)
    length = int.from_bytes(file.read(4), "little")
    file.seek(max(0, end - length))
    try:
        footer, _ = _struct(file.read(length), 0, 0)
        for group in footer.get(4, []):
            for found in group[1]:
                column = found[3]
                name, values, size, data, dictionary = column[3][0], column[5], column[7], column[9], column.get(11, 0)
                if min(values, size, data, dictionary) < 0:
                    raise ValueError("the footer is damaged")
                yield _ColumnChunk(name.decode(), min(data, dictionary or data), size, values)
    except (IndexError, KeyError, TypeError, AttributeError, OSError):
        raise ValueError("the footer is damaged") from None


def _read_header(file: BinaryIO, position: int) -> tuple[dict[int, Any], int]:
    """Return the fields of the page header at a position, by number, and its length."""
    for size in (1 << 10, LONGEST_HEADER):
        file.seek(position)
        buffer = file.read(size)
        try:
            return _struct(buffer, 0, 0)
        except IndexError:
            continue
    raise ValueError("the header of a page is damaged or too long")


def _struct(buffer: bytes, position: int, depth: int) -> tuple[dict[int, Any], int]:
    fields: dict[int, Any] = {}
    number = 0
    while byte := buffer[position]:
        position += 1
        if byte >> 4:
            number += byte >> 4
        else:
            number, position = _integer(buffer, position)
        fields[number], position = _value(buffer, position, byte & 15, depth)
    return fields, position + 1


def _value(buffer: bytes, position: int, kind: int, depth: int) -> tuple[Any, int]:
    if depth > DEEPEST:
        raise ValueError("the header of a page is nested too deeply")
    if kind in (1, 2):  # the type itself is the value
        return kind == 1, position
    if kind == 3:
        return buffer[position], position + 1
    if kind in (4, 5, 6):
        return _integer(buffer, position)
    if kind == 7:
        return None, position + 8
    if kind == 8:
        length, position = _varint(buffer, position)
        return buffer[position : position + length], position + length
    if kind in (9, 10):
        head, position = buffer[position], position + 1
        count, position = _varint(buffer, position) if head >> 4 == 15 else (head >> 4, position)
        if head & 15 in (1, 2):
            return None, position + count
        values = []
        for _ in range(count):
            value, position = _value(buffer, position, head & 15, depth + 1)
            values.append(value)
        return values, position
    if kind == 12:
        return _struct(buffer, position, depth + 1)
    raise ValueError("the header of a page is damaged")


def _varint(buffer: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = buffer[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("the header of a page is damaged")


def _integer(buffer: bytes, position: int) -> tuple[int, int]:
    value, position = _varint(buffer, position)
    return (value >> 1) ^ -(value & 1), position
