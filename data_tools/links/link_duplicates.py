"""Find links that stand in a table several times: the first that passed all rules stays.

Links are compared by 128 bits of BLAKE2b of the address as it is asked for, parted on disk by their first bits, so that
any number of them is compared a part at a time.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from data_tools.links.disk_buckets import DiskBuckets, read_bucket

ROWS = 500_000  # of which a bucket is made, on average
LINKS = pa.schema([("row", pa.int64()), ("link_hash", pa.binary(16)), ("uid", pa.string())])
DUPLICATES = pa.schema([("row", pa.int64()), ("first", pa.string())])


class LinkDuplicates:
    """Collects links, then finds what they have twice.

    Args:
        folder: For the parted links.
        rows: How many there will be at most.
    """

    def __init__(self, folder: Path, rows: int) -> None:
        """Open the buckets."""
        self.folder, self.count = folder, -(-max(rows, 1) // ROWS)
        self._buckets = DiskBuckets(folder)

    def add(self, links: pa.Table) -> None:
        """Add rows as in ``LINKS``, each hash 16 bytes."""
        high = hash_numbers(links["link_hash"])
        self._buckets.write(links, (high % np.uint64(self.count)).astype(np.int64))

    def find(self, output: DiskBuckets, rows_in_bucket: int) -> int:
        """Write the duplicates, as in ``DUPLICATES``, parted by their place in the table; return their number."""
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
    """(N, 2) uint64 of N hashes of 16 bytes, none of them empty."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not len(array):
        return np.zeros((0, 2), np.uint64)
    content = np.frombuffer(array.buffers()[1], np.uint64)
    return content[2 * array.offset : 2 * (array.offset + len(array))].reshape(-1, 2)


def hash_numbers(column: pa.ChunkedArray) -> np.ndarray:
    """(N,) uint64: the first halves of N hashes."""
    return hash_pairs(column)[:, 0]
