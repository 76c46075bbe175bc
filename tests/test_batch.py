import json
from pathlib import Path
from typing import Any

import pytest
import torch
from toys.images import coloured_square
from toys.shards import write_toy_shards

from leam_mm.data.batch import (
    Decoding,
    PlannedBatches,
    Sample,
    batch_loader,
    collate_samples,
    read_record,
)
from leam_mm.data.image_decoding import ImageDecoding, image_member
from leam_mm.data.loader_workers import FromPosition
from leam_mm.data.sample_order import sample_generator
from leam_mm.data.sample_plan import SamplePlan, Source
from leam_mm.data.shard_index import ShardWriter
from leam_mm.errors import UserError


class Keys(Decoding):
    """Key, number and one random pixel: enough to see which sample it is and whose randomness it has."""

    def __call__(self, key: str, members: dict[str, bytes], index: int) -> Sample:
        image = ImageDecoding(16, crop_scale=(0.5, 1.0))(image_member(members), sample_generator(self.seed, index, "c"))
        return {"key": key, "sample_index": torch.tensor(index), "image": image}


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """31 samples in shards of 7, the last with 3."""
    return write_toy_shards(tmp_path_factory.mktemp("uneven") / "shards", samples=31, samples_per_shard=7)


def batches(folder: Path, size: int = 8, rank: int = 0, world: int = 1, limit: int | None = None) -> PlannedBatches:
    spans = [range(first, min(first + size, limit)) for first in range(0, limit, size)] if limit else None
    return PlannedBatches(SamplePlan([Source(folder)], seed=3, shuffle=True), Keys(3), size, rank, world, spans)


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) if isinstance(left[name], torch.Tensor) else left[name] == right[name]
        for name in left
    )


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_together_load_the_batch_of_one_rank(uneven: Path, world: int) -> None:
    whole = batches(uneven)
    parts = [batches(uneven, rank=rank, world=world) for rank in range(world)]
    for number in range(8):  # two epochs of 31 samples
        one, many = whole[number], [part[number] for part in parts]
        assert [len(part["key"]) for part in many] == [8 // world] * world
        assert one["key"] == [key for part in many for key in part["key"]]
        for name in ("sample_index", "image"):
            assert torch.equal(one[name], torch.cat([part[name] for part in many]))


def test_each_sample_comes_once_per_epoch(uneven: Path) -> None:
    made = batches(uneven, size=1)
    for epoch in range(2):
        keys = [made[number]["key"][0] for number in range(31 * epoch, 31 * (epoch + 1))]
        assert sorted(keys) == [f"{number:06d}" for number in range(31)]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_change_nothing(uneven: Path, workers: int) -> None:
    alone = list(batch_loader(batches(uneven), FromPosition(0, 5), 0))
    shared = list(batch_loader(batches(uneven), FromPosition(0, 5), workers))
    assert len(alone) == len(shared) == 5
    assert all(same(left, right) for left, right in zip(alone, shared, strict=True))


def test_more_workers_than_shards(tmp_path: Path) -> None:
    folder = write_toy_shards(tmp_path / "one", samples=5, samples_per_shard=9)
    alone = list(batch_loader(batches(folder, 4), FromPosition(0, 3), 0))
    shared = list(batch_loader(batches(folder, 4), FromPosition(0, 3), 3))
    assert all(same(left, right) for left, right in zip(alone, shared, strict=True))


def test_position_resumes_where_it_stopped(uneven: Path) -> None:
    whole = list(batch_loader(batches(uneven), FromPosition(0, 6), 0))
    rest = list(batch_loader(batches(uneven), FromPosition(4, 6), 0))
    assert len(rest) == 2 and len(FromPosition(4, 6)) == 6  # the progress bar counts the whole training
    assert all(same(left, right) for left, right in zip(whole[4:], rest, strict=True))


def test_limit_shortens_the_last_batch(uneven: Path) -> None:
    made = batches(uneven, limit=20)
    assert [len(made[number]["key"]) for number in range(3)] == [8, 8, 4]


def test_batch_size_must_divide(uneven: Path) -> None:
    with pytest.raises(UserError, match=r"8 is not divisible by 3 ranks: choose a multiple"):
        batches(uneven, world=3)


def broken_folder(folder: Path, members: dict[str, bytes]) -> Path:
    with ShardWriter(folder, 4) as writer:
        for number in range(4):
            good = {"png": coloured_square("red", number), "json": json.dumps({"captions": []}).encode()}
            writer.write(f"{number:06d}", members if number == 2 else good)
    return folder


def test_broken_image_names_its_shard_and_key(tmp_path: Path) -> None:
    folder = broken_folder(tmp_path / "broken", {"png": coloured_square("red", 0)[:60], "json": b"{}"})
    with pytest.raises(UserError, match=r"broken/00000\.tar, key 000002: unreadable image .*check_shards"):
        batches(folder, 4)[0]


def test_sample_without_image_names_its_shard_and_key(tmp_path: Path) -> None:
    folder = broken_folder(tmp_path / "broken", {"json": b"{}"})
    with pytest.raises(UserError, match=r"00000\.tar, key 000002: the sample has no image"):
        batches(folder, 4)[0]


def test_truncated_tar_is_named(tmp_path: Path) -> None:
    folder = write_toy_shards(tmp_path / "cut", samples=4, samples_per_shard=4)
    tar = folder / "00000.tar"
    tar.write_bytes(tar.read_bytes()[:-700])
    with pytest.raises(UserError, match=r"00000\.tar has \d+ bytes, the manifest says"):
        batches(folder, 4)[0]


def test_overwritten_header_names_its_shard_and_key(tmp_path: Path) -> None:
    folder = write_toy_shards(tmp_path / "bad", samples=4, samples_per_shard=4)
    tar = folder / "00000.tar"
    content = bytearray(tar.read_bytes())
    content[:512] = b"\xff" * 512
    tar.write_bytes(content)
    with pytest.raises(UserError, match=r"00000\.tar, key 000000: broken tar header"):
        batches(folder, 4)[0]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"captions": []}',
        b'{"captions": 3}',
        b'{"captions": ["a"]}',
        b'{"captions": [{"text": 1}]}',
    ],
)
def test_unusable_captions_are_one_line(content: bytes) -> None:
    with pytest.raises(UserError, match="its json"):
        read_record({"json": content}, "captions")
    with pytest.raises(UserError, match="has no json"):
        read_record({}, "captions")


def test_collate_stacks_tensors_and_lists_the_rest() -> None:
    made = collate_samples([{"a": torch.tensor([1]), "b": "x"}, {"a": torch.tensor([2]), "b": "y"}])
    assert torch.equal(made["a"], torch.tensor([[1], [2]])) and made["b"] == ["x", "y"]


def test_decoding_says_what_to_define() -> None:
    with pytest.raises(NotImplementedError, match="Decoding must define"):
        Decoding(0)("key", {}, 0)
