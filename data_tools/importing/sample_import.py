"""Import samples of another format: stage rows in parts, then check, repair and write as a download does."""

import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.download.download_worker import FETCHED, GROUP_BYTES, GROUP_ROWS, part_file
from data_tools.download.image_download import DownloadSettings, write_shards
from data_tools.download.image_repair_pool import Fetched, repaired_rows
from data_tools.importing.import_columns import ImportColumns, link_row
from data_tools.importing.sample_source import SampleSource, SourceRow
from data_tools.links.link_rows import LinkRows
from data_tools.links.withdrawn_lists import lists_beside, read_lists
from data_tools.samples.image_repair import ImageRule
from data_tools.work.work_folder import open_work_folder
from leam_mm.data.parquet_file import own_parquet
from leam_mm.errors import UserError
from leam_mm.files import atomic_write, bytes_sha256

ROWS = 1000  # of a part
NO_IMAGE = "no bytes of an image; the row only names one, or is empty"


def import_samples(
    source: SampleSource, columns: ImportColumns, defaults: dict[str, str | None], settings: DownloadSettings
) -> tuple[int, str]:
    """Write a shard folder of the samples of a source; a killed run continues with the next part.

    Args:
        source: The folder of another format.
        columns: The columns that are read.
        defaults: ``language``, ``licence`` and ``legal_basis`` that the user states.
        settings: Output, limits and repair of images.

    Returns:
        Number of samples, and Merkle root.

    Raises:
        UserError: No sample can be kept.
    """
    output = settings.output
    work, withdrawn = output.with_name(output.name + ".work"), read_lists(lists_beside(output))
    rule = ImageRule(**{name: getattr(settings, name) for name in asdict(ImageRule())})
    identity = {"format": source.name, "columns": repr(columns), "defaults": defaults} | asdict(rule)
    identity["files"] = bytes_sha256(json.dumps(source.identity).encode())
    with open_work_folder(work, identity | {"withdrawn": withdrawn.sha256}):
        count = stage_rows(source, columns, defaults, work, settings.max_bytes)
        links = LinkRows(work / "links", None, True, [], withdrawn, trusted=True)
        fetched = repaired_rows(
            work / "raw", iter(range(count)), count, ROWS, rule, settings.processes, withdrawn.folders
        )
        seal = identity | {"samples_per_shard": settings.samples_per_shard}
        kept, root = write_shards(links, itertools.repeat(None), _wanted(links, fetched), settings, seal, withdrawn)
    shutil.rmtree(work, ignore_errors=True)
    return kept, root


def stage_rows(
    source: SampleSource, columns: ImportColumns, defaults: dict[str, str | None], work: Path, max_bytes: int
) -> int:
    """Write the rows of a source in parts of ``ROWS``: texts to ``links``, bytes of images to ``raw``.

    Returns:
        Number of rows.
    """
    for name in ("links", "raw", "scratch"):
        (work / name).mkdir(exist_ok=True)
    done = 0
    while part_file(work / "raw", done).is_file() and part_file(work / "links", done).is_file():
        done += 1
    # The last part may be shorter, and then ends the source.
    count = 0
    for part in range(done):
        with own_parquet(part_file(work / "raw", part)) as file:
            count += file.metadata.num_rows
    if count < done * ROWS:
        return count
    rows = source.rows(columns.read, count, work / "scratch", max_bytes)
    for part in itertools.count(done):
        group = itertools.islice(rows, ROWS)
        written = _write_part(group, part, count, columns, defaults, work)
        count += written
        if written < ROWS:
            break
    if not count:
        raise UserError(f"{source.folder} holds no row: give a folder with samples")
    return count


def _write_part(
    rows: Iterable[SourceRow],
    part: int,
    first: int,
    columns: ImportColumns,
    defaults: dict[str, str | None],
    work: Path,
) -> int:
    """Write one part; return its number of rows. The links are written last: they mark the part as complete."""
    links: list[dict[str, str | None]] = []
    group: list[dict[str, Any]] = []
    size = 0
    with (
        atomic_write(part_file(work / "raw", part)) as temporary,
        pq.ParquetWriter(temporary, FETCHED, compression="none") as writer,
    ):
        for row in rows:
            links.append(link_row(row, columns, defaults, work))
            group.append(_fetched(row, columns.image, first + len(links) - 1, defaults["legal_basis"]))
            size += len(group[-1]["content"] or b"")
            if len(group) == GROUP_ROWS or size >= GROUP_BYTES:
                writer.write_table(pa.Table.from_pylist(group, FETCHED))
                group, size = [], 0
        writer.write_table(pa.Table.from_pylist(group, FETCHED))
    if links:
        table = pa.table({name: pa.array([row[name] for row in links], pa.string()) for name in links[0]})
        with atomic_write(part_file(work / "links", part)) as temporary:
            pq.write_table(table, temporary)
    else:
        part_file(work / "raw", part).unlink()
    return len(links)


def _fetched(row: SourceRow, image: str, number: int, legal_basis: str | None) -> dict[str, Any]:
    content = row.cells.get(image)
    found: dict[str, Any] = {"row": number, "legal_basis": legal_basis, "response": "{}", "visit": "{}"}
    if row.fault or not isinstance(content, bytes) or not content:
        reason = row.fault or NO_IMAGE
        return found | {"rule": "source", "value": row.place[:200], "reason": reason, "content": None}
    return found | {"rule": "", "value": "", "reason": "", "sha256": bytes_sha256(content), "content": content}


def _wanted(links: LinkRows, fetched: Iterator[tuple[int, Fetched]]) -> Iterator[tuple[int, Fetched]]:
    """Yield the images of those rows that are not refused for what their texts say."""
    for row, found in zip(links, fetched, strict=True):
        if row.fetch:
            yield found
