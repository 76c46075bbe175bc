"""Random access to the n-th sample of a mixture of shard folders."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from leam_mm.data.aspect_buckets import BUCKETS, Shape
from leam_mm.data.bucket_order import BucketAfterBucket, RunOrder, ShareOrder, read_buckets
from leam_mm.data.open_shard import OpenShard
from leam_mm.data.remote_shards import RemoteFolder, ShardCache, Unreachable, open_folder
from leam_mm.data.sample_order import MixtureOrder, SampleOrder
from leam_mm.errors import UserError

OPEN_SHARDS = 16  # two blocks of SampleOrder: a mixture alternates between them at their border
MIXED = 1024  # samples of one shape per block of a mixture of folders


@dataclass(frozen=True)
class Source:
    """One shard folder of a mixture.

    Args:
        path: Folder with ``manifest.jsonl`` or a keep-list (data/keep_list.py), or its URL.
        weight: Relative share of the samples drawn from it.
        language: Language of all its captions, if there is only one; see LanguageBalance.
    """

    path: str | Path
    weight: float = 1.0
    language: str | None = None


class StoredSample(NamedTuple):
    """One sample as stored; ``row`` counts through the samples of all sources, in stored order."""

    shard: str
    row: int
    key: str
    members: dict[str, bytes]


class SampleReader:
    """Reads samples of one shard folder by (shard, row); each worker opens files lazily, and few at a time.

    Args:
        path: Folder with ``manifest.jsonl``, or its URL.
        cache: Local copy of shards behind a URL.
    """

    def __init__(self, path: str | Path, cache: ShardCache | None = None) -> None:
        """See the class for the arguments."""
        self.folder = open_folder(path, cache)
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._faults: dict[int, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Drop open files from the copy of a worker process."""
        return {**self.__dict__, "_open": OrderedDict()}

    def read(self, shard: int, row: int) -> tuple[str, dict[str, bytes]]:
        """Return key and members of one sample."""
        opened = self._shard(shard)
        try:
            return opened.keys[row], opened.members(row)
        except UserError as error:
            raise UserError(f"{self.folder.shard_name(shard)}, key {opened.keys[row]}: {error}") from None

    def _shard(self, shard: int) -> OpenShard:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if shard in self._faults:  # a broken shard is not opened or fetched again
            raise UserError(self._faults[shard])
        while len(self._open) >= OPEN_SHARDS:
            self._open.popitem(last=False)[1].close()
        try:
            self._open[shard] = self.folder.open_shard(shard)
        except UserError as error:
            if type(error) is UserError:
                self._faults[shard] = str(error)
            raise
        return self._open[shard]


class SamplePlan:
    """The n-th sample of a mixture of shard folders.

    With buckets, samples of one shape follow each other in runs, whichever folder they come from.

    Args:
        sources: The folders and their weights; all have buckets, or none has.
        seed: Seed of the order.
        shuffle: False keeps the order of each manifest, and one bucket after the other.
        cache: Local copy of shards behind URLs.
        bucket_batch: Number of consecutive samples of one shape; needed to shuffle buckets.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        seed: int,
        shuffle: bool,
        cache: ShardCache | None = None,
        bucket_batch: int | None = None,
    ) -> None:
        """See the class for the arguments."""
        if not sources:
            raise UserError("data.train is empty: name at least one shard folder")
        opened = [_open_source(source, cache) for source in sources]
        self.readers = [reader for source in opened for reader in source.values()]
        self.source_readers = [list(source.values()) for source in opened]
        self.shapes = _shapes(sources, opened)
        self.orders = [
            SampleOrder([entry.samples for entry in reader.folder.shards], seed + number, shuffle=shuffle)
            for number, reader in enumerate(self.readers)
        ]
        self.seed, self.shuffle, self.bucket_batch = seed, shuffle, bucket_batch
        folders = [(number, shape) for number, source in enumerate(opened) for shape in source]
        shapes: Sequence[Shape | None] = self.shapes or [None]
        self._groups = [[n for n, (_, of) in enumerate(folders) if of == shape] for shape in shapes]
        self._source = [number for number, _ in folders]
        self.weigh([source.weight for source in sources])
        self.samples = sum(order.samples for order in self.orders)
        counts = [np.array([entry.samples for entry in reader.folder.shards]) for reader in self.readers]
        first = np.cumsum([0] + [order.samples for order in self.orders])
        self._rows = [start + np.cumsum(count) - count for start, count in zip(first[:-1], counts, strict=True)]
        _check_cache([reader.folder for reader in self.readers if isinstance(reader.folder, RemoteFolder)])

    @property
    def source_samples(self) -> list[int]:
        """Number of samples of each source."""
        return [sum(reader.folder.samples for reader in readers) for readers in self.source_readers]

    @property
    def shape_samples(self) -> dict[Shape, int]:
        """Number of samples of each shape."""
        counts = [sum(self.orders[reader].samples for reader in group) for group in self._groups]
        return dict(zip(self.shapes, counts, strict=True)) if self.shapes else {}

    def weigh(self, weights: Sequence[float]) -> None:
        """Set the shares of the sources."""
        self.buckets: RunOrder | BucketAfterBucket | None = None
        if not self.shapes:
            self.mixtures: list[MixtureOrder | ShareOrder | None] = [None]
            if len(self.readers) > 1:
                self.mixtures = [MixtureOrder(weights, self.seed)]
            return
        if not all(np.isfinite(weight) and weight > 0 for weight in weights):
            raise UserError(f"mixture weights {list(weights)} must all be positive numbers")
        samples, own = self.source_samples, [order.samples for order in self.orders]
        shares = [Fraction(weights[s]) * Fraction(n, samples[s]) for s, n in zip(self._source, own, strict=True)]
        self.mixtures = [
            ShareOrder([shares[reader] for reader in group], self.seed + number + 1, MIXED) if len(group) > 1 else None
            for number, group in enumerate(self._groups)
        ]
        if not self.shuffle:
            self.buckets = BucketAfterBucket(list(self.shape_samples.values()))
        elif self.bucket_batch is None:
            raise UserError("a folder of buckets is shuffled in runs of one shape: give bucket_batch, their length")
        else:
            of_shape = [sum((shares[reader] for reader in group), Fraction(0)) for group in self._groups]
            self.buckets = RunOrder(of_shape, self.seed, self.bucket_batch)

    def _position(self, index: int) -> tuple[int, int]:
        """Return the reader of the sample that is seen ``index``-th, and how many of its folder are seen before."""
        group, own = self.buckets.locate(index) if self.buckets is not None else (0, index)
        mixture = self.mixtures[group]
        member, own = mixture.locate(own) if mixture is not None else (0, own)
        return self._groups[group][member], own

    def locate(self, index: int) -> tuple[int, int, int]:
        """Return folder, shard and row of the sample that is seen ``index``-th."""
        source, position = self._position(index)
        return source, *self.orders[source].locate(position)

    def read(self, index: int, attempt: int | None = None) -> StoredSample:
        """Read the sample that is seen ``index``-th, or a substitute.

        Args:
            index: Number of the sample.
            attempt: None reads the sample itself; 0, 1, ... its substitutes, which come from the same folder.
        """
        source, position = self._position(index)
        reader, order = self.readers[source], self.orders[source]
        if isinstance(reader.folder, RemoteFolder):
            reader.folder.prefetch(order.upcoming(position))
        shard, row = order.locate(position) if attempt is None else order.substitute(position, attempt)
        stored = int(self._rows[source][shard]) + row
        return StoredSample(reader.folder.shard_name(shard), stored, *reader.read(shard, row))

    def roots(self) -> dict[str, str]:
        """Return the Merkle root of each folder, with its keep-list: the data that a checkpoint was trained on."""
        return {reader.folder.name: reader.folder.merkle_root for reader in self.readers}


def _open_source(source: Source, cache: ShardCache | None) -> dict[Shape | None, SampleReader]:
    """Open the shard folders of a source by shape: one without a shape, or those of its buckets."""
    try:
        return {None: SampleReader(source.path, cache)}
    except UserError as error:
        buckets = None if isinstance(error, Unreachable) else read_buckets(source.path, cache)
        if buckets is None:
            raise
    readers: dict[Shape | None, SampleReader] = {}
    for bucket in buckets:
        readers[bucket.shape] = SampleReader(bucket.path, cache)
        if readers[bucket.shape].folder.samples != bucket.samples:
            raise UserError(
                f"{bucket.path} holds {readers[bucket.shape].folder.samples} samples, {source.path}/{BUCKETS} says "
                f"{bucket.samples}: copy or encode the whole folder again"
            )
    return readers


def _shapes(sources: Sequence[Source], opened: Sequence[dict[Shape | None, SampleReader]]) -> list[Shape]:
    """Return all shapes of the buckets, ascending; an empty list without buckets."""
    shapes = {shape for source in opened for shape in source}
    plain = [str(source.path) for source, folders in zip(sources, opened, strict=True) if None in folders]
    if plain and shapes != {None}:
        raise UserError(f"data.train mixes folders of buckets with {plain}, which have none: encode all with --buckets")
    return sorted(shape for shape in shapes if shape is not None)


def _check_cache(folders: list[RemoteFolder]) -> None:
    """Refuse a cache that cannot hold the shards open at a time: it would fetch them again and again."""
    needed = sum(folder.working_bytes(OPEN_SHARDS) for folder in folders)
    limit = folders[0].cache.max_bytes if folders else None
    if limit is not None and limit < needed:
        raise UserError(
            f"data.init_args.loading.cache.max_bytes is {limit}: give at least {needed}, the {OPEN_SHARDS} shards of "
            "each source that are read at a time"
        )
