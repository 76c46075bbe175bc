"""What the readers of other formats have in common: rows with texts, numbers, lists, and bytes of images."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

IMAGE, TEXT, NUMBER, BYTES, OTHER = "image", "text", "number", "bytes", "other"  # kinds of columns


@dataclass(frozen=True)
class SourceRow:
    """One row.

    Args:
        place: File and number of the row in it, ``NAME/NUMBER``.
        cells: Values by column; those of images are bytes.
        fault: Why the row cannot be read, or an empty text.
    """

    place: str
    cells: dict[str, Any]
    fault: str = ""


class SampleSource(Protocol):
    """A folder of another format, opened.

    Args:
        name: The format in words.
        folder: The folder.
        columns: Kind of each column, by name.
        unread: Columns that are never decoded, with the reason.
        count: Number of rows that its files claim.
        identity: All that decides the rows: names and sizes of the files.
    """

    name: str
    folder: Path
    columns: dict[str, str]
    unread: dict[str, str]
    count: int
    identity: list[list[Any]]

    def rows(self, columns: Collection[str], start: int, scratch: Path, max_bytes: int) -> Iterator[SourceRow]:
        """Yield the rows from a number on.

        Args:
            columns: Columns to read.
            start: Number of the first row.
            scratch: Folder for unpacked files.
            max_bytes: Largest image.
        """
        ...
