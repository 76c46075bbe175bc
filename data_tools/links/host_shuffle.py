"""The order in which links are asked for: every origin's links spread evenly over the table, so that none is hammered.

The k-th of an origin's n links stands at (k + u) / n of the table, where u is a number in [0, 1) that is the origin's
own (systematic sampling). Which link is the k-th, and u, follow from their hashes and a seed: the order is a function
of the set of links and the seed alone, not of the order they came in, of processes or of time. In any stretch of w
links an origin that has a share p of all is expected w * p times, and deviates far less than under random shuffling.
"""

import hashlib

import numpy as np


def hashed(text: str) -> int:
    """A number in [0, 2^64) of a text, the same everywhere."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def mixed(numbers: np.ndarray, seed: int) -> np.ndarray:
    """Another number of each number and a seed (SplitMix64's finaliser, Steele et al., OOPSLA 2014).

    Args:
        numbers: (N,) uint64.
        seed: Any whole number.
    """
    with np.errstate(over="ignore"):
        mix = numbers + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
        mix = (mix ^ (mix >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mix = (mix ^ (mix >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mix ^ (mix >> np.uint64(31))


def even_positions(origin: np.ndarray, link: np.ndarray, seed: int) -> np.ndarray:
    """Say where in the table each link stands.

    Args:
        origin: (N,) uint64, a hash of each link's origin; all links of these origins must be there.
        link: (N,) uint64, a hash of each link.
        seed: Of the order.

    Returns:
        (N,) float64 in [0, 1).
    """
    if not len(origin):
        return np.zeros(0)
    order = np.lexsort((link, mixed(link, seed), origin))
    sorted_origin = origin[order]
    starts = np.flatnonzero(np.r_[True, sorted_origin[1:] != sorted_origin[:-1]])
    counts = np.diff(np.r_[starts, len(order)])
    rank = np.arange(len(order)) - np.repeat(starts, counts)
    phase = (mixed(sorted_origin, seed) >> np.uint64(11)).astype(np.float64) / 2**53
    position = np.empty(len(order))
    position[order] = (rank + phase) / np.repeat(counts, counts)
    return np.minimum(position, np.nextafter(1.0, 0.0))
