"""Read tables of image links (parquet, csv, jsonl) and folders of captioned images, and check their columns."""

import io
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa

from data_tools.work.text_tables import MAX_CELL, TOO_LONG, text_batches
from leam_mm.data.image_limits import IMAGE_SUFFIXES
from leam_mm.errors import UserError

REQUIRED = ("url", "caption")
OPTIONAL = (
    *("captions", "licence", "legal_basis", "page_url", "attribution", "metadata", "consent", "language"),
    *("uid", "source"),
)
BATCH = 10_000  # rows


def read_links(path: Path) -> pa.Table:
    """Read a whole table of links; see ``link_batches`` for the columns.

    Raises:
        UserError: The file is missing, unreadable or empty, or lacks ``url`` or ``caption``.
    """
    batches = list(link_batches(path, BATCH))
    if not batches:
        raise UserError(f"{path} holds no row; give a table with at least one link")
    table = pa.concat_tables(batches, promote_options="default")
    if path.suffix == ".jsonl":  # its batches have every column, also those that no line names
        table = table.select([name for name in table.column_names if table[name].null_count < len(table)])
    return table


def link_batches(path: Path, rows: int) -> Iterator[pa.Table]:
    """Read a table of any length in batches, in constant memory.

    Args:
        path: A parquet, csv or jsonl file.
        rows: Rows of each batch; only the last one is shorter.

    Yields:
        Tables of strings with those columns of ``REQUIRED`` and ``OPTIONAL`` that the file has. A jsonl file gives all
        of them, because its later lines may name more columns than the first. Rows that break a limit are shortened,
        and name it in the column ``TOO_LONG``.

    Raises:
        UserError: The file is missing or unreadable, or lacks ``url`` or ``caption``. An empty file is no error.
    """

    def choose(found: Collection[str]) -> list[str]:
        for name in REQUIRED:
            if name not in found:
                names = ", ".join(str(name)[:80] for name in list(found)[:12])
                raise UserError(f"{path} has no column {name!r} (found: {names}); rename or add that column")
        return [name for name in (*REQUIRED, *OPTIONAL) if path.suffix == ".jsonl" or name in found]

    return text_batches(path, rows, choose)


def folder_links(folder: Path, lenient: bool = False) -> pa.Table:
    """Return a table of links for a folder: each image with the caption in the ``.txt`` file beside it.

    A ``captions.parquet``, ``.csv`` or ``.jsonl`` in the folder is used instead; its ``url`` holds the file names.

    Args:
        folder: The folder.
        lenient: Whether captions that break a limit are named in the column ``TOO_LONG``; otherwise they are an error.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give --folder a folder of images")
    table = _folder_table(folder)
    if TOO_LONG in table.column_names and not lenient:
        row = next(row for row in table.to_pylist() if row[TOO_LONG])
        raise UserError(f"{folder}: the caption of {row['url']} cannot be used: {row[TOO_LONG]}; correct it")
    return table


def file_link(name: str) -> str:
    """Return the address of a file, given its name relative to the folder of the table."""
    return "file:" + quote(os.fsencode(name))


def _folder_table(folder: Path) -> pa.Table:
    for name in ("captions.parquet", "captions.csv", "captions.jsonl"):
        if (folder / name).is_file():
            table = read_links(folder / name)
            names = [value if ":" in (value or ":") else file_link(value) for value in table["url"].to_pylist()]
            return table.set_column(table.column_names.index("url"), "url", pa.array(names, pa.string()))
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    captions = {path: path.with_suffix(".txt") for path in images}
    missing = [path for path in images if not captions[path].is_file()]
    if not images:
        raise UserError(f"{folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}); give another --folder")
    if missing:
        raise UserError(
            f"{missing[0]} has no caption file {captions[missing[0]].name} beside it ({len(missing)} of {len(images)} "
            "images lack one); write the captions, or use --table"
        )
    root = folder.resolve()
    for path in images:
        if not path.resolve().is_relative_to(root):
            raise UserError(f"{path} is a symbolic link that leads out of {folder}; copy the image instead")
    texts = [_caption(captions[path]) for path in images]
    columns: dict[str, list[str | None]] = {
        "url": [file_link(path.relative_to(folder).as_posix()) for path in images],
        "caption": [text for text, _ in texts],
        TOO_LONG: [fault for _, fault in texts],
    }
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    return table if any(columns[TOO_LONG]) else table.drop_columns([TOO_LONG])


def _caption(path: Path) -> tuple[str, str | None]:
    """Return the caption in a file, and which limit it breaks."""
    with path.open("rb") as file:
        content = file.read(MAX_CELL + 1)
    if len(content) > MAX_CELL:
        return "", f"caption has more than {MAX_CELL} bytes"
    try:
        return io.TextIOWrapper(io.BytesIO(content), "utf-8").read().strip(), None
    except UnicodeDecodeError:
        return "", "caption is not UTF-8"
