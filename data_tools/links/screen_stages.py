"""Stages of link screening that regroup rows on disk: by address, by origin, and back into table order.

Every stage writes its groups with links/disk_buckets.py and reads one group at a time, so memory does not grow with the
table. A stage whose folder exists is complete and is not repeated.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_tools.links.disk_buckets import DiskBuckets, read_bucket
from data_tools.links.host_shuffle import hashed
from data_tools.links.link_duplicates import HASHES, LinkDuplicates, hash_numbers
from data_tools.links.robots_screen import LINKS, decision_tables
from data_tools.links.row_filters import CHUNK, read_chunk
from data_tools.links.screened_folder import RANGE
from data_tools.network.link_address import host_of
from leam_mm.files import atomic_folder


def find_duplicates(work: Path, chunks: int, rows: int) -> Path:
    """Group the links that passed the row filters by their hashes, and write those that occur again.

    Args:
        work: The work folder, with the chunks in ``rows``.
        chunks: Number of chunks.
        rows: Number of rows.

    Returns:
        Folder of the duplicates, grouped by row // ``RANGE``.
    """
    output = work / "duplicates"
    if not output.exists():
        duplicates = LinkDuplicates(work / "hashes", rows)
        for number in range(chunks):
            table = read_chunk(work / "rows", number, ["link_hash", "uid"])
            row = np.arange(number * CHUNK, number * CHUNK + table.num_rows)
            links = pa.table([pa.array(row), table["link_hash"], table["uid"]], schema=HASHES)
            duplicates.add(links.filter(pc.is_valid(links["link_hash"])))
        with DiskBuckets(output) as buckets:
            duplicates.find(buckets, RANGE)
    return output


def group_by_origin(work: Path, chunks: int, buckets: int, duplicates: Path) -> Path:
    """Group the remaining links by the hash of their origin.

    Args:
        work: The work folder, with the chunks in ``rows``.
        chunks: Number of chunks.
        buckets: Number of groups.
        duplicates: Folder of ``find_duplicates``.

    Returns:
        Folder of the links, as in ``robots_screen.LINKS``.
    """
    output = work / "origins"
    if output.exists():
        return output
    names = ["fetch", "origin", "source", "legal_basis", "page_url", "terms"]
    current, repeated = -1, np.zeros(0, np.int64)
    with DiskBuckets(output) as grouped:
        for number in range(chunks):
            if current != number * CHUNK // RANGE:
                current = number * CHUNK // RANGE
                found = [part["row"].to_numpy() for part in read_bucket(duplicates, current)]
                repeated = np.concatenate([np.zeros(0, np.int64), *found])
            table = read_chunk(work / "rows", number, [*names, "link_hash"])
            row = np.arange(number * CHUNK, number * CHUNK + table.num_rows)
            stays = pc.is_valid(table["link_hash"]).to_numpy() & ~np.isin(row, repeated)
            table, row = table.filter(pa.array(stays)), row[stays]
            origins = table["origin"].combine_chunks().dictionary_encode()
            hashes = np.array([hashed(origin) for origin in origins.dictionary.to_pylist()], np.uint64)
            origin = hashes[origins.indices.to_numpy()] if len(hashes) else np.zeros(0, np.uint64)
            columns = [pa.array(row), *(table[name] for name in names), pa.array(origin)]
            links = pa.table([*columns, pa.array(hash_numbers(table["link_hash"]))], schema=LINKS)
            grouped.write(links, (origin % np.uint64(buckets)).astype(np.int64))
    return output


def origin_hosts(links: Path, buckets: int) -> Iterator[str]:
    """Yield the hosts of all origins."""
    for number in range(buckets):
        for table in read_bucket(links, number):
            yield from (host_of(origin) for origin in pc.unique(table["origin"]).to_pylist())


def group_by_row(work: Path, buckets: int) -> Path:
    """Group what ``RobotsScreen`` wrote to ``work / "screened"`` by row // ``RANGE``."""
    output = work / "by_row"
    if not output.exists():
        with (
            atomic_folder(output) as partial,
            DiskBuckets(partial / "decisions") as decisions,
            DiskBuckets(partial / "positions") as positions,
        ):
            for number in range(buckets):
                written = decision_tables(work / "screened", number)
                for grouped, tables in zip((decisions, positions), written, strict=True):
                    for table in tables:
                        grouped.write(table, table["row"].to_numpy() // RANGE)
    return output
