from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from leam_mm.data.index_file import MAX_RECORD, ShardIndex, read_index, read_records, records_line
from leam_mm.data.open_shard import OpenShard
from leam_mm.data.shard_manifest import ShardEntry
from leam_mm.errors import UserError

OWN = ShardEntry("0.tar", "0" * 64, 5000, 2)
ENTRY = replace(OWN, records="1" * 64)
LINES = [
    records_line("a", 512, 100, "jpg", "2" * 64, b'{"x": 1}'),
    records_line('ü "\\', 2048, 7, "png", "3" * 64, b"{}"),
]


def read(tmp_path: Path, content: bytes) -> ShardIndex:
    (tmp_path / "x").write_bytes(content)
    return read_records(tmp_path / "x", ENTRY, "x")


def test_a_file_of_records_is_read_as_written(tmp_path: Path) -> None:
    found = read(tmp_path, b"".join(LINES))
    assert found.keys == ["a", 'ü "\\'] and found.sha256 == ["2" * 64, "3" * 64] and found.records is not None
    assert (found.offset.tolist(), found.size.tolist(), found.records.suffix) == ([512, 2048], [100, 7], ["jpg", "png"])
    content = b"".join(LINES)
    ends = found.records.offset + found.records.size
    assert [content[a:b] for a, b in zip(found.records.offset, ends, strict=True)] == [b'{"x": 1}', b"{}"]
    one = found.take(np.array([1]))
    assert one.keys == ['ü "\\'] and one.records is not None and one.records.suffix == ["png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 lines"),
        (LINES[0], "1 lines"),
        (LINES[0] * 3, "3 lines"),
        (b"".join(LINES)[:-1], "line 2 is no record"),
        (b"\n" + b"".join(LINES), "line 1"),
        (b"".join(LINES).replace(b"png", b"exe"), "line 2"),
        (b"".join(LINES).replace(b"2048", b"-1"), "line 2"),
        (b"".join(LINES).replace(b"2048", b"9" * 18), "beyond the end"),
        (b"".join(LINES).replace(b"2048", b"9" * 19), "line 2"),
        (b"".join(LINES).replace(b'"size": 7', b'"size": 0'), "no range of a tar"),
        (b"".join(LINES).replace(b'"a"', b'"\\ud800"'), "key in line 1"),
        (b"".join(LINES).replace(b'"a"', b'"\xff"'), "key in line 1"),
        (b"".join(LINES).replace(b'{"x": 1}', b'{"x": "' + b"y" * MAX_RECORD + b'"}'), "more than"),
    ],
)
def test_hostile_files_of_records(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, content)


def test_an_index_of_ours_is_read_as_written(tmp_path: Path) -> None:
    index = ShardIndex(["a", "b"], np.array([0, 1024]), np.array([1024, 512]), ["2" * 64, "3" * 64])
    index.write(tmp_path / "x")
    found = read_index(tmp_path / "x", OWN, "x")
    assert found.keys == index.keys and found.size.tolist() == [1024, 512] and found.records is None


def test_records_that_end_early_and_keys_that_fit_no_tar(tmp_path: Path) -> None:
    long = records_line("k" * 300, 512, 100, "jpg", "2" * 64, b'{"x": 1}')
    index = read(tmp_path, long + LINES[1])
    (tmp_path / "tar").write_bytes(bytes(5000))
    (tmp_path / "x").write_bytes(long)
    with OpenShard(open(tmp_path / "tar", "rb", buffering=0), index, open(tmp_path / "x", "rb", buffering=0)) as shard:
        assert shard.members(0) == {"jpg": bytes(100), "json": b'{"x": 1}'}
        with pytest.raises(UserError, match="fits no tar"):
            shard.raw(0)
        with pytest.raises(UserError, match="file of records ends at byte"):
            shard.members(1)
