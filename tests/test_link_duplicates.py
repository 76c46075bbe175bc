import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_tools.links import link_duplicates
from data_tools.links.disk_buckets import DiskBuckets, read_bucket
from data_tools.links.link_duplicates import LINKS, LinkDuplicates, hash_pairs


@pytest.mark.parametrize("rows_in_part", [50, 10_000])
def test_the_first_of_each_address_stays(rows_in_part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_duplicates, "ROWS", rows_in_part)
    address = np.random.default_rng(0).integers(0, 400, 1000)
    hashes = [hashlib.blake2b(bytes([number % 256, number // 256]), digest_size=16).digest() for number in address]
    table = pa.table(
        [np.arange(1000), pa.array(hashes, pa.binary(16)), [f"u{row}" for row in range(1000)]], schema=LINKS
    )
    known = LinkDuplicates(tmp_path / "hashes", 1000)
    for start in range(0, 1000, 64):
        known.add(table.slice(start, 64))
    with DiskBuckets(tmp_path / "found") as output:
        total = known.find(output, 100)
    found = {
        row["row"]: row["first"]
        for part in range(10)
        for each in read_bucket(tmp_path / "found", part)
        for row in each.to_pylist()
    }
    first: dict[int, int] = {}
    wanted = {row: f"u{first[number]}" for row, number in enumerate(address) if first.setdefault(number, row) != row}
    assert found == wanted and total == len(wanted) > 500


def test_hashes_of_slices_are_read_at_their_place() -> None:
    hashes = pa.array([bytes([number] * 16) for number in range(10)], pa.binary(16))
    assert (hash_pairs(hashes.slice(3, 4)) == hash_pairs(hashes)[3:7]).all() and hash_pairs(hashes[:0]).shape == (0, 2)
