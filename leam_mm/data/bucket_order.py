"""Which bucket the samples of a batch come from: a pure function of (manifests, seed, n), like the order of samples.

A folder with buckets holds one shard folder per shape and ``buckets.json``. Samples of one shape follow each other in
runs of a fixed length, the bucket batch. In each block of runs every bucket is visited in proportion to its samples. A
bucket has its own order, in which no sample is skipped or repeated: if its epoch ends inside a run, the next one begins
there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from math import floor
from pathlib import Path

import numpy as np

from leam_mm.data.aspect_buckets import BUCKETS, Shape, folder_name
from leam_mm.data.remote_shards import ShardCache, read_beside
from leam_mm.data.sample_order import permute, sample_generator
from leam_mm.errors import UserError
from leam_mm.json_text import parse_object

RUNS = 64  # per block; small, so that an epoch of few batches keeps the proportions


@dataclass(frozen=True)
class Bucket:
    """One shard folder of one shape.

    Args:
        path: The folder, or its URL.
        shape: Height and width in pixels.
        samples: Number of its samples.
    """

    path: str | Path
    shape: Shape
    samples: int


def read_buckets(path: str | Path, cache: ShardCache | None = None) -> list[Bucket] | None:
    """Return the buckets of a folder, ascending in height; None if it has no buckets.json.

    Args:
        path: The folder that holds the folders of the shapes, or its URL.
        cache: Local copy of files behind URLs.

    Raises:
        UserError: An entry is no valid shape, or its folder lies elsewhere.
    """
    text = read_beside(path, BUCKETS, cache)
    if text is None:
        return None
    try:
        found = [(entry["folder"], (entry["height"], entry["width"]), entry["samples"]) for entry in _entries(text)]
        for name, shape, samples in found:
            if not all(type(number) is int and number > 0 for number in (*shape, samples)):
                raise ValueError(f"{shape[0]!r} x {shape[1]!r} with {samples!r} samples")
            if name != folder_name(shape):
                raise ValueError(f"folder {name!r} is not {folder_name(shape)}")
        if not found or len({shape for _, shape, _ in found}) != len(found):
            raise ValueError("no shape, or a shape that occurs twice")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}/{BUCKETS} does not list buckets ({type(error).__name__}: {error}); encode the folder again"
        ) from None
    join = (lambda name: f"{str(path).rstrip('/')}/{name}") if "://" in str(path) else (lambda name: Path(path) / name)
    return sorted((Bucket(join(name), shape, samples) for name, shape, samples in found), key=lambda one: one.shape)


def _entries(text: bytes) -> list[dict]:
    entries = parse_object(text)["buckets"]
    if not isinstance(entries, list):
        raise ValueError("buckets is no list")
    return entries


class ShareOrder:
    """Interleaves several orders in proportions that are exact fractions, however small.

    Before block b, order s has had floor(b M upper_s) - floor(b M lower_s) positions, where lower and upper are the
    sums of the shares before it and including it: less than one position away from its share.

    Args:
        shares: One positive fraction per order; they are normalised to one.
        seed: Seed of the shuffling.
        block: M, positions in a block, which is shuffled.
    """

    def __init__(self, shares: Sequence[Fraction], seed: int, block: int) -> None:
        """See the class for the arguments."""
        whole = sum(shares)
        self.edges = [edge / whole for edge in accumulate(shares, initial=Fraction(0))]
        self.seed, self.block = seed, block
        self._drawn: tuple[int, np.ndarray, np.ndarray] | None = None

    def before(self, block: int) -> np.ndarray:
        """Return the number of positions that each order has had before a block."""
        return np.diff([floor(block * self.block * edge) for edge in self.edges])

    def locate(self, index: int) -> tuple[int, int]:
        """Return which order has position ``index``, and how many positions it had before."""
        block, slot = divmod(int(index), self.block)
        if self._drawn is None or self._drawn[0] != block:  # a whole block costs little more than one position
            had = self.before(block)
            counts = self.before(block + 1) - had
            which = np.repeat(np.arange(len(counts)), counts)[
                permute(np.arange(self.block), self.block, self._key(block))
            ]
            own = np.empty(self.block, dtype=np.int64)
            own[np.argsort(which, kind="stable")] = np.concatenate(
                [np.arange(first, first + count) for first, count in zip(had, counts, strict=True)]
            )
            self._drawn = block, which, own
        return int(self._drawn[1][slot]), int(self._drawn[2][slot])

    def _key(self, block: int) -> int:
        return int(sample_generator(self.seed, block, "shares").integers(2**63))


class RunOrder:
    """Runs of samples of one bucket; the buckets are proportional and shuffled within blocks of runs.

    Args:
        shares: Share of each bucket.
        seed: Seed of the shuffling.
        length: Samples per run.
    """

    def __init__(self, shares: Sequence[Fraction], seed: int, length: int) -> None:
        """See the class for the arguments."""
        self.order, self.length = ShareOrder(shares, seed, RUNS), length

    def locate(self, index: int) -> tuple[int, int]:
        """Return the bucket of the sample that is seen ``index``-th, and how many of that bucket are seen before."""
        run, slot = divmod(index, self.length)
        bucket, own = self.order.locate(run)
        return bucket, own * self.length + slot


class BucketAfterBucket:
    """All samples of the first bucket, then those of the second, and so on: the order of validation.

    Args:
        samples: Number of samples of each bucket.
    """

    def __init__(self, samples: Sequence[int]) -> None:
        """See the class for the arguments."""
        self.begin = np.concatenate([[0], np.cumsum(samples)]).tolist()

    def locate(self, index: int) -> tuple[int, int]:
        """Return the bucket of a sample, and its number in it."""
        bucket = int(np.searchsorted(self.begin, index, side="right")) - 1
        return bucket, index - self.begin[bucket]

    def batches(self, limit: int, size: int, divisor: int = 1) -> list[range]:
        """Return the sample numbers of each batch; no batch mixes shapes, and each bucket has its share of the limit.

        Args:
            limit: Upper bound of samples.
            size: Samples per batch; the last batch of a bucket may be smaller.
            divisor: Divisor of all batch sizes; the remainder of a bucket is left out.
        """
        shares = [min(limit, self.begin[-1]) * edge // self.begin[-1] for edge in self.begin]
        found = []
        for begin, count in zip(self.begin, np.diff(shares).tolist(), strict=False):
            end = begin + count // divisor * divisor
            found += [range(first, min(first + size, end)) for first in range(begin, end, size)]
        return found
