import json
import os
import pickle
from collections import Counter
from pathlib import Path

import pytest
from toys.shards import TOY_BUCKETS, write_toy_buckets, write_toy_shards

from leam_mm.data import open_shard
from leam_mm.data.aspect_buckets import BUCKETS, folder_name
from leam_mm.data.remote_shards import ShardCache
from leam_mm.data.sample_order import SampleOrder
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
        monkeypatch.delattr(open_shard.os, "pread")
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


def runs(plan: SamplePlan, length: int, count: int) -> list[tuple[int, list[str]]]:
    """Folder and keys of each run; a run of two folders of one shape counts as the first's."""
    found = []
    for run in range(count):
        numbers = range(run * length, (run + 1) * length)
        found.append((plan.locate(numbers[0])[0], [plan.read(number).key for number in numbers]))
    return found


def test_buckets_come_in_runs_of_one_shape_and_each_has_its_own_epochs(tmp_path: Path) -> None:
    folder = write_toy_buckets(tmp_path / "latents")
    plan = SamplePlan([Source(folder)], seed=3, shuffle=True, bucket_batch=4)
    assert (
        plan.shapes == sorted(TOY_BUCKETS)
        and plan.shape_samples == TOY_BUCKETS
        and plan.samples == plan.source_samples[0] == 48
    )
    keys: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for bucket, own in runs(plan, 4, 192):
        keys[bucket] += own
    # 48 samples make 12 runs: 192 runs are 16 epochs. Each bucket has had as many runs as its share, less than one off.
    assert [abs(len(keys[bucket]) / 4 - 192 * count / 48) < 1 for bucket, count in enumerate(TOY_BUCKETS.values())] == [
        True
    ] * 3
    first = 0
    for bucket, count in enumerate(TOY_BUCKETS.values()):
        expected = {f"{number:06d}" for number in range(first, first + count)}
        first += count
        for epoch in range(len(keys[bucket]) // count):  # 11 and 7 are no multiples of 4: the rest goes over
            assert set(keys[bucket][epoch * count : (epoch + 1) * count]) == expected
        # The bucket alone has this very order.
        alone = SampleOrder([4] * (count // 4) + [count % 4] * bool(count % 4), 3 + bucket)
        samples = [key for key, _ in read_samples(folder / folder_name(plan.shapes[bucket]))]
        order = [alone.locate(number) for number in range(len(keys[bucket]))]
        assert keys[bucket] == [samples[4 * shard + row] for shard, row in order]


def test_several_folders_of_buckets_share_the_shapes_by_their_weights(tmp_path: Path) -> None:
    one = write_toy_buckets(tmp_path / "one", {(8, 24): 6, (16, 16): 12})
    two = write_toy_buckets(tmp_path / "two", {(16, 16): 10, (24, 8): 5}, first=100)
    plan = SamplePlan([Source(one, 1.0), Source(two, 3.0)], seed=1, shuffle=True, bucket_batch=4)
    assert plan.shapes == [(8, 24), (16, 16), (24, 8)] and plan.source_samples == [18, 15]
    assert plan.shape_samples == {(8, 24): 6, (16, 16): 22, (24, 8): 5}
    of_folder, of_shape = Counter[int](), Counter[tuple[int, int]]()
    shape_of = [(8, 24), (16, 16), (16, 16), (24, 8)]
    for run in range(6 * 128):
        folders = [plan.locate(4 * run + slot)[0] for slot in range(4)]
        assert len({shape_of[folder] for folder in folders}) == 1
        of_folder.update(folders)
        of_shape[shape_of[folders[0]]] += 4
    seen = 6 * 512
    # A quarter of all is drawn from the first folder; a third of that in its first shape.
    shares = [1 / 4 / 3, 1 / 4 * 2 / 3, 3 / 4 * 2 / 3, 3 / 4 / 3]
    assert [of_folder[number] / seen for number in range(4)] == pytest.approx(shares, abs=2e-3)
    assert of_shape[16, 16] / seen == pytest.approx(shares[1] + shares[2], abs=2e-3)
    with pytest.raises(UserError, match=r"weights \[1.0, 0.0\] must all be positive"):
        plan.weigh([1.0, 0.0])


def test_buckets_in_order_for_validation(tmp_path: Path) -> None:
    folder = write_toy_buckets(tmp_path / "latents")
    plan = SamplePlan([Source(folder)], seed=0, shuffle=False)
    assert [plan.read(number).key for number in range(48)] == [f"{number:06d}" for number in range(48)]
    assert {Path(root).name for root in plan.roots()} == {"8x24", "16x16", "24x8"}


def test_folders_with_and_without_buckets_are_not_mixed(tmp_path: Path, uneven: Path) -> None:
    folder = write_toy_buckets(tmp_path / "latents")
    with pytest.raises(UserError, match=r"mixes folders of buckets with \['.*shards'\], which have none"):
        SamplePlan([Source(folder), Source(uneven)], 0, True, bucket_batch=4)
    with pytest.raises(UserError, match="in runs of one shape: give bucket_batch"):
        SamplePlan([Source(folder)], 0, True)


def test_buckets_that_are_not_all_there_are_refused(tmp_path: Path) -> None:
    folder = write_toy_buckets(tmp_path / "latents")
    content = json.loads((folder / BUCKETS).read_text())
    content["buckets"][0]["samples"] += 1
    (folder / BUCKETS).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"8x24 holds 11 samples, .*buckets\.json says 12: copy or encode"):
        SamplePlan([Source(folder)], 0, True, bucket_batch=4)
    (folder / BUCKETS).unlink()
    with pytest.raises(UserError, match=r"latents is no shard folder: manifest\.jsonl is missing"):
        SamplePlan([Source(folder)], 0, True, bucket_batch=4)


def test_buckets_behind_a_url_have_the_same_order(tmp_path: Path) -> None:
    folder = write_toy_buckets(tmp_path / "latents")
    local = SamplePlan([Source(folder)], 3, True, bucket_batch=4)
    remote = SamplePlan([Source(f"file://{folder}")], 3, True, ShardCache(tmp_path / "cache"), 4)
    assert [local.read(number)[1:] for number in range(96)] == [remote.read(number)[1:] for number in range(96)]
    (folder / BUCKETS).unlink()
    with pytest.raises(UserError, match=r"latents/manifest\.jsonl is missing: upload the whole folder"):
        SamplePlan([Source(f"file://{folder}")], 3, True, ShardCache(tmp_path / "cache"), 4)
