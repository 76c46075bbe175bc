import numpy as np
import pytest

from leam_mm.data.sample_order import (
    MixtureOrder,
    SampleOrder,
    permute,
    sample_generator,
)
from leam_mm.errors import UserError

SHARDS = [20, 20, 7, 20, 1, 20, 13, 20, 20, 5]  # uneven on purpose


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 255, 256, 257, 1000, 4097])
def test_permutation_is_a_bijection(size: int) -> None:
    orders = []
    for key in (0, 1, 2**63):
        mapped = permute(np.arange(size), size, key)
        assert np.array_equal(np.sort(mapped), np.arange(size))
        orders.append(tuple(mapped))
    if size > 16:
        assert len(set(orders)) == 3 and tuple(range(size)) not in orders


def test_permutation_maps_each_index_by_itself() -> None:
    whole = permute(np.arange(5000), 5000, 3)
    assert all(int(permute(np.array([index]), 5000, 3)[0]) == whole[index] for index in (0, 1, 777, 4999))


def test_permutation_of_huge_ranges_stays_inside() -> None:
    size = 10**11 + 7
    mapped = permute(np.arange(0, size, size // 1000), size, 5)
    assert mapped.min() >= 0 and mapped.max() < size and len(np.unique(mapped)) == len(mapped)
    assert 0.4 < mapped.mean() / size < 0.6


def places(order: SampleOrder, epoch: int) -> list[tuple[int, int]]:
    return [order.locate(index) for index in range(epoch * order.samples, (epoch + 1) * order.samples)]


@pytest.mark.parametrize("block_shards", [1, 3, 8, 100])
@pytest.mark.parametrize("shuffle", [True, False])
def test_each_epoch_covers_every_row_once(block_shards: int, shuffle: bool) -> None:
    order = SampleOrder(SHARDS, seed=3, block_shards=block_shards, shuffle=shuffle)
    every = {(shard, row) for shard, count in enumerate(SHARDS) for row in range(count)}
    for epoch in (0, 1, 5):
        found = places(order, epoch)
        assert len(found) == len(every) and set(found) == every
        assert shuffle or found == sorted(every)


def test_order_depends_on_seed_and_epoch_only() -> None:
    order = SampleOrder(SHARDS, seed=3)
    assert places(order, 0) != places(order, 1)
    assert places(order, 0) != places(SampleOrder(SHARDS, seed=4), 0)
    # A place is a function of n: another object, asked in another order, answers the same.
    indices = np.random.default_rng(0).permutation(3 * order.samples)
    other = SampleOrder(SHARDS, seed=3)
    scattered = {int(index): other.locate(int(index)) for index in indices}
    assert [scattered[index] for index in range(3 * order.samples)] == [
        place for epoch in range(3) for place in places(order, epoch)
    ]


def test_a_block_opens_no_more_shards_than_it_may() -> None:
    order = SampleOrder([10] * 12, seed=1, block_shards=4)
    found = places(order, 2)
    blocks = [{shard for shard, _ in found[start : start + 40]} for start in range(0, 120, 40)]
    assert [len(block) for block in blocks] == [4, 4, 4]
    assert set.union(*blocks) == set(range(12))
    assert len({shard for shard, _ in found[:12]}) > 1  # mixed inside the block


def test_empty_data_set_is_refused() -> None:
    with pytest.raises(UserError, match="rebuild"):
        SampleOrder([], seed=0)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [3.0, 1.0, 0.5], [0.7, 0.3], [1e-2, 1.0]])
def test_mixture_keeps_its_proportions_in_every_block(weights: list[float]) -> None:
    mixture = MixtureOrder(weights, seed=2, block=256)
    share = np.array(weights) / sum(weights)
    sources = np.array([mixture.locate(index)[0] for index in range(6 * 256)]).reshape(6, 256)
    for number in range(6):
        counts = np.bincount(sources[number], minlength=len(weights))
        assert np.all(np.abs(counts - share * 256) < 2)
        total = np.bincount(sources[: number + 1].ravel(), minlength=len(weights))
        assert np.all(np.abs(total - share * 256 * (number + 1)) < 1 + 1e-3)  # no drift
    assert not np.array_equal(sources[0], sources[1])


def test_mixture_walks_each_source_without_gaps() -> None:
    # Inside a block the order is free, but together the places of a source are 0, 1, 2, ... at every block's end.
    mixture = MixtureOrder([5, 2, 1], seed=7, block=64)
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for index in range(10 * 64):
        source, place = mixture.locate(index)
        seen[source].append(place)
        if (index + 1) % 64 == 0:
            assert all(sorted(found) == list(range(len(found))) for found in seen.values())


@pytest.mark.parametrize("weights", [[], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")], [1e9, 1]])
def test_impossible_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(UserError, match="weights"):
        MixtureOrder(weights, seed=0)


def test_generator_takes_huge_sample_numbers() -> None:
    first, second = (sample_generator(0, 2**40 + number, "crop").random(4) for number in (0, 1))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("shuffle", [True, False])
def test_index_of_undoes_locate(shuffle: bool) -> None:
    order = SampleOrder([5, 1, 7, 3, 4], seed=3, block_shards=2, shuffle=shuffle)
    for index in range(3 * order.samples):
        assert order.index_of(index // order.samples, *order.locate(index)) == index
