"""Which bucket the samples of a batch come from: a pure function of (manifests, seed, n), as the order of samples is.

A folder that was encoded in buckets holds one shard folder for each shape and ``buckets.json``. Samples of one shape
follow each other in runs of a fixed length, the bucket batch. Every bucket is visited in proportion to its samples in
each block of runs, and has an order of its own in which no sample is lost or doubled: an epoch of the bucket that ends
inside a run goes over into its next one.
"""

import json
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

RUNS = 64  # in a block: short, so that an epoch of few batches has its proportions too


@dataclass(frozen=True)
class Bucket:
    """One shard folder of one shape.

    Args:
        path: The folder, or its URL.
        shape: Height and width in pixels.
        samples: How many it holds.
    """

    path: str | Path
    shape: Shape
    samples: int


def read_buckets(path: str | Path, cache: ShardCache | None = None) -> list[Bucket] | None:
    """The buckets of a folder, ascending in height; None where it has no buckets.json.

    Args:
        path: The folder above those of the shapes, or its URL.
        cache: Where the files behind URLs are kept.

    Raises:
        UserError: The file names what is no shape, or leaves the folder.
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
            raise ValueError("no shape, or one of them twice")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}/{BUCKETS} does not list buckets ({type(error).__name__}: {error}); encode the folder again"
        ) from None
    join = (lambda name: f"{str(path).rstrip('/')}/{name}") if "://" in str(path) else (lambda name: Path(path) / name)
    return sorted((Bucket(join(name), shape, samples) for name, shape, samples in found), key=lambda one: one.shape)


def _entries(text: str) -> list[dict]:
    return json.loads(text)["buckets"]


class ShareOrder:
    """Several orders in proportions that are exact fractions, however small; each goes on in its own order.

    Before block b, order s has had floor(b M upper_s) - floor(b M lower_s) places, where lower and upper are the sums
    of the shares before it and with it: less than one place away from its share.

    Args:
        shares: One positive fraction for each; they are normalised to one.
        seed: Names the order.
        block: M, places in a block, which is shuffled.
    """

    def __init__(self, shares: Sequence[Fraction], seed: int, block: int) -> None:
        """See the class for the arguments."""
        whole = sum(shares)
        self.edges = [edge / whole for edge in accumulate(shares, initial=Fraction(0))]
        self.seed, self.block = seed, block
        self._drawn: tuple[int, np.ndarray, np.ndarray] | None = None

    def before(self, block: int) -> np.ndarray:
        """Places that each has had before a block."""
        return np.diff([floor(block * self.block * edge) for edge in self.edges])

    def locate(self, index: int) -> tuple[int, int]:
        """Which of the orders has the ``index``-th place, and how many places it had before."""
        block, slot = divmod(int(index), self.block)
        if self._drawn is None or self._drawn[0] != block:  # a whole block at once costs little more than one place
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
    """Runs of samples of one bucket, the buckets in proportion and shuffled inside blocks of runs.

    Args:
        shares: Of each bucket.
        seed: Names the order.
        length: Of a run, in samples.
    """

    def __init__(self, shares: Sequence[Fraction], seed: int, length: int) -> None:
        """See the class for the arguments."""
        self.order, self.length = ShareOrder(shares, seed, RUNS), length

    def locate(self, index: int) -> tuple[int, int]:
        """Bucket of the sample that is seen ``index``-th, and how many of that bucket are seen before it."""
        run, slot = divmod(index, self.length)
        bucket, own = self.order.locate(run)
        return bucket, own * self.length + slot


class BucketAfterBucket:
    """All samples of the first bucket, then those of the second: the order of validation.

    Args:
        samples: Of each bucket.
    """

    def __init__(self, samples: Sequence[int]) -> None:
        """See the class for the arguments."""
        self.begin = np.concatenate([[0], np.cumsum(samples)]).tolist()

    def locate(self, index: int) -> tuple[int, int]:
        """Bucket of a sample, and its number in it."""
        bucket = int(np.searchsorted(self.begin, index, side="right")) - 1
        return bucket, index - self.begin[bucket]

    def batches(self, limit: int, size: int, divisor: int = 1) -> list[range]:
        """Numbers of the samples of each batch; none mixes shapes, and each bucket has its share of the limit.

        Args:
            limit: Samples at most.
            size: Of a batch, which the last of a bucket may not reach.
            divisor: Each batch has a multiple of it; what is left over of a bucket stays out.
        """
        shares = [min(limit, self.begin[-1]) * edge // self.begin[-1] for edge in self.begin]
        found = []
        for begin, count in zip(self.begin, np.diff(shares).tolist(), strict=False):
            end = begin + count // divisor * divisor
            found += [range(first, min(first + size, end)) for first in range(begin, end, size)]
        return found
