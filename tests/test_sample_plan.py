import os
import pickle
from pathlib import Path

import pytest
from conftest import write_toy_shards

from leam_mm.data import sample_plan
from leam_mm.data.sample_plan import OPEN_SHARDS, SamplePlan, SampleReader, Source
from leam_mm.data.shard_index import ShardFolder, read_samples
from leam_mm.errors import UserError


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """31 samples in shards of 7, the last with 3."""
    return write_toy_shards(tmp_path_factory.mktemp("uneven") / "shards", samples=31, samples_per_shard=7)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 shards of one sample."""
    return write_toy_shards(tmp_path_factory.mktemp("many") / "shards", samples=40, samples_per_shard=1)


def open_files(folder: Path) -> int:
    return sum(
        os.path.realpath(path).startswith(f"{folder}/") and ".tar" in os.path.realpath(path)
        for path in Path("/proc/self/fd").iterdir()
    )


def test_samples_are_those_of_the_tars(uneven: Path) -> None:
    plan = SamplePlan([Source(str(uneven))], seed=0, shuffle=False)
    assert [plan.read(number)[2:] for number in range(31)] == list(read_samples(uneven))


def test_rows_count_the_samples_as_they_are_stored(uneven: Path, many: Path) -> None:
    plan = SamplePlan([Source(uneven, 31), Source(many, 40)], seed=0, shuffle=True)
    keys = [key for folder in (uneven, many) for key, _ in read_samples(folder)]
    found = [plan.read(number) for number in range(300)] + [plan.read(5, attempt) for attempt in range(40)]
    assert all(keys[stored.row] == stored.key for stored in found)
    assert {stored.row for stored in found} == set(range(71))


def test_mixture_draws_from_each_source(uneven: Path, toy_shards: Path) -> None:
    plan = SamplePlan([Source(uneven, 1.0), Source(toy_shards, 3.0)], seed=0, shuffle=True)
    drawn = [plan.locate(index)[0] for index in range(1024)]
    assert drawn.count(0) == 256
    assert plan.roots().keys() == {str(uneven), str(toy_shards)}
    assert plan.samples == 31 + 96
    assert Path(plan.read(0).shard).is_file()


def test_no_source_is_refused() -> None:
    with pytest.raises(UserError, match="name at least one shard folder"):
        SamplePlan([], 0, True)


def test_readers_travel_to_workers_without_open_files(uneven: Path) -> None:
    reader = SampleReader(uneven)
    expected = reader.read(1, 2)
    copy = pickle.loads(pickle.dumps(reader))
    assert not copy._open and copy.read(1, 2) == expected


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux to count open files")
def test_few_files_are_open_however_many_shards_are_read(many: Path) -> None:
    folder = write_toy_shards(many.parent / "own", samples=40, samples_per_shard=1)
    plan = SamplePlan([Source(folder)], seed=0, shuffle=True)
    for number in range(120):
        plan.read(number)
        assert open_files(folder) <= OPEN_SHARDS
    assert open_files(folder) == OPEN_SHARDS


def test_a_block_opens_each_shard_once(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    original = ShardFolder.open
    monkeypatch.setattr(ShardFolder, "open", lambda self, number: opened.append(number) or original(self, number))  # type: ignore[func-returns-value]
    folder = write_toy_shards(many.parent / "blocks", samples=48, samples_per_shard=3)
    plan = SamplePlan([Source(folder)], seed=0, shuffle=True)
    for number in range(48):
        plan.read(number)
    assert sorted(opened) == list(range(16))


@pytest.mark.parametrize("positioned", [True, False])
def test_a_tar_that_shrinks_while_it_is_open_is_a_fault_of_its_last_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, positioned: bool
) -> None:
    if not positioned:  # as on Windows
        monkeypatch.delattr(sample_plan.os, "pread")
    folder = write_toy_shards(tmp_path / "cut", samples=4, samples_per_shard=4)
    reader = SampleReader(folder)
    first = reader.read(0, 0)
    with open(folder / "00000.tar", "r+b") as file:
        file.truncate(int(reader.folder.index(0).offset[2]))
    assert reader.read(0, 0) == first
    with pytest.raises(UserError, match=r"00000\.tar, key 000002: its tar ends at byte \d+"):
        reader.read(0, 2)


def test_a_broken_shard_is_looked_at_once(tmp_path: Path) -> None:
    folder = write_toy_shards(tmp_path / "gone", samples=4, samples_per_shard=2)
    content = (folder / "00001.tar").read_bytes()
    reader = SampleReader(folder)
    (folder / "00001.tar").unlink()
    for _ in range(2):
        with pytest.raises(UserError, match=r"00001\.tar is missing"):
            reader.read(1, 0)
        (folder / "00001.tar").write_bytes(content)  # the substitutes of a run do not change in the middle of it
    assert reader.read(0, 1)[0] == "000001"
