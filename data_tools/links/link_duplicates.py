"""Find links that occur in a table several times: the first that passed all rules stays.

Links are compared by a 128-bit BLAKE2b hash of the normal form of their address (``normal_url``). They are grouped on
disk by hash, and one group is compared at a time.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from data_tools.links.disk_buckets import DiskBuckets, read_bucket

ROWS = 500_000  # average number of rows in a bucket
HASHES = pa.schema([("row", pa.int64()), ("link_hash", pa.binary(16)), ("uid", pa.string())])
DUPLICATES = pa.schema([("row", pa.int64()), ("first", pa.string())])


class LinkDuplicates:
    """Collects links, then finds those that occur again.

    Args:
        folder: Work folder for the grouped links.
        rows: Largest number of links.
    """

    def __init__(self, folder: Path, rows: int) -> None:
        """Open the buckets; see the class for the arguments."""
        self.folder, self.count = folder, -(-max(rows, 1) // ROWS)
        self._buckets = DiskBuckets(folder)

    def add(self, links: pa.Table) -> None:
        """Add rows as in ``HASHES``, each hash 16 bytes."""
        high = hash_numbers(links["link_hash"])
        self._buckets.write(links, (high % np.uint64(self.count)).astype(np.int64))

    def find(self, output: DiskBuckets, rows_in_bucket: int) -> int:
        """Write the duplicates as in ``DUPLICATES``, grouped by row // ``rows_in_bucket``; return their number."""
        self._buckets.__exit__(None, None, None)
        total = 0
        for number in range(self.count):
            parts = list(read_bucket(self.folder, number))
            if not parts:
                continue
            links = pa.concat_tables(parts)
            row, pairs = links["row"].to_numpy(), hash_pairs(links["link_hash"])
            order = np.lexsort((row, pairs[:, 1], pairs[:, 0]))
            again = np.r_[False, (pairs[order][1:] == pairs[order][:-1]).all(axis=1)]
            first = np.maximum.accumulate(np.where(again, 0, np.arange(len(order))))
            uids = links["uid"].take(pa.array(order[first[again]]))
            rows = row[order[again]]
            output.write(pa.table([pa.array(rows), uids], schema=DUPLICATES), rows // rows_in_bucket)
            total += len(rows)
        return total


def hash_pairs(column: pa.ChunkedArray) -> np.ndarray:
    """Return N hashes of 16 bytes, none of them null, as (N, 2) uint64."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not len(array):
        return np.zeros((0, 2), np.uint64)
    content = np.frombuffer(array.buffers()[1], np.uint64)
    return content[2 * array.offset : 2 * (array.offset + len(array))].reshape(-1, 2)


def hash_numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Return the first halves of N hashes as (N,) uint64."""
    return hash_pairs(column)[:, 0]
