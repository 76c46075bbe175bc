"""From pairs that look alike to what is kept: groups, the best of each group, and a guard against chains.

Likeness is not transitive: frames of a film lead from one scene to any other. So a group (all that pairs connect) only
says what to look at; within it, the best sample is kept and only samples that are themselves like it leave, then the
best of the remaining ones, and so on. Every sample that leaves is then like one that stays, and no two that stay are
alike.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Alike = Callable[[np.ndarray, np.ndarray], np.ndarray]  # rows (P,), rows (P,) -> (P,) bool
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]  # the same -> (P,) numbers
MEASURED = 200  # members of a group among which its diameter is measured


class Components:
    """What pairs connect, built pair by pair (union-find, many pairs at once); a group is named by its first row.

    Args:
        count: Number of rows.
    """

    def __init__(self, count: int) -> None:
        """Begin with every row alone."""
        self._parent = np.arange(count)

    def find(self, rows: np.ndarray) -> np.ndarray:
        """The group of each row."""
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
            # Of several pairs that would hang up one group, numpy keeps the last; the others have their next turn.
            self._parent[np.maximum(one, other)] = np.minimum(one, other)

    def groups(self) -> list[np.ndarray]:
        """Rows of each group of at least two, ascending; groups in the order of their first rows."""
        root = self.find(np.arange(len(self._parent)))
        order = np.argsort(root, kind="stable")
        cuts = np.flatnonzero(np.diff(root[order])) + 1
        return [rows for rows in np.split(order, cuts) if len(rows) > 1]


@dataclass(frozen=True)
class Grouping:
    """What became of N rows.

    Args:
        kept_by: For each row the one it leaves for, itself where it stays, (N,).
        size: Rows in its group, (N,).
        diameter: Largest distance between two of its group, 0 where it is alone (N,); of a larger group than MEASURED
            the largest among so many members, evenly taken in order of preference.
    """

    kept_by: np.ndarray
    size: np.ndarray
    diameter: np.ndarray


def preference(keys: list[str], records: list[dict[str, Any]], quality: np.ndarray | None = None) -> np.ndarray:
    """Rank rows, (N,), 0 the best: those of other data sets, then by pixels, quality (N,), and key."""
    by_key = np.empty(len(keys), np.int64)
    by_key[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    pixels = np.array([int(record.get("width") or 0) * int(record.get("height") or 0) for record in records])
    own = np.array([not record.get("against") for record in records], bool)
    worse = np.zeros(len(keys)) if quality is None else -quality.astype(np.float64)
    rank = np.empty(len(keys), np.int64)
    rank[np.lexsort((by_key, worse, -pixels, own))] = np.arange(len(keys))
    return rank


def choose(
    components: Components, rank: np.ndarray, alike: Alike, distance: Distance, foreign: np.ndarray | None = None
) -> Grouping:
    """Decide in each group who stays.

    Args:
        components: The groups.
        rank: (N,), 0 the best; the best of those that are left stays.
        alike: Whether the rows of each pair are so like one another that one of them suffices.
        distance: Of each pair.
        foreign: (N,) bool, rows of other data sets, which never leave.
    """
    kept_by, size, diameter = np.arange(len(rank)), np.ones(len(rank), np.int64), np.zeros(len(rank))
    for rows in components.groups():
        left = rows[np.argsort(rank[rows])]
        size[rows], diameter[rows] = len(rows), _diameter(left, distance)
        while len(left):
            best, left = left[0], left[1:]
            near = alike(np.full(len(left), best), left)
            if foreign is not None:
                near &= ~foreign[left]
            kept_by[left[near]] = best
            left = left[~near]
    return Grouping(kept_by, size, diameter)


def _diameter(rows: np.ndarray, distance: Distance) -> float:
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), MEASURED)).astype(np.int64)]
    first, second = np.triu_indices(len(rows), 1)
    return float(distance(rows[first], rows[second]).max())
