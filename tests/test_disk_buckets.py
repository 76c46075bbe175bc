from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_tools.links.disk_buckets import DiskBuckets, read_bucket
from leam_mm.errors import UserError


@pytest.mark.parametrize("held", [1, 5000, 1 << 20])
def test_rows_come_back_from_their_buckets_in_order(held: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    number = generator.integers(0, 7, 3000)
    words = pa.array([f"wörd {row % 11}" for row in range(3000)]).dictionary_encode()
    table = pa.table({"row": np.arange(3000), "word": words})
    with DiskBuckets(tmp_path / "parts", held) as buckets:
        for start in range(0, 3000, 100):
            buckets.write(table.slice(start, 100), number[start : start + 100])
    for bucket in range(8):
        found = [row for part in read_bucket(tmp_path / "parts", bucket) for row in part.to_pylist()]
        assert found == [row for row in table.to_pylist() if number[row["row"]] == bucket]


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    table = pa.table({"row": [1, 2]})
    with pytest.raises(RuntimeError), DiskBuckets(tmp_path / "parts", 1) as buckets:
        buckets.write(table, np.array([0, 1]))
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with DiskBuckets(tmp_path / "parts") as buckets:
        buckets.write(table, np.array([3, 3]))
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["000003.arrows"]
    assert list(read_bucket(tmp_path / "parts", 0)) == []
    path = tmp_path / "parts" / "000003.arrows"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="damaged"):
        list(read_bucket(tmp_path / "parts", 3))
