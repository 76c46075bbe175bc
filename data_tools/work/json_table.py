"""Read the objects of a JSON file as rows: one a line (JSON lines), or in one array; all values become text."""

import codecs
import io
import json
from collections.abc import Iterator
from typing import BinaryIO, cast

from data_tools.work.text_file import MAX_LINE, rest_of_line

KEPT = 200  # characters that stay of what is refused
TOO_LONG = "too_long"  # column with the reason why a row is refused; only in batches that have such rows
SPACE = " \t\r\n"
Row = dict[str, str | None]


def json_rows(file: BinaryIO, array: bool) -> Iterator[tuple[Row, int]]:
    """Yield the rows of a file, and their bytes in it.

    Args:
        file: Text in UTF-8.
        array: Whether it may be one array, which its first character says; otherwise each line is an object.

    Raises:
        ValueError: It is no JSON, or holds something else than objects.
    """
    start = cast(io.BufferedReader, file).peek(1).removeprefix(codecs.BOM_UTF8).lstrip() if array else b""
    yield from _array_rows(file) if start.startswith(b"[") else _line_rows(file)


def _line_rows(lines: BinaryIO) -> Iterator[tuple[Row, int]]:
    while line := lines.readline(MAX_LINE):
        if len(line) == MAX_LINE and not line.endswith(b"\n"):
            for _ in rest_of_line(lines.readline):
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
            yield _row(row), len(line)


def _array_rows(file: BinaryIO) -> Iterator[tuple[Row, int]]:
    """Yield the objects of an array, of which never more than some are in memory."""
    scanner, decode = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8-sig")().decode
    text, place, number, ended = "", 0, -1, False
    while True:
        while place < len(text) and text[place] in SPACE:
            place += 1
        mark = text[place : place + 1]
        if number < 0 and mark == "[":
            place, number = place + 1, 0
            continue
        if number >= 0 and mark == "]":
            return
        begin = place
        try:
            if mark == "," and number:
                begin = place + 1
                while text[begin] in SPACE:
                    begin += 1
            elif number:
                raise IndexError
            row, end = scanner.raw_decode(text, begin)
        except (json.JSONDecodeError, IndexError) as error:
            if ended or len(text) - place > MAX_LINE:
                raise ValueError(f"entry {number + 1} of the array is no JSON of at most {MAX_LINE} bytes") from error
            piece = file.read(MAX_LINE)
            text, place, ended = text[place:] + decode(piece, final=not piece), 0, not piece
            continue
        if not isinstance(row, dict):
            raise ValueError(f"entry {number + 1} of the array is not a JSON object")
        number += 1
        yield _row(row), end - place
        place = end


def _row(found: dict[str, object]) -> Row:
    return {name: _text(value) for name, value in found.items() if name != TOO_LONG}


def _text(value: object) -> str | None:
    text = value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if text is None or text.isascii() else text.encode("utf-8", "replace").decode()  # "\\ud800" in JSON
