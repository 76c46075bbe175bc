"""Runs of one shape in proportion, and folders that may lie about their buckets."""

import json
from collections import Counter
from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
import pytest
from toys.shards import TOY_BUCKETS, write_toy_buckets

from leam_mm.data.aspect_buckets import BUCKETS
from leam_mm.data.bucket_order import RUNS, BucketAfterBucket, RunOrder, ShareOrder, read_buckets
from leam_mm.data.remote_shards import ShardCache
from leam_mm.errors import UserError


def test_every_block_of_runs_has_its_proportions_to_less_than_one_run() -> None:
    shares = [Fraction(count) for count in (1, 20, 333, 5000, 77)]
    order = RunOrder(shares, seed=3, length=8)
    visited: Counter[int] = Counter()
    for block in range(40):
        for run in range(block * RUNS, (block + 1) * RUNS):
            inside = [order.locate(8 * run + slot) for slot in range(8)]
            bucket, own = inside[0]
            assert inside == [(bucket, own + slot) for slot in range(8)]  # one bucket, its samples in a row
            assert own == 8 * visited[bucket]  # none lost, none doubled
            visited[bucket] += 1
        edges = [floor((block + 1) * RUNS * sum(shares[:end]) / sum(shares)) for end in range(6)]
        assert [visited[bucket] for bucket in range(5)] == np.diff(edges).tolist()


def test_shares_are_exact_however_small() -> None:
    order = ShareOrder([Fraction(1), Fraction(10**9)], seed=0, block=1000)
    block = order.before(10**6 + 1) - order.before(10**6)
    assert order.before(10**6 + 1).tolist() == [1, 10**9 + 999] and block.sum() == 1000
    assert [order.locate(index)[0] for index in range(1000)] == [1] * 1000


def test_blocks_are_shuffled_by_the_seed() -> None:
    visits = [
        [RunOrder([Fraction(1), Fraction(2)], seed, 4).locate(4 * run)[0] for run in range(RUNS)] for seed in (1, 2)
    ]
    assert visits[0] != visits[1] and sorted(visits[0]) == sorted(visits[1]) != visits[0]


@pytest.mark.parametrize(("limit", "divisor"), [(1000, 1), (24, 1), (24, 2), (1000, 3), (2, 1)])
def test_validation_takes_its_share_of_each_bucket_and_never_mixes(limit: int, divisor: int) -> None:
    order = BucketAfterBucket([11, 30, 7])
    size = 6
    batches = order.batches(limit, size, divisor)
    taken: Counter[int] = Counter()
    for numbers in batches:
        places = [order.locate(number) for number in numbers]
        bucket = places[0][0]
        assert [place for place in places] == [(bucket, taken[bucket] + step) for step in range(len(numbers))]
        assert 0 < len(numbers) <= size and len(numbers) % divisor == 0
        taken[bucket] += len(numbers)
    planned = np.diff([min(limit, 48) * edge // 48 for edge in (0, 11, 41, 48)])
    assert [taken[bucket] for bucket in range(3)] == [count // divisor * divisor for count in planned]


def test_a_folder_tells_its_buckets(tmp_path: Path) -> None:
    folder = write_toy_buckets(tmp_path / "latents")
    found = read_buckets(folder)
    assert found is not None
    assert {bucket.shape: bucket.samples for bucket in found} == TOY_BUCKETS
    assert [bucket.path for bucket in found] == [folder / "8x24", folder / "16x16", folder / "24x8"]
    assert read_buckets(folder / "8x24") is None
    behind = read_buckets(f"file://{folder}/", ShardCache(tmp_path))
    assert behind is not None and [bucket.path for bucket in behind] == [f"file://{b.path}" for b in found]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"buckets": []}',
        '{"buckets": [{"folder": "../secret", "height": 8, "width": 8, "samples": 1}]}',
        '{"buckets": [{"folder": "8x8", "height": 8, "width": "8", "samples": 1}]}',
        '{"buckets": [{"folder": "8x0", "height": 8, "width": 0, "samples": 1}]}',
        '{"buckets": [{"folder": "8x8", "height": 8, "width": 8, "samples": true}]}',
        '{"buckets": [{"folder": "8x8", "height": 8, "width": 8}]}',
        '{"buckets": [1]}',
        json.dumps({"buckets": [{"folder": "8x8", "height": 8, "width": 8, "samples": 1}] * 2}),
    ],
)
def test_what_lists_no_buckets_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / BUCKETS).write_text(content)
    with pytest.raises(UserError, match=r"buckets\.json does not list buckets .*encode the folder again") as caught:
        read_buckets(tmp_path)
    assert "\n" not in str(caught.value)
