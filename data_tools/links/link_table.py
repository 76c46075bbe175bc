"""Tables of image links: read them, check their columns, and decide which addresses may be asked for at all.

A link may be refused before anything is fetched (its scheme, its host, an empty caption) and again when it is fetched,
because names resolve and servers redirect; both places ask the same ``address_fault``.
"""

import hashlib
import json
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from leam_mm.errors import UserError

REQUIRED = ("url", "caption")
OPTIONAL = (
    *("captions", "licence", "legal_basis", "page_url", "attribution", "metadata", "consent", "language"),
    *("uid", "source"),
)
MAX_LINE = 1 << 24  # characters of a jsonl line: one row never needs more
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}


def read_links(path: Path) -> pa.Table:
    """Read a parquet, csv or jsonl table; all columns come back as strings, unknown columns are left out.

    Raises:
        UserError: The file is missing, unreadable, empty, or lacks ``url`` or ``caption``.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file: give --table a parquet, csv or jsonl file of links")
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path)
        elif path.suffix == ".csv":
            names = dict.fromkeys((*REQUIRED, *OPTIONAL), pa.string())
            parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
            options = pyarrow.csv.ConvertOptions(column_types=names)
            table = pyarrow.csv.read_csv(path, parse_options=parse, convert_options=options)
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line is not a JSON object")
            present = [name for name in (*REQUIRED, *OPTIONAL) if any(name in row for row in rows)]
            table = pa.table({name: [_text(row.get(name)) for row in rows] for name in present})
        else:
            raise UserError(f"{path}: the ending {path.suffix!r} is not known; use .parquet, .csv or .jsonl")
    except (pa.ArrowException, OSError, ValueError) as error:
        message = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read as {path.suffix[1:]} ({message}); write it again") from None
    for name in REQUIRED:
        if name not in table.column_names:
            found = ", ".join(table.column_names[:12])
            raise UserError(f"{path} has no column {name!r} (found: {found}); rename or add that column")
    if not table.num_rows:
        raise UserError(f"{path} holds no row; give a table with at least one link")
    table = table.select([name for name in (*REQUIRED, *OPTIONAL) if name in table.column_names])
    try:
        return table.cast(pa.schema([(name, pa.string()) for name in table.column_names]))
    except pa.ArrowException as error:
        raise UserError(
            f"{path}: a column is not text ({error}); store url, captions and metadata as strings"
        ) from None


def link_batches(path: Path, rows: int) -> Iterator[pa.Table]:
    """Read a table of any length ``rows`` at a time, in constant memory; all columns come back as strings.

    Only the last batch is shorter. Columns are those of ``REQUIRED`` and ``OPTIONAL`` that the file has; a jsonl file
    gives all of them, for its later lines are not known.

    Raises:
        UserError: The file is missing, unreadable, or lacks ``url`` or ``caption``; nothing is raised for an empty one.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file: give a parquet, csv or jsonl file of links")
    waiting: list[pa.Table] = []
    held = 0
    try:
        for part in _parts(path, rows):
            part = part.cast(pa.schema([(name, pa.string()) for name in part.column_names]))
            while held + part.num_rows >= rows:
                yield pa.concat_tables([*waiting, part.slice(0, rows - held)]).combine_chunks()
                part, waiting, held = part.slice(rows - held), [], 0
            waiting.append(part)
            held += part.num_rows
    except (pa.ArrowException, OSError, ValueError, RecursionError) as error:
        message = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read as {path.suffix[1:]} ({message}); write it again") from None
    if held:
        yield pa.concat_tables(waiting).combine_chunks()


def _parts(path: Path, rows: int) -> Iterator[pa.Table]:
    if path.suffix == ".parquet":
        with pq.ParquetFile(path, pre_buffer=False) as file:
            names = _present(path, file.schema_arrow.names)
            for batch in file.iter_batches(rows, columns=names, use_threads=False):
                yield pa.Table.from_batches([batch]).select(names)
    elif path.suffix == ".csv":
        parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
        with pyarrow.csv.open_csv(path, parse_options=parse) as reader:
            names = _present(path, reader.schema.names)
        options = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), include_columns=names)
        with pyarrow.csv.open_csv(path, parse_options=parse, convert_options=options) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            found_rows = _json_rows(lines)
            while found := list(islice(found_rows, rows)):
                _present(path, found[0])
                yield pa.table({name: [_text(row.get(name)) for row in found] for name in (*REQUIRED, *OPTIONAL)})
    else:
        raise UserError(f"{path}: the ending {path.suffix!r} is not known; use .parquet, .csv or .jsonl")


def _json_rows(lines: TextIO) -> Iterator[dict[str, Any]]:
    while line := lines.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise ValueError(f"a line is longer than {MAX_LINE} characters")
        row = json.loads(line) if line.strip() else {}
        if not isinstance(row, dict):
            raise ValueError("a line is not a JSON object")
        if line.strip():
            yield row


def _present(path: Path, found: Collection[str]) -> list[str]:
    for name in REQUIRED:
        if name not in found:
            told = ", ".join(list(found)[:12])
            raise UserError(f"{path} has no column {name!r} (found: {told}); rename or add that column")
    return [name for name in (*REQUIRED, *OPTIONAL) if name in found]


def _text(value: object) -> str | None:
    text = value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if text is None or text.isascii() else text.encode("utf-8", "replace").decode()  # "\\ud800" in JSON


def folder_links(folder: Path) -> pa.Table:
    """Make a table of links from a folder: each image with the caption in the ``.txt`` file beside it.

    A ``captions.parquet``, ``.csv`` or ``.jsonl`` in the folder is used instead; its ``url`` holds the file names.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give --folder a folder of images")
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
            raise UserError(f"{path} is a link that leads out of {folder}; copy the image instead")
    return pa.table(
        {
            "url": ["file:" + quote(path.relative_to(folder).as_posix()) for path in images],
            "caption": [captions[path].read_text("utf-8").strip() for path in images],
        }
    )


def table_digest(table: pa.Table) -> str:
    """SHA-256 over all values of a table of strings, independent of the file format it came from."""
    digest = hashlib.sha256()
    for name in sorted(table.column_names):
        digest.update(name.encode() + b"\0")
        for value in table[name].to_pylist():
            raw = b"" if value is None else value.encode("utf-8", "surrogatepass")
            digest.update(b"-" if value is None else len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()
