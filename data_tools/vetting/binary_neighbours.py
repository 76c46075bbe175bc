"""Find all pairs of 256-bit hashes within a Hamming radius, exactly: small tables with faiss, large ones by a join.

The join follows Norouzi, Punjani and Fleet, "Fast Exact Search in Hamming Space with Multi-Index Hashing" (1307.2982):
if two hashes differ in at most r bits, at least one of their sixteen 16-bit parts differs in at most r // 16 bits. For
each part, the rows are sorted by its value, and only rows whose values differ by so few bits are compared. The memory
is that of the hashes, a few words per row, and one block of comparisons, however many pairs there are. The same method
in faiss (IndexBinaryMultiHash, 16 x 16 bits, nflip 1) finds the same pairs; with 50,000 hashes it takes seven times the
processor time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import faiss
import numpy as np

from leam_mm.data.perceptual_hash import BITS, BYTES, hamming

PARTS, PART_BITS = 16, 16
LARGEST_JOINED = 3 * PARTS - 1  # two bits in a part; beyond it, comparing all pairs is cheaper
FEW = 400_000_000  # comparisons; up to that many, faiss is faster than sorting
BLOCK = 1 << 17  # comparisons held at once


@dataclass(frozen=True)
class Pairs:
    """Pairs found: rows of the first table, rows of the second, and distances in bits; (P,) each."""

    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray


def distinct(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the distinct rows, so that a thousand blank images are not half a million pairs.

    Args:
        codes: (N, D) uint8.

    Returns:
        First occurrence of each distinct row, ascending (M,), and for every row the index of its equal among them (N,).
    """
    whole = np.ascontiguousarray(codes).view(f"V{codes.shape[1]}")[:, 0]
    _, first, inverse = np.unique(whole, return_index=True, return_inverse=True)
    order = np.argsort(first)
    index = np.empty_like(order)
    index[order] = np.arange(len(order))
    return first[order], index[inverse]


def pairs_within(codes: np.ndarray, radius: int, others: np.ndarray | None = None) -> Iterator[Pairs]:
    """Give every pair of hashes that differ in at most ``radius`` bits, once, in blocks and in a deterministic order.

    Args:
        codes: (N, 32) uint8.
        radius: 0 to 255.
        others: (M, 32) uint8 to compare with; None compares the rows of ``codes``, with first < second.

    Raises:
        ValueError: An array does not hold hashes, or the radius is out of range.
    """
    for name, table in (("codes", codes), ("others", others)):
        if table is not None and (table.dtype != np.uint8 or table.ndim != 2 or table.shape[1] != BYTES):
            raise ValueError(f"{name} must be (N, {BYTES}) uint8, not {table.shape} {table.dtype}")
    if not 0 <= radius < BITS:
        raise ValueError(f"a radius of {radius} bits: give 0 to {BITS - 1}")
    work = len(codes) * len(codes if others is None else others)
    if work <= FEW or radius > LARGEST_JOINED:
        return compare_all(codes, radius, others)
    return join_parts(codes, radius, others)


def compare_all(codes: np.ndarray, radius: int, others: np.ndarray | None = None) -> Iterator[Pairs]:
    """Compare all pairs with faiss' IndexBinaryFlat; see ``pairs_within`` for the arguments."""
    table = codes if others is None else others
    if not len(codes) or not len(table):
        return
    index = faiss.IndexBinaryFlat(BITS)
    index.add(np.ascontiguousarray(table))
    rows = max(1, 20_000_000 // len(table))  # every pair may be a result
    for start in range(0, len(codes), rows):
        queries = np.ascontiguousarray(codes[start : start + rows])
        limits, distance, second = index.range_search(queries, radius + 1)  # faiss excludes the radius itself
        first = np.repeat(
            np.arange(start, start + len(queries)), limits[1:].astype(np.int64) - limits[:-1].astype(np.int64)
        )
        wanted = np.flatnonzero(first < second) if others is None else np.arange(len(first))
        wanted = wanted[np.lexsort((second[wanted], first[wanted]))]
        if len(wanted):
            yield Pairs(first[wanted], second[wanted], distance[wanted].astype(np.int32))


def join_parts(codes: np.ndarray, radius: int, others: np.ndarray | None = None) -> Iterator[Pairs]:
    """Find pairs by multi-index hashing; see ``pairs_within`` for the arguments."""
    if not len(codes) or (others is not None and not len(others)):
        return
    flips = radius // PARTS
    masks = [sum(1 << bit for bit in bits) for n in range(flips + 1) for bits in combinations(range(PART_BITS), n)]
    left, right = _mixed(codes), None if others is None else _mixed(others)
    for part in range(PARTS):
        mine = _Sorted(left, part)
        theirs = mine if right is None else _Sorted(right, part)
        for mask in masks:
            for first, second in _candidates(mine, theirs, mask, radius):
                pairs = _within(codes, codes if others is None else others, first, second, radius)
                if others is None:
                    low, high = np.minimum(pairs.first, pairs.second), np.maximum(pairs.first, pairs.second)
                    pairs = Pairs(low, high, pairs.distance)
                new = _found_first(left, left if right is None else right, pairs, part, flips)
                if len(new):
                    yield Pairs(pairs.first[new], pairs.second[new], pairs.distance[new])


def _mixed(codes: np.ndarray) -> np.ndarray:
    """Distribute the bits over the parts, (N, 16) uint16.

    Neighbouring bits of PDQ are neighbouring frequencies, which are correlated in real images. Parts made of distant
    bits take more different values, so that fewer rows share one. Distances do not change.
    """
    mixed = np.empty((len(codes), PARTS), np.uint16)
    order = np.arange(BITS).reshape(PART_BITS, PARTS).T.ravel()  # part p takes the bits p, p + 16, p + 32, ...
    for start in range(0, len(codes), BLOCK):
        bits = np.unpackbits(codes[start : start + BLOCK], axis=1)[:, order]
        mixed[start : start + BLOCK] = np.packbits(np.ascontiguousarray(bits), axis=1).view(np.uint16)
    return mixed


class _Sorted:
    """A table sorted by one part: the values, the start of each value, the row numbers, and two of the four words.

    The two words do not contain the part itself. Unrelated rows differ in 64 of their 128 bits on average, so that
    hardly any of them pass this test and need a full comparison.
    """

    def __init__(self, mixed: np.ndarray, part: int) -> None:
        """Sort the rows; mixed is (N, 16) uint16."""
        self.order = np.argsort(mixed[:, part], kind="stable")
        self.value = mixed[self.order, part].astype(np.int64)
        self.begin = np.searchsorted(self.value, np.arange((1 << PART_BITS) + 1))
        words = np.ascontiguousarray(mixed).view(np.uint64)
        others = [word for word in range(4) if word != part // 4][:2]
        self.words = [words[self.order, word] for word in others]


def _candidates(mine: _Sorted, theirs: _Sorted, mask: int, radius: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give rows whose part differs in exactly the bits of ``mask`` and that two words do not rule out, in blocks."""
    rows = np.arange(len(mine.value))
    if mine is theirs and mask:
        rows = np.flatnonzero(mine.value < mine.value ^ mask)  # the other half are the same pairs, swapped
    wanted = mine.value[rows] ^ mask
    low, high = theirs.begin[wanted], theirs.begin[wanted + 1]
    if mine is theirs and not mask:
        low = rows + 1
    count = high - low
    total = np.concatenate([[0], np.cumsum(count)])
    start = 0
    while start < len(rows):
        end = max(start + 1, int(np.searchsorted(total, total[start] + BLOCK, "right")) - 1)
        many = count[start:end]
        if total[end] > total[start]:
            second = np.arange(total[start], total[end]) + np.repeat(low[start:end] - total[start:end], many)
            distance = np.zeros(len(second), np.uint8)
            for own, other in zip(mine.words, theirs.words, strict=True):
                apart = np.repeat(own[rows[start:end]], many)
                apart ^= other[second]
                distance += np.bitwise_count(apart)
            near = np.flatnonzero(distance <= radius)
            if len(near):
                first = rows[start + np.searchsorted(total[start : end + 1], near + total[start], "right") - 1]
                yield mine.order[first], theirs.order[second[near]]
        start = end


def _within(codes: np.ndarray, others: np.ndarray, first: np.ndarray, second: np.ndarray, radius: int) -> Pairs:
    distance = hamming(codes[first], others[second])
    near = np.flatnonzero(distance <= radius)
    return Pairs(first[near], second[near], distance[near])


def _found_first(left: np.ndarray, right: np.ndarray, pairs: Pairs, part: int, flips: int) -> np.ndarray:
    """Return the indices of the pairs that no earlier part has found."""
    earlier = left[pairs.first, :part] ^ right[pairs.second, :part]
    return np.flatnonzero((np.bitwise_count(earlier) > flips).all(axis=1))
