"""Read folders of parquet files with the bytes of images in them, as Hugging Face ``datasets`` writes them.

An image is a struct of ``bytes`` and ``path``, or a plain binary column. A row that only names a path has no
image here.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_tools.importing.sample_source import BYTES, IMAGE, NUMBER, OTHER, TEXT, SourceRow
from leam_mm.data.parquet_file import ERRORS, error_reason, open_parquet
from leam_mm.errors import UserError

ROWS = 200  # read at a time


class ParquetSamples:
    """A folder of parquet files, or one of them; see ``SampleSource``.

    Args:
        path: The folder, searched at any depth, or a file.

    Raises:
        UserError: A file is damaged, or has other columns than the first.
    """

    name = "Hugging Face parquet"

    def __init__(self, path: Path) -> None:
        """Read the footers; see the class for the arguments."""
        self.folder = path if path.is_dir() else path.parent
        root = self.folder.resolve()
        files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        hidden = [any(part.startswith(".") for part in file.relative_to(self.folder).parts) for file in files]
        self._files = [file for file, is_hidden in zip(files, hidden, strict=True) if not is_hidden]
        self.columns: dict[str, str] = {}
        self._counts: list[int] = []
        for file in self._files:
            if not file.resolve().is_relative_to(root):
                raise UserError(f"{file} is a link that leads out of {self.folder}: copy the file instead")
            try:
                with open_parquet(file) as opened:
                    if opened.rows > file.stat().st_size:  # a row with an image takes more than a byte
                        raise ValueError(f"it claims {opened.rows} rows in {file.stat().st_size} bytes")
                    found = {name: _kind(opened.schema.field(name).type) for name in opened.schema.names}
                    self._counts.append(opened.rows)
            except ERRORS as error:
                raise UserError(f"{file} cannot be read ({error_reason(error)}): copy it again") from None
            if self.columns and found != self.columns:
                raise UserError(f"{file} has other columns than {self._files[0]}: import its folder separately")
            self.columns = found
        self.unread = {name: "a type that is not read" for name, kind in self.columns.items() if kind == OTHER}
        self.count = sum(self._counts)
        self.identity = [
            [file.relative_to(self.folder).as_posix(), file.stat().st_size, count]
            for file, count in zip(self._files, self._counts, strict=True)
        ]

    def rows(self, columns: Collection[str], start: int, scratch: Path, max_bytes: int) -> Iterator[SourceRow]:
        """Yield the rows from a number on; see ``SampleSource``."""
        before = 0
        for file, count in zip(self._files, self._counts, strict=True):
            first, name = max(0, start - before), file.relative_to(self.folder).as_posix()
            before += count
            number = 0
            if first >= count:
                continue
            try:
                with open_parquet(file) as opened:
                    for batch in opened.nested_batches(ROWS, sorted(columns)):
                        for cells in batch.to_pylist() if number + batch.num_rows > first else [{}] * batch.num_rows:
                            if number >= first:
                                yield SourceRow(f"{name}/{number}", {key: _plain(cell) for key, cell in cells.items()})
                            number += 1
            except (*ERRORS, UnicodeDecodeError) as error:
                for number in range(max(first, number), count):  # noqa: B020 (it continues where reading ended)
                    yield SourceRow(f"{name}/{number}", {}, f"{name}: {error_reason(error)}"[:200])


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_struct(kind):
        fields = {kind.field(number).name: kind.field(number).type for number in range(kind.num_fields)}
        if "bytes" in fields and _is_binary(fields["bytes"]):
            return IMAGE
        texts = all(_kind(each) == TEXT for each in fields.values())
        return TEXT if fields and texts else OTHER
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return TEXT if _kind(kind.value_type) == TEXT else OTHER
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return TEXT
    if pa.types.is_integer(kind):
        return NUMBER
    return BYTES if _is_binary(kind) else OTHER


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _plain(cell: Any) -> Any:
    """Return the bytes of an image for its struct."""
    is_image = isinstance(cell, dict) and "bytes" in cell and isinstance(cell["bytes"], bytes | None)
    return cell["bytes"] if is_image else cell
