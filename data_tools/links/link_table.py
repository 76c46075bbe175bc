"""Read tables of image links (parquet, csv, jsonl) and folders of captioned images, and check their columns."""

import json
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from leam_mm.data.image_limits import IMAGE_SUFFIXES
from leam_mm.errors import UserError

REQUIRED = ("url", "caption")
OPTIONAL = (
    *("captions", "licence", "legal_basis", "page_url", "attribution", "metadata", "consent", "language"),
    *("uid", "source"),
)
MAX_LINE = 1 << 24  # characters of a jsonl line
BATCH = 10_000  # rows


def read_links(path: Path) -> pa.Table:
    """Read a whole table of links; see ``link_batches`` for the columns.

    Raises:
        UserError: The file is missing, unreadable or empty, or lacks ``url`` or ``caption``.
    """
    batches = list(link_batches(path, BATCH))
    if not batches:
        raise UserError(f"{path} holds no row; give a table with at least one link")
    table = pa.concat_tables(batches)
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
        of them, because its later lines may name more columns than the first.

    Raises:
        UserError: The file is missing or unreadable, or lacks ``url`` or ``caption``. An empty file is no error.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file: give a parquet, csv or jsonl file of links")
    if path.suffix not in READERS:
        raise UserError(f"{path}: the ending {path.suffix!r} is not supported; use .parquet, .csv or .jsonl")
    waiting: list[pa.Table] = []
    held = 0
    try:
        for part in READERS[path.suffix](path, rows):
            part = part.cast(pa.schema([(name, pa.string()) for name in part.column_names]))
            while held + part.num_rows >= rows:
                yield pa.concat_tables([*waiting, part.slice(0, rows - held)]).combine_chunks()
                part, waiting, held = part.slice(rows - held), [], 0
            waiting.append(part)
            held += part.num_rows
    except (pa.ArrowException, OSError, ValueError, RecursionError) as error:
        message = str(error).splitlines()[0]
        raise UserError(
            f"{path} cannot be read as {path.suffix[1:]} ({message}); write it again, with all columns as strings"
        ) from None
    if held:
        yield pa.concat_tables(waiting).combine_chunks()


def _parquet_parts(path: Path, rows: int) -> Iterator[pa.Table]:
    with pq.ParquetFile(path, pre_buffer=False) as file:
        names = _columns(path, file.schema_arrow.names)
        for batch in file.iter_batches(rows, columns=names, use_threads=False):
            yield pa.Table.from_batches([batch]).select(names)


def _csv_parts(path: Path, rows: int) -> Iterator[pa.Table]:
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    with pyarrow.csv.open_csv(path, parse_options=parse) as reader:
        names = _columns(path, reader.schema.names)
    options = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), include_columns=names)
    with pyarrow.csv.open_csv(path, parse_options=parse, convert_options=options) as reader:
        for batch in reader:
            yield pa.Table.from_batches([batch])


def _jsonl_parts(path: Path, rows: int) -> Iterator[pa.Table]:
    with path.open(encoding="utf-8") as lines:
        objects = _json_objects(lines)
        while found := list(islice(objects, rows)):
            _columns(path, {name: None for row in found for name in row})
            yield pa.table({name: [_text(row.get(name)) for row in found] for name in (*REQUIRED, *OPTIONAL)})


READERS = {".parquet": _parquet_parts, ".csv": _csv_parts, ".jsonl": _jsonl_parts}


def _json_objects(lines: TextIO) -> Iterator[dict[str, Any]]:
    while line := lines.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise ValueError(f"a line is longer than {MAX_LINE} characters")
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("a line is not a JSON object")
            yield row


def _columns(path: Path, found: Collection[str]) -> list[str]:
    """Those of our columns that the file has."""
    for name in REQUIRED:
        if name not in found:
            names = ", ".join(list(found)[:12])
            raise UserError(f"{path} has no column {name!r} (found: {names}); rename or add that column")
    return [name for name in (*REQUIRED, *OPTIONAL) if name in found]


def _text(value: object) -> str | None:
    text = value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if text is None or text.isascii() else text.encode("utf-8", "replace").decode()  # "\\ud800" in JSON


def folder_links(folder: Path) -> pa.Table:
    """Return a table of links for a folder: each image with the caption in the ``.txt`` file beside it.

    A ``captions.parquet``, ``.csv`` or ``.jsonl`` in the folder is used instead; its ``url`` holds the file names.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give --folder a folder of images")
    for name in ("captions.parquet", "captions.csv", "captions.jsonl"):
        if (folder / name).is_file():
            table = read_links(folder / name)
            names = [value if ":" in (value or ":") else "file:" + quote(value) for value in table["url"].to_pylist()]
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
    return pa.table(
        {
            "url": ["file:" + quote(path.relative_to(folder).as_posix()) for path in images],
            "caption": [captions[path].read_text("utf-8").strip() for path in images],
        }
    )
