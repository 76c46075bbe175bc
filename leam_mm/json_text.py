"""Parse JSON that strangers wrote: whatever is wrong with it is a ValueError with a short message."""

import json
from collections.abc import Iterator
from typing import Any


def parse_json(content: str | bytes) -> Any:
    """Parse a JSON text of which nothing is known (RFC 8259).

    Args:
        content: Text, or bytes in UTF-8.

    Returns:
        The value; NaN and the infinities are numbers, as in files that Python writes.

    Raises:
        ValueError: It is no JSON, is not UTF-8, is nested too deeply, has a number of thousands of digits, or spells
            half a surrogate pair, which no file in UTF-8 can hold.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        value = json.loads(text)
        if "\\u" in text:  # only an escape can spell half a surrogate pair
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        raise ValueError("it is not in UTF-8") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def parse_object(content: str | bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ValueError: As `parse_json`; or it is a value of another type.
    """
    value = parse_json(content)
    if not isinstance(value, dict):
        raise ValueError(f"it is of type {type(value).__name__}, not an object")
    return value


def parse_lines(content: str | bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and object of each line of JSON lines; empty lines are skipped.

    Only a line feed ends a line: texts inside may hold the other separators of Unicode.

    Raises:
        ValueError: As `parse_object`, with the number of the line.
    """
    lines: list[Any] = content.split(b"\n") if isinstance(content, bytes) else content.split("\n")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield number, parse_object(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
