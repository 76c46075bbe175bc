"""Compare a document with what the facts say: each line or entry that differs, with the field it belongs to."""

import csv
import difflib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from leam_mm.json_text import parse_json

FREE_TEXT, END_OF_FREE_TEXT = "<!-- free text -->", "<!-- end of free text -->"
MAX_LINES = 50_000
MAX_SHOWN = 160  # characters of a statement in a message
HEADING, RULE = re.compile(r"#+ (.*)"), re.compile(r"\|( *:?-+:? *\|)+")
LABELS = (re.compile(r"- \*\*(.+?):?\*\*"), re.compile(r"- ([^:]{1,80}):"), re.compile(r"[- ]*([\w-]{1,60}):(?: |$)"))


@dataclass(frozen=True)
class Contradiction:
    """A statement that contradicts another one.

    Args:
        document: Path in the release, or the name of what it is about.
        field: Field, row or line.
        text: What it says, and what contradicts it.
    """

    document: str
    field: str
    text: str

    def __str__(self) -> str:
        """Return it as one line."""
        return f"{self.document}: {self.field}: {self.text}"


def changed_statements(path: str, expected: str, found: str) -> list[Contradiction]:
    """Return what a document says otherwise than the facts.

    Args:
        path: Its path in the release; the ending says how it is read.
        expected: The text that follows from the facts.
        found: The text of the file.
    """
    if path.endswith((".json", ".yaml")):
        try:
            before, now = (_parse(path, text) for text in (expected, found))
        except (ValueError, yaml.YAMLError, RecursionError) as error:
            return [Contradiction(path, "whole file", f"cannot be read ({str(error).splitlines()[0][:100]})")]
        return [Contradiction(path, field, text) for field, text in _entries(before, now, "")]
    if path.endswith(".csv"):
        return [Contradiction(path, field, text) for field, text in _csv_cells(expected, found)]
    return [Contradiction(path, field, text) for field, text in _lines(expected, found)]


def _parse(path: str, text: str) -> Any:
    return parse_json(text) if path.endswith(".json") else yaml.safe_load(text)


def _entries(expected: Any, found: Any, field: str) -> Iterator[tuple[str, str]]:
    """Yield path and statement of each entry that differs."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for name in dict.fromkeys([*expected, *found]):
            inner = f"{field}.{name}".lstrip(".")
            if name not in found:
                yield inner, f"is missing; the facts say {_short(expected[name])}"
            elif name not in expected:
                yield inner, f"says {_short(found[name])}, which the facts do not"
            else:
                yield from _entries(expected[name], found[name], inner)
    elif isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            yield field, f"has {len(found)} entries; the facts give {len(expected)}"
        for number, (one, other) in enumerate(zip(expected, found, strict=False)):
            name = one.get("name", number) if isinstance(one, dict) else number
            yield from _entries(one, other, f"{field}[{name}]")
    elif expected != found:
        yield field, f"says {_short(found)}; the facts say {_short(expected)}"


def _csv_cells(expected: str, found: str) -> Iterator[tuple[str, str]]:
    rows = [list(csv.reader(io.StringIO(text))) for text in (expected, found)]
    header = rows[0][0] if rows[0] else []
    if len(rows[0]) != len(rows[1]):
        yield "rows", f"has {len(rows[1])} rows; the facts give {len(rows[0])}"
    for number, (one, other) in enumerate(zip(*rows, strict=False)):
        name = one[0] if one else str(number)
        for column, (before, now) in enumerate(zip(one, other, strict=False)):
            if before != now:
                title = header[column] if column < len(header) else str(column)
                yield f"{name}, {title}", f"says {_short(now)}; the facts say {_short(before)}"
        if len(one) != len(other):
            yield name, f"has {len(other)} cells; the facts give {len(one)}"


def _lines(expected: str, found: str) -> Iterator[tuple[str, str]]:
    """Yield label and statement of each line of Markdown that differs; free text is left out."""
    before, now = (_labelled(text) for text in (expected, found))
    if max(len(before), len(now)) > MAX_LINES:
        yield "whole file", f"has more than {MAX_LINES:,} lines"
        return
    old, new = ([line for _, _, line in one] for one in (before, now))
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            continue
        shared = min(b - a, d - c)
        for one, other in zip(before[a : a + shared], now[c : c + shared], strict=True):
            yield from _line(one, other)
        for label, _, line in before[a + shared : b]:
            yield label, f"the line {_short(line)} is missing"
        for label, _, line in now[c + shared : d]:
            yield label, f"says {_short(line)}, which the facts do not"


def _line(expected: tuple[str, Sequence[str], str], found: tuple[str, Sequence[str], str]) -> Iterator[tuple[str, str]]:
    (label, header, one), (_, _, other) = expected, found
    cells = [_cells(line) for line in (one, other)]
    if one.startswith("|") and len(cells[0]) == len(cells[1]) == len(header):
        for title, before, now in zip(header, *cells, strict=True):
            if before != now:
                yield f"{cells[0][0]}, {title}", f"says {_short(now)}; the facts say {_short(before)}"
    else:
        yield label, f"says {_short(other)}; the facts say {_short(one)}"


def _labelled(text: str) -> list[tuple[str, Sequence[str], str]]:
    """Return label, table header and text of each line that is not empty or free."""
    rows: list[tuple[str, Sequence[str], str]] = []
    heading, free = "top", False
    header: tuple[str, ...] = ()
    lines = [" ".join(line.split()) if not line.startswith(" ") else line.rstrip() for line in text.splitlines()]
    for number, line in enumerate(lines):
        free = free and line != END_OF_FREE_TEXT
        if free or not line.strip():
            continue
        if line == FREE_TEXT:
            free = True
        if match := HEADING.fullmatch(line):
            heading = match[1]
        if line.startswith("|"):
            if number + 1 < len(lines) and RULE.fullmatch(lines[number + 1]):
                header = tuple(_cells(line))
            label = f"{heading}: {_cells(line)[0]}"
        else:
            header = ()
            label = next((f"{heading}: {m[1]}" for one in LABELS if (m := one.match(line))), heading)
        rows.append((label, header, line))
    return rows


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _short(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}...")
