"""Which sample is seen n-th, and the generator of its crop and caption: pure functions of (manifest, seed, n).

An epoch permutes the shards; K neighbouring shards form a block; a keyed permutation orders the rows within a block. So
n -> (epoch, block, row) -> (shard, row) is arithmetic: it depends on no rank, worker or restart, and at most K shards
are open at a time. The permutation is a Feistel network with cycle walking (Black and Rogaway 2002,
"Ciphers with arbitrary finite domains"), the generators are Philox counters (Salmon et al. 2011). What the training
process draws for a whole batch, such as noise, is in random_stream.py.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from leam_mm.errors import UserError

ROUNDS = 4
NEAR_ATTEMPTS = 16  # substitutes that are drawn from the same block
SMALL = 1 << 14  # of permutations up to this length more are cached
UNITS = 1 << 20  # mixture weights are multiples of 1 / UNITS, so that floors are exact integers


@lru_cache(maxsize=4096, typed=True)
def hashed_key(*parts: object) -> int:
    """Return a 64-bit key of any printable parts, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")


def _mix(values: np.ndarray, key: np.ndarray | np.uint64) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014): spreads every input bit over the whole word."""
    mixed = values.astype(np.uint64) + key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """Map each index in [0, size) to its image under a keyed permutation of [0, size).

    Args:
        index: Any shape, integers in [0, size).
        size: Length of the permuted range.
        key: Key of the permutation.
    """
    if size <= 1:
        return np.zeros_like(index)
    half = max(1, (int(size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    values = np.asarray(index).astype(np.uint64)
    todo = np.ones(values.shape, dtype=bool)
    with np.errstate(over="ignore"):
        keys = [np.uint64(hashed_key("feistel", key, number)) for number in range(ROUNDS)]
        while todo.any():
            left, right = values[todo] >> np.uint64(half), values[todo] & mask
            for round_key in keys:
                left, right = right, left ^ (_mix(right, round_key) & mask)
            values[todo] = (left << np.uint64(half)) | right
            todo[todo] = values[todo] >= size
    return values.astype(np.int64)


def _keep(cache: dict, name: object, value: object, size: int) -> None:
    """Cache a value; a mixture alternates between two neighbouring blocks, or many small ones."""
    while len(cache) >= (2 if size > SMALL else 32):
        cache.pop(next(iter(cache)))
    cache[name] = value


class SampleOrder:
    """The order of one data set.

    Args:
        shard_samples: Number of samples of each shard, in the order of the manifest.
        seed: Seed of the order.
        block_shards: K, number of shards that are mixed (and open) at a time.
        shuffle: False keeps the order of the manifest, epoch after epoch.
    """

    def __init__(self, shard_samples: Sequence[int], seed: int, block_shards: int = 8, shuffle: bool = True) -> None:
        """See the class for the arguments."""
        self.shard_samples = np.asarray(shard_samples, dtype=np.int64)
        self.samples = int(self.shard_samples.sum())
        if self.samples == 0:
            raise UserError("a data set without samples has no order: rebuild its shards")
        self.seed, self.block_shards, self.shuffle = seed, block_shards, shuffle
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._blocks: dict[tuple[int, int], np.ndarray] = {}

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the shards in this epoch's order, and where each begins (one more entry at the end)."""
        if epoch not in self._epochs:
            shards = np.arange(len(self.shard_samples))
            if self.shuffle:
                shards = permute(shards, len(shards), hashed_key("shards", self.seed, epoch))
            begin = np.concatenate([[0], np.cumsum(self.shard_samples[shards])])
            _keep(self._epochs, epoch, (shards, begin), len(shards))
        return self._epochs[epoch]

    def _rows(self, epoch: int, block: int, size: int) -> np.ndarray:
        """Return the order of the rows of a block, cached: computing it row by row costs fifty times as much."""
        if (epoch, block) not in self._blocks:
            key = hashed_key("rows", self.seed, epoch, block)
            _keep(self._blocks, (epoch, block), permute(np.arange(size), size, key), size)
        return self._blocks[epoch, block]

    def _block(self, epoch: int, position: int) -> tuple[int, range]:
        """Return the block of a position, and the range of its shards in the epoch's order."""
        shards, begin = self._epoch(epoch)
        block = (int(np.searchsorted(begin, position, side="right")) - 1) // self.block_shards
        return block, range(block * self.block_shards, min((block + 1) * self.block_shards, len(shards)))

    def _at(self, epoch: int, position: int) -> tuple[int, int]:
        """Return shard number and row at a position of an epoch, before rows are shuffled."""
        shards, begin = self._epoch(epoch)
        slot = int(np.searchsorted(begin, position, side="right")) - 1
        return int(shards[slot]), int(position - begin[slot])

    def locate(self, index: int) -> tuple[int, int]:
        """Return shard number and row of the sample that is seen ``index``-th."""
        epoch, position = divmod(int(index), self.samples)
        if self.shuffle:
            begin, (block, places) = self._epoch(epoch)[1], self._block(epoch, position)
            start, size = int(begin[places.start]), int(begin[places.stop] - begin[places.start])
            position = start + int(self._rows(epoch, block, size)[position - start])
        return self._at(epoch, position)

    def index_of(self, epoch: int, shard: int, row: int) -> int:
        """Return when a sample is seen in an epoch: the inverse of ``locate``."""
        shards, begin = self._epoch(epoch)
        position = int(begin[int(np.flatnonzero(shards == shard)[0])]) + row
        if self.shuffle:
            block, places = self._block(epoch, position)
            start, size = int(begin[places.start]), int(begin[places.stop] - begin[places.start])
            position = start + int(np.flatnonzero(self._rows(epoch, block, size) == position - start)[0])
        return epoch * self.samples + position

    def substitute(self, index: int, attempt: int) -> tuple[int, int]:
        """Return shard number and row of a substitute for the ``index``-th sample, if that cannot be read.

        The first attempts draw from the sample's own block, whose shards are open; later ones from the whole data set.
        """
        epoch, position = divmod(int(index), self.samples)
        begin, places = self._epoch(epoch)[1], self._block(epoch, position)[1]
        whole = attempt >= NEAR_ATTEMPTS
        start, end = (0, self.samples) if whole else (int(begin[places.start]), int(begin[places.stop]))
        return self._at(epoch, int(sample_generator(self.seed, index, f"substitute {attempt}").integers(start, end)))

    def upcoming(self, index: int) -> list[int]:
        """Return the shard numbers of the block after that of the ``index``-th sample, for reading ahead."""
        epoch, position = divmod(int(index), self.samples)
        shards, places = self._epoch(epoch)[0], self._block(epoch, position)[1]
        return [int(shard) for shard in shards[places.stop : places.stop + self.block_shards]]


class MixtureOrder:
    """Several data sets in fixed proportions, shuffled within blocks of M samples.

    At the end of a block each source is less than one sample away from its share of all samples so far; within any
    single block it is less than two away.

    Args:
        weights: One positive weight per source; they are normalised to one.
        seed: Seed of the order.
        block: M, samples per block.
    """

    def __init__(self, weights: Sequence[float], seed: int, block: int = 1024) -> None:
        """See the class for the arguments."""
        share = np.asarray(weights, dtype=np.float64)
        if len(share) == 0 or not np.all(np.isfinite(share)) or np.any(share <= 0):
            raise UserError(f"mixture weights {list(weights)} must all be positive numbers")
        self.upper = np.round(np.cumsum(share / share.sum()) * UNITS).astype(np.int64)
        self.upper[-1] = UNITS
        if np.any(np.diff(np.concatenate([[0], self.upper])) * block < 2 * UNITS):
            raise UserError(
                f"mixture weights {list(weights)}: each source needs two of {block} samples; drop the smallest"
            )
        self.seed, self.block = seed, block
        self._drawn: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def _before(self, block: int) -> np.ndarray:
        """Return the number of samples of each source before a block: differences of floors, so the sum is exact."""
        edges = np.array([block * self.block * int(upper) // UNITS for upper in self.upper])
        return np.diff(np.concatenate([[0], edges]))

    def locate(self, index: int) -> tuple[int, int]:
        """Return the source of the sample seen ``index``-th, and how many samples of that source are seen before."""
        block, slot = divmod(int(index), self.block)
        if block not in self._drawn:  # a whole block costs little more than one position
            before = self._before(block)
            ends = np.cumsum(self._before(block + 1) - before)
            places = permute(np.arange(self.block), self.block, hashed_key("mixture", self.seed, block))
            sources = np.searchsorted(ends, places, side="right")
            self._drawn = {block: (sources, before[sources] + places - (ends - np.diff(ends, prepend=0))[sources])}
        sources, own = self._drawn[block]
        return int(sources[slot]), int(own[slot])


def sample_generator(seed: int, index: int, stream: str) -> np.random.Generator:
    """Return the generator of the ``index``-th sample for one purpose (``stream``)."""
    key = np.array([hashed_key("seed", seed), hashed_key("stream", stream)], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, index], dtype=np.uint64)))
