import hashlib
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from toys.shards import complete_sample, write_samples, write_toy_shards

from data_tools.check_shards import main as check
from leam_mm.data.keep_list import KEEP, PLACE, SCHEMA, kept_keys, read_keep_list, write_keep_list
from leam_mm.data.remote_shards import ShardCache, open_folder
from leam_mm.data.sample_plan import SamplePlan, Source
from leam_mm.data.shard_index import ShardFolder, ShardWriter, merkle_root, read_samples
from leam_mm.errors import UserError

ROWS = [(0, 1), (0, 3), (2, 0), (2, 1), (2, 5), (3, 2)]  # nothing of shard 1 and of the last one


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """31 samples in shards of 7, the last with 3."""
    return write_toy_shards(tmp_path / "shards", samples=31, samples_per_shard=7)


def kept_table(rows: list[tuple[int, int]], keys: list[str]) -> pa.Table:
    shard, row = zip(*rows, strict=True)
    return pa.table([shard, row, keys], schema=SCHEMA)


def write(folder: Path, shards: str, rows: list[tuple[int, int]] = ROWS, root: str | None = None) -> Path:
    stored = ShardFolder(folder.parent / "shards")
    folder.mkdir(exist_ok=True)
    keys = [stored.index(shard).keys[row] for shard, row in rows]
    write_keep_list(folder, shards, root or stored.merkle_root, kept_table(rows, keys))
    return folder


def test_only_kept_samples_are_seen(base: Path, tmp_path: Path) -> None:
    vetted = write(tmp_path / "vetted", "../shards")
    everything = list(read_samples(base))
    wanted = [everything[7 * shard + row] for shard, row in ROWS]
    assert list(read_samples(vetted)) == wanted and kept_keys(vetted) == [key for key, _ in wanted]
    folder = ShardFolder(vetted)
    assert [entry.samples for entry in folder.shards] == [2, 3, 1] and folder.samples == 6
    digest = hashlib.sha256((vetted / KEEP).read_bytes()).hexdigest()
    assert folder.merkle_root == f"{merkle_root(ShardFolder(base).shards)}+keep.{digest}"
    assert SamplePlan([Source(vetted)], 0, True).roots() == {str(vetted): folder.merkle_root}


def test_order_is_that_of_shards_that_hold_only_the_kept(base: Path, tmp_path: Path) -> None:
    vetted = write(tmp_path / "vetted", "../shards")
    copies = list(read_samples(vetted))
    with ShardWriter(tmp_path / "copied", 1) as writer:
        for key, members in copies:
            writer.write(key, members)
    order = [SamplePlan([Source(vetted)], 5, True).read(n)[2:] for n in range(30)]
    assert {key for key, _ in order} == {key for key, _ in copies}
    assert order == [SamplePlan([Source(vetted)], 5, True).read(n)[2:] for n in range(30)]
    other = write(tmp_path / "other", str(base.resolve()), ROWS[:4])
    assert [SamplePlan([Source(other)], 5, True).read(n).key for n in range(4)] != [key for key, _ in order[:4]]


def test_lists_follow_lists(base: Path, tmp_path: Path) -> None:
    first = write(tmp_path / "first", "../shards")
    second = tmp_path / "second"
    second.mkdir()
    rows = [(0, 1), (1, 0), (1, 2)]  # of the first list's own view
    keys = [ShardFolder(first).index(shard).keys[row] for shard, row in rows]
    write_keep_list(second, "../first", ShardFolder(first).merkle_root, kept_table(rows, keys))
    assert [key for key, _ in read_samples(second)] == keys
    assert ShardFolder(second).merkle_root.startswith(ShardFolder(first).merkle_root + "+keep.")


def test_lists_behind_urls(base: Path, tmp_path: Path) -> None:
    vetted = write(tmp_path / "vetted", "../shards")
    cache = ShardCache(tmp_path / "cache")
    local = [SamplePlan([Source(vetted)], 3, True).read(n)[2:] for n in range(12)]
    remote = SamplePlan([Source(f"file://{vetted}")], 3, True, cache)
    assert [remote.read(n)[2:] for n in range(12)] == local
    (vetted / PLACE).write_text(json.dumps({"shards": f"file://{base}"}))
    assert open_folder(vetted, cache).samples == 6
    with pytest.raises(UserError, match="copy"):
        ShardFolder(vetted)


def test_check_shards_reads_lists(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_samples(tmp_path / "shards", [complete_sample() for _ in range(31)], 4)
    rows = [(0, 1), (7, 2)]
    vetted = write(tmp_path / "vetted", "../shards", rows)
    check([str(vetted)])
    assert "2 of 31" in capsys.readouterr().out
    root = ShardFolder(tmp_path / "shards").merkle_root
    write_keep_list(vetted, "../shards", root, kept_table(rows, ["000001", "x"]))
    with pytest.raises(SystemExit):
        check([str(vetted), "--fast"])
    assert "names 'x', but '000030' is there" in capsys.readouterr().out


def test_wrong_lists_are_refused(base: Path, tmp_path: Path) -> None:
    vetted = write(tmp_path / "vetted", "../shards", root="0" * 64)
    with pytest.raises(UserError, match="Merkle root 000000000000"):
        ShardFolder(vetted)
    for rows, reason in (([(0, 7)], "a sample"), ([(5, 0)], "a shard")):
        write_keep_list(vetted, "../shards", ShardFolder(base).merkle_root, kept_table(rows, ["k"]))
        with pytest.raises(UserError, match=reason):
            ShardFolder(vetted)
    for rows in ([(1, 0), (0, 0)], [(0, 2), (0, 2)]):
        write_keep_list(vetted, "../shards", ShardFolder(base).merkle_root, kept_table(rows, ["k", "l"]))
        with pytest.raises(UserError, match="order"):
            ShardFolder(vetted)
    write(vetted, "../shards")
    (vetted / PLACE).write_text('{"shards": "../moved"}')
    with pytest.raises(UserError, match="write their path into it"):
        ShardFolder(vetted)
    (vetted / PLACE).write_text('{"shards": "."}')
    with pytest.raises(UserError, match="refers to itself"):
        ShardFolder(vetted)
    shutil.copytree(vetted, tmp_path / "other")
    for folder, other in ((vetted, "../other"), (tmp_path / "other", "../vetted")):
        (folder / PLACE).write_text(json.dumps({"shards": other}))
    with pytest.raises(UserError, match="refers to itself"):
        ShardFolder(vetted)
    (vetted / KEEP).write_bytes(b"PAR1")
    with pytest.raises(UserError, match="is not valid"):
        ShardFolder(vetted)
    (vetted / KEEP).unlink()
    assert read_keep_list(vetted) is None


def test_an_empty_list_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no sample is kept"):
        write_keep_list(tmp_path, "x", "0" * 64, SCHEMA.empty_table())
    assert not list(tmp_path.iterdir())
