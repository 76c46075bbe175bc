"""Read tables of image links, whatever format, column names and forms of captions they have.

A table is a file in a format of ``work/text_tables.py``, or a folder of such files in one format, read in the order of
their names. The result has our columns: ``url``, ``caption`` and those of ``OPTIONAL`` that the table has.
"""

import json
import logging
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

from data_tools.links.link_columns import OPTIONAL, UNKNOWN, LinkColumns, TableColumns, link_columns
from data_tools.samples.caption_forms import caption_entries, caption_entry, normal_captions
from data_tools.work.text_file import table_suffix
from data_tools.work.text_tables import READERS, TOO_LONG, text_batches
from leam_mm.errors import UserError
from leam_mm.json_text import parse_json

log = logging.getLogger(__name__)
BATCH = 10_000  # rows
SCHEME = re.compile(r"\s*(?:[A-Za-z][A-Za-z0-9+.-]+:|//|$)")  # two letters at least, unlike a drive of Windows


def read_links(path: Path, choice: TableColumns | None = None) -> pa.Table:
    """Read a whole table of links; see ``link_batches`` for the columns.

    Raises:
        UserError: The file is missing, unreadable or empty, or lacks addresses or captions.
    """
    batches = list(link_batches(path, BATCH, choice))
    if not batches:
        raise UserError(f"{path} holds no row; give a table with at least one link")
    table = pa.concat_tables(batches, promote_options="default")
    if table_suffix(path) in (".jsonl", ".json"):  # batches have every column, also those that no line names
        table = table.select([name for name in table.column_names if table[name].null_count < len(table)])
    return table


def table_parts(path: Path) -> list[Path]:
    """Return the files of a table: itself, or those of a folder in the order of their names.

    Raises:
        UserError: A folder holds no table, or tables in several formats.
    """
    if not path.is_dir():
        return [path]
    files = [file for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith((".", "_"))]
    parts = [file for file in files if table_suffix(file) in READERS]
    formats = sorted({table_suffix(file) for file in parts})
    if len(formats) > 1:
        raise UserError(f"{path} holds tables in several formats ({', '.join(formats)}): give a folder of one format")
    if not parts:
        raise UserError(f"{path} holds no table ({', '.join(READERS)}): give a table, or --folder for images")
    return parts


def link_batches(path: Path, rows: int, choice: TableColumns | None = None, files: bool = False) -> Iterator[pa.Table]:
    """Read a table of any length in batches, in constant memory.

    Args:
        path: A file in a format of ``READERS``, or a folder of them.
        rows: Rows of each batch; only the last one of a file is shorter.
        choice: Which columns are read; by default those that are recognised.
        files: Whether addresses without a scheme are names of files, relative to the table; they become ``file:``.

    Yields:
        Tables of strings with ``url``, ``caption`` and those columns of ``OPTIONAL`` that the file has. A JSON file
        gives all of them, because its later lines may name more columns than the first. Rows that break a limit are
        shortened, and name it in the column ``TOO_LONG``.

    Raises:
        UserError: The file is missing or unreadable, or lacks addresses or captions. An empty file is no error.
    """
    for part in table_parts(path):
        yield from _part_batches(part, rows, choice or TableColumns(), files)


def describe_table(path: Path, choice: TableColumns) -> str:
    """Return one line about a table: its format, and where its addresses and captions come from.

    Raises:
        UserError: As `link_batches`.
    """
    parts = table_parts(path)
    found: list[LinkColumns] = []

    def choose(names: Collection[str]) -> list[str]:
        found[:] = [_columns(parts[0], names, choice)]
        return found[0].read

    next(text_batches(parts[0], 1000, choose, encoding=choice.encoding), None)
    text = f"{path}: {f'{len(parts)} files of ' if path.is_dir() else ''}{table_suffix(parts[0])[1:]}"
    if not found:
        return f"{text}, no rows"
    if dropped := found[0].dropped:
        names = ", ".join(name[:40] for name in dropped[:12]) + (" and more" if len(dropped) > 12 else "")
        log.warning("%s: columns that are not carried: %s (--keep-columns keeps them in metadata)", path, names)
    return f"{text}, {found[0].describe()}"


def file_link(name: str) -> str:
    """Return the address of a file, given its name relative to the folder of the table."""
    return "file:" + quote(os.fsencode(name))


def _columns(path: Path, names: Collection[str], choice: TableColumns) -> LinkColumns:
    needed = table_suffix(path) != ".txt" and not choice.caption_for_all
    return link_columns(path, names, choice, captions=needed)


def _part_batches(path: Path, rows: int, choice: TableColumns, files: bool) -> Iterator[pa.Table]:
    found: list[LinkColumns] = []
    every = table_suffix(path) in (".jsonl", ".json")

    def choose(names: Collection[str]) -> list[str]:
        found[:] = [_columns(path, names, choice)]
        return found[0].read

    for table in text_batches(path, rows, choose, encoding=choice.encoding):
        links = _links(table, found[0], every or table_suffix(path) == ".parquet", every, files)
        yield _with_caption(links, choice.caption_for_all.strip()) if choice.caption_for_all.strip() else links


def _links(table: pa.Table, columns: LinkColumns, structured: bool, every: bool, files: bool) -> pa.Table:
    """Return a batch with our columns.

    Args:
        table: A batch of the file.
        columns: What its columns hold.
        structured: Whether a cell may be a list, which is JSON here.
        every: Whether all of our columns are there.
        files: See `link_batches`.
    """
    there = set(table.column_names)
    nothing = pa.nulls(table.num_rows, pa.string())

    def column(name: str | None) -> pa.ChunkedArray | pa.Array:
        return table[name] if name in there else nothing

    result = {"url": _addresses(column(columns.url), files)}
    result["caption"] = _first_text([column(name) for _, name in columns.captions], nothing)
    lists = structured and pc.any(pc.starts_with(result["caption"], "[")).as_py()
    for name in OPTIONAL:
        if name in columns.others or every:
            result[name] = column(columns.others.get(name))
    if columns.others.get("licence", "licence") != "licence":
        unknown = pc.is_in(pc.utf8_lower(result["licence"]), pa.array(UNKNOWN))
        result["licence"] = pc.if_else(unknown, nothing, result["licence"])
    if (
        len(columns.captions) > 1
        or any(language for language, _ in columns.captions)
        or "captions" in columns.others
        or lists
    ):
        texts = [column(name).to_pylist() for _, name in columns.captions]
        whole = column(columns.others.get("captions")).to_pylist()
        spoken = column(columns.others.get("language")).to_pylist()
        languages = [language for language, _ in columns.captions]
        result["captions"] = pa.array(
            [_captions(*cells, languages, bool(lists)) for cells in zip(whole, spoken, zip(*texts, strict=True) if texts
             else [()] * len(whole), strict=True)], pa.string(),
        )  # fmt: skip
    if lists:
        result["caption"] = pa.array([_listed_text(text) for text in result["caption"].to_pylist()], pa.string())
    if columns.kept:
        known = column(columns.others.get("metadata")).to_pylist()
        cells = [column(name).to_pylist() for name in columns.kept]
        result["metadata"] = pa.array(
            [_metadata(*row, columns.kept) for row in zip(known, zip(*cells, strict=True), strict=True)], pa.string()
        )
    if TOO_LONG in there:
        result[TOO_LONG] = table[TOO_LONG]
    return pa.table(result)


def _with_caption(links: pa.Table, caption: str) -> pa.Table:
    """Give a caption to the rows that have none."""
    empty = pc.equal(pc.utf8_trim_whitespace(pc.fill_null(links["caption"], "")), "")
    if "captions" in links.column_names:
        empty = pc.and_(empty, pc.is_in(pc.fill_null(links["captions"], ""), pa.array(["", "[]"])))
    place = links.column_names.index("caption")
    return links.set_column(place, "caption", pc.if_else(empty, caption, links["caption"]))


def _addresses(urls: pa.ChunkedArray, files: bool) -> pa.ChunkedArray | pa.Array:
    if not files or pc.all(pc.starts_with(urls, "http")).as_py() is not False:
        return urls
    return pa.array([_address(url) for url in urls.to_pylist()], pa.string())


def _address(url: str | None) -> str | None:
    return url if url is None or SCHEME.match(url) else file_link(url.strip())


def _first_text(columns: list[pa.ChunkedArray], nothing: pa.Array) -> pa.ChunkedArray | pa.Array:
    if len(columns) < 2:
        return columns[0] if columns else nothing
    filled = [pc.if_else(pc.equal(pc.utf8_trim_whitespace(column), ""), nothing, column) for column in columns]
    return pc.coalesce(*filled)


def _captions(
    whole: str | None, spoken: str | None, texts: tuple[str | None, ...], languages: list[str], lists: bool
) -> str | None:
    """Return the cell ``captions`` of a row.

    Args:
        whole: Its own cell of that name.
        spoken: Language of the row.
        texts: Its cells with captions.
        languages: Their languages, "" for that of the row.
        lists: Whether one of them may be a list.
    """
    entries: list[dict[str, Any]] = []
    if len(texts) > 1 or any(languages) or lists:
        for text, language in zip(texts, languages, strict=True):
            listed = _listed(text, language or spoken)
            if listed is not None:
                entries += listed
            elif text and text.strip():
                entries.append(caption_entry(text, language or spoken))
    if not whole:
        return json.dumps(entries, ensure_ascii=False) if entries else None
    normal = normal_captions(whole, spoken)
    if not entries:
        return normal
    try:
        own = parse_json(normal)
    except ValueError:
        return normal
    return json.dumps([*entries, *own], ensure_ascii=False) if isinstance(own, list) else normal


def _listed(text: str | None, language: str | None = None) -> list[dict[str, Any]] | None:
    """Return the captions of a cell that is a list of them; None if it is none."""
    if text is None or not text.startswith("["):
        return None
    try:
        value = parse_json(text)
        return caption_entries(value, language) if isinstance(value, list) else None
    except ValueError:
        return None


def _listed_text(text: str | None) -> str | None:
    listed = _listed(text)
    return text if listed is None else listed[0]["text"] if listed else None


def _metadata(cell: str | None, values: tuple[str | None, ...], names: tuple[str, ...]) -> str | None:
    """Return the cell ``metadata`` of a row, with kept columns."""
    kept = {name: value for name, value in zip(names, values, strict=True) if value is not None}
    if not kept:
        return cell
    try:
        own = parse_json(cell) if cell else {}
    except ValueError:
        return cell
    return json.dumps({**own, **kept}, ensure_ascii=False, sort_keys=True) if isinstance(own, dict) else cell
