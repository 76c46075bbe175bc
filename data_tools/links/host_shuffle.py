"""Download order in which the links of every origin are spread evenly over the table, which limits the load of a host.

The k-th of an origin's n links has the position (k + u) / n in the table, where u in [0, 1) is fixed for each origin
(systematic sampling). k and u follow from hashes and a seed, so the order is a function of the set of links and the
seed alone, and does not depend on the order of the input, on processes or on time. Among any w consecutive links, an
origin with a share p of all links is expected w * p times, with far smaller deviations than under random shuffling.
"""

import hashlib

import numpy as np


def hashed(text: str) -> int:
    """Return a hash of a text in [0, 2^64), the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def mixed(numbers: np.ndarray, seed: int) -> np.ndarray:
    """Hash each number with a seed (finaliser of SplitMix64, Steele et al., OOPSLA 2014).

    Args:
        numbers: (N,) uint64.
        seed: Any integer.
    """
    with np.errstate(over="ignore"):
        mix = numbers + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
        mix = (mix ^ (mix >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mix = (mix ^ (mix >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mix ^ (mix >> np.uint64(31))


def even_positions(origin: np.ndarray, link: np.ndarray, seed: int) -> np.ndarray:
    """Return the position of each link in the table, (N,) float64 in [0, 1).

    Args:
        origin: (N,) uint64, a hash of each link's origin; must include all links of these origins.
        link: (N,) uint64, a hash of each link.
        seed: Seed of the order.
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
