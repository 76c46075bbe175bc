import numpy as np
import pytest

from data_tools.vetting import binary_neighbours
from data_tools.vetting.binary_neighbours import compare_all, distinct, join_parts, pairs_within
from leam_mm.data.perceptual_hash import hamming

Found = list[tuple[int, int, int]]


def clustered(rows: int, near: int, most_bits: int, seed: int = 0) -> np.ndarray:
    """Random hashes, and copies of some of them with up to ``most_bits`` bits flipped, (rows + near, 32)."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 256, (rows, 32), dtype=np.uint8)
    bits = np.unpackbits(codes[generator.integers(0, rows, near)], axis=1)
    for row in bits:
        row[generator.permutation(256)[: generator.integers(0, most_bits + 1)]] ^= 1
    return np.concatenate([codes, np.packbits(bits, axis=1)])


def found(pairs: object) -> Found:
    return [pair for part in pairs for pair in zip(*(each.tolist() for each in vars(part).values()), strict=True)]


def brute(codes: np.ndarray, radius: int, others: np.ndarray | None) -> Found:
    table = codes if others is None else others
    distance = hamming(codes[:, None], table[None])
    first, second = np.nonzero(distance <= radius)
    wanted = first < second if others is None else np.ones(len(first), bool)
    first, second = first[wanted], second[wanted]
    return sorted(zip(first.tolist(), second.tolist(), distance[first, second].tolist(), strict=True))


RADII = (0, 1, 15, 16, 31, 47)


@pytest.mark.parametrize(
    ("search", "radius"), [*((join_parts, each) for each in RADII), *((compare_all, each) for each in (*RADII, 100))]
)
def test_every_pair_is_found_once(search: object, radius: int) -> None:
    codes, others = clustered(500, 700, 110), clustered(100, 100, 60, seed=1)
    others[:50] = codes[:50]
    assert len(brute(codes, 31, None)) > 100
    for table in (None, others):
        pairs = found(search(codes, radius, table))  # type: ignore[operator]
        assert sorted(pairs) == brute(codes, radius, table)


def test_pairs_at_the_radius_are_found() -> None:
    # two bits in every part but one: the only part that brings the pair up differs in one bit
    generator = np.random.default_rng(2)
    codes = generator.integers(0, 256, (50, 32), dtype=np.uint8)
    bits = np.unpackbits(codes, axis=1)
    for number, row in enumerate(bits):
        for part in range(16):
            places = part + 16 * generator.permutation(16)[: 1 if part == number % 16 else 2]
            row[places] ^= 1
    far = np.packbits(bits, axis=1)
    assert (hamming(codes, far) == 31).all()
    assert found(join_parts(codes, 31, far)) and len(found(join_parts(codes, 31, far))) == 50
    assert not found(join_parts(codes, 30, far))


def test_large_tables_are_joined_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = clustered(3000, 600, 40)
    few = sorted(found(pairs_within(codes, 31)))
    calls = []
    monkeypatch.setattr(binary_neighbours, "FEW", 0)
    monkeypatch.setattr(binary_neighbours, "BLOCK", 64)  # many blocks, some of them of one row
    monkeypatch.setattr(binary_neighbours, "compare_all", lambda *given: calls.append(given) or iter(()))
    assert sorted(found(pairs_within(codes, 31))) == few and not calls
    assert not list(pairs_within(codes, 48)) and len(calls) == 1


def test_all_rows_that_share_a_part_are_compared() -> None:
    codes = np.zeros((300, 32), np.uint8)  # of nearly flat pictures
    codes[np.arange(300), np.arange(300) % 32] = 1
    assert sorted(found(join_parts(codes, 31))) == brute(codes, 31, None)


def test_the_order_is_deterministic() -> None:
    codes = clustered(400, 400, 40)
    assert found(join_parts(codes, 31)) == found(join_parts(codes, 31))


def test_distinct_rows() -> None:
    codes = np.random.default_rng(0).integers(0, 2, (200, 5), dtype=np.uint8)
    first, index = distinct(codes)
    assert np.array_equal(codes[first][index], codes) and np.array_equal(first, np.sort(first))
    assert len(first) == len(np.unique(codes, axis=0))
    assert all(not (codes[:row] == codes[row]).all(axis=1).any() for row in first)


@pytest.mark.parametrize("search", [join_parts, compare_all, pairs_within])
def test_empty_tables(search: object) -> None:
    empty, some = np.zeros((0, 32), np.uint8), clustered(3, 2, 4)
    for codes, others in ((empty, None), (empty, some), (some, empty)):
        assert not list(search(codes, 31, others))  # type: ignore[operator]


def test_other_arrays_and_radii_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        pairs_within(np.zeros((2, 31), np.uint8), 31)
    with pytest.raises(ValueError, match="radius"):
        pairs_within(np.zeros((2, 32), np.uint8), 256)
