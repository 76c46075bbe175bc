"""Choose which duplicates stay: connect similar pairs into groups, and keep the best samples of each group.

Similarity is not transitive: the frames of a film connect one scene with any other. A group (a connected component of
pairs) is therefore not dropped as a whole. Its best sample stays and removes only the samples that are similar to it,
then the best of the remaining ones stays, and so on. Every removed sample is similar to one that stays, and no two that
stay are similar.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

IsSimilar = Callable[[np.ndarray, np.ndarray], np.ndarray]  # rows (P,), rows (P,) -> (P,) bool
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]  # rows (P,), rows (P,) -> (P,) numbers
MEASURED = 200  # most members of a group between which its diameter is measured


class Components:
    """Connected components of pairs (union-find on many pairs at once); a group is named by its first row.

    Args:
        count: Number of rows.
    """

    def __init__(self, count: int) -> None:
        """Start with one group per row."""
        self._parent = np.arange(count)

    def find(self, rows: np.ndarray) -> np.ndarray:
        """Return the group of each row."""
        found = self._parent[rows]
        while not np.array_equal(further := self._parent[found], found):
            found = further
        self._parent[rows] = found
        return found

    def join(self, first: np.ndarray, second: np.ndarray) -> None:
        """Connect pairs of rows, (P,) each."""
        while len(first):
            one, other = self.find(first), self.find(second)
            apart = one != other
            first, second, one, other = first[apart], second[apart], one[apart], other[apart]
            # If several pairs set the parent of one group, numpy keeps the last; the loop repeats the others.
            self._parent[np.maximum(one, other)] = np.minimum(one, other)

    def groups(self) -> list[np.ndarray]:
        """Return the ascending rows of each group of at least two, in the order of the first rows."""
        root = self.find(np.arange(len(self._parent)))
        order = np.argsort(root, kind="stable")
        cuts = np.flatnonzero(np.diff(root[order])) + 1
        return [rows for rows in np.split(order, cuts) if len(rows) > 1]


@dataclass(frozen=True)
class Grouping:
    """Which of N rows stay.

    Args:
        kept_by: For each row, the row that stays in its place; itself if it stays, (N,).
        size: Number of rows in its group, (N,).
        diameter: Largest distance within its group, 0 if it is alone, (N,). In groups larger than MEASURED, that many
            members are compared, taken evenly in order of preference.
    """

    kept_by: np.ndarray
    size: np.ndarray
    diameter: np.ndarray


def preference(keys: list[str], records: list[dict[str, Any]], quality: np.ndarray | None = None) -> np.ndarray:
    """Return the rank of each row, (N,), 0 the best: rows of other data sets first, then by pixels, quality, key."""
    by_key = np.empty(len(keys), np.int64)
    by_key[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    pixels = np.array([int(record.get("width") or 0) * int(record.get("height") or 0) for record in records])
    own = np.array([not record.get("against") for record in records], bool)
    worse = np.zeros(len(keys)) if quality is None else -quality.astype(np.float64)
    rank = np.empty(len(keys), np.int64)
    rank[np.lexsort((by_key, worse, -pixels, own))] = np.arange(len(keys))
    return rank


def choose(
    components: Components, rank: np.ndarray, similar: IsSimilar, distance: Distance, foreign: np.ndarray | None = None
) -> Grouping:
    """Decide which rows of each group stay.

    Args:
        components: The groups.
        rank: (N,), 0 the best; see ``preference``.
        similar: Whether the rows of each pair are so similar that one of them suffices.
        distance: Distance of each pair.
        foreign: (N,) bool, rows of other data sets, which always stay.
    """
    kept_by, size, diameter = np.arange(len(rank)), np.ones(len(rank), np.int64), np.zeros(len(rank))
    for rows in components.groups():
        left = rows[np.argsort(rank[rows])]
        size[rows], diameter[rows] = len(rows), _diameter(left, distance)
        while len(left):
            best, left = left[0], left[1:]
            near = similar(np.full(len(left), best), left)
            if foreign is not None:
                near &= ~foreign[left]
            kept_by[left[near]] = best
            left = left[~near]
    return Grouping(kept_by, size, diameter)


def _diameter(rows: np.ndarray, distance: Distance) -> float:
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), MEASURED)).astype(np.int64)]
    first, second = np.triu_indices(len(rows), 1)
    return float(distance(rows[first], rows[second]).max())
