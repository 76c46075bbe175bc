"""Random access to the n-th sample of a mixture of shard folders."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from leam_mm.data.remote_shards import RemoteFolder, ShardCache, open_folder
from leam_mm.data.sample_order import MixtureOrder, SampleOrder
from leam_mm.data.shard_index import parse_sample
from leam_mm.errors import UserError

OPEN_SHARDS = 16  # two blocks of SampleOrder: a mixture looks back and forth over the border between them


@dataclass(frozen=True)
class Source:
    """One shard folder of a mixture.

    Args:
        path: Folder with ``manifest.jsonl``, or its URL.
        weight: Relative share of samples drawn from it.
        language: Of all its captions, where they have one only; see LanguageBalance.
    """

    path: str | Path
    weight: float = 1.0
    language: str | None = None


class StoredSample(NamedTuple):
    """What a tar holds of one sample; ``row`` counts the samples of all sources one after the other, as stored."""

    shard: str
    row: int
    key: str
    members: dict[str, bytes]


@dataclass(frozen=True)
class _OpenShard:
    file: BinaryIO
    keys: list[str]
    offset: np.ndarray
    size: np.ndarray


class SampleReader:
    """The samples of one shard folder by (shard, row); files are opened lazily in each worker, and few at a time.

    Args:
        path: Folder with ``manifest.jsonl``, or its URL.
        cache: Where the shards behind a URL are kept.
    """

    def __init__(self, path: str | Path, cache: ShardCache | None = None) -> None:
        """See the class for the arguments."""
        self.folder = open_folder(path, cache)
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._faults: dict[int, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files behind when a worker process gets its copy."""
        return {**self.__dict__, "_open": OrderedDict()}

    def read(self, shard: int, row: int) -> tuple[str, dict[str, bytes]]:
        """Key and members of one sample."""
        opened = self._shard(shard)
        try:
            return opened.keys[row], parse_sample(_read(opened.file, int(opened.offset[row]), int(opened.size[row])))
        except UserError as error:
            raise UserError(f"{self.folder.shard_name(shard)}, key {opened.keys[row]}: {error}") from None

    def _shard(self, shard: int) -> _OpenShard:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if shard in self._faults:  # a shard that was found broken stays so: nobody looks or fetches again
            raise UserError(self._faults[shard])
        while len(self._open) >= OPEN_SHARDS:
            self._open.popitem(last=False)[1].file.close()
        try:
            file = self.folder.open(shard)
            index = self.folder.index(shard)
        except UserError as error:
            if type(error) is UserError:
                self._faults[shard] = str(error)
            raise
        self._open[shard] = _OpenShard(file, index.keys, index.offset, index.size)
        return self._open[shard]


def _read(file: BinaryIO, start: int, size: int) -> bytes:
    """A byte range, in one call where the system has it; not by mmap, which dies of a file that is cut meanwhile."""
    if hasattr(os, "pread"):
        content = os.pread(file.fileno(), size, start)
    else:
        file.seek(start)
        content = file.read(size)
    if len(content) != size:
        raise UserError(f"its tar ends at byte {start + len(content)}, the sample at {start + size}: copy it again")
    return content


class SamplePlan:
    """The n-th sample of a mixture of shard folders.

    Args:
        sources: The folders and their weights.
        seed: Names the order.
        shuffle: False walks each folder in manifest order.
        cache: Where the shards behind URLs are kept.
    """

    def __init__(self, sources: Sequence[Source], seed: int, shuffle: bool, cache: ShardCache | None = None) -> None:
        """See the class for the arguments."""
        if not sources:
            raise UserError("data.train is empty: name at least one shard folder")
        self.readers = [SampleReader(source.path, cache) for source in sources]
        self.orders = [
            SampleOrder([entry.samples for entry in reader.folder.shards], seed + number, shuffle=shuffle)
            for number, reader in enumerate(self.readers)
        ]
        self.seed = seed
        self.mixture: MixtureOrder | None = None
        self.weigh([source.weight for source in sources])
        self.samples = sum(order.samples for order in self.orders)
        counts = [np.array([entry.samples for entry in reader.folder.shards]) for reader in self.readers]
        first = np.cumsum([0] + [order.samples for order in self.orders])
        self._rows = [start + np.cumsum(count) - count for start, count in zip(first[:-1], counts, strict=True)]
        _check_cache([reader.folder for reader in self.readers if isinstance(reader.folder, RemoteFolder)])

    def weigh(self, weights: Sequence[float]) -> None:
        """Set the shares of the sources."""
        self.mixture = MixtureOrder(weights, self.seed) if len(self.readers) > 1 else None

    def _place(self, index: int) -> tuple[int, int]:
        """Source of the sample that is seen ``index``-th, and how many of that source are seen before it."""
        return self.mixture.locate(index) if self.mixture else (0, index)

    def locate(self, index: int) -> tuple[int, int, int]:
        """Folder, shard and row of the sample that is seen ``index``-th."""
        source, place = self._place(index)
        return source, *self.orders[source].locate(place)

    def read(self, index: int, attempt: int | None = None) -> StoredSample:
        """The sample that is seen ``index``-th, or one that may stand in for it.

        Args:
            index: Number of the sample.
            attempt: None reads the sample itself; 0, 1, ... read its substitutes, which come from the same source.
        """
        source, place = self._place(index)
        reader, order = self.readers[source], self.orders[source]
        if isinstance(reader.folder, RemoteFolder):
            reader.folder.prefetch(order.upcoming(place))
        shard, row = order.locate(place) if attempt is None else order.substitute(place, attempt)
        stored = int(self._rows[source][shard]) + row
        return StoredSample(reader.folder.shard_name(shard), stored, *reader.read(shard, row))

    def roots(self) -> dict[str, str]:
        """Merkle root of each folder: the name of the data that a checkpoint was trained on."""
        return {reader.folder.name: reader.folder.merkle_root for reader in self.readers}


def _check_cache(folders: list[RemoteFolder]) -> None:
    """A cache that cannot hold what is open at a time would fetch the same shards again and again."""
    needed = sum(folder.working_bytes(OPEN_SHARDS) for folder in folders)
    limit = folders[0].cache.max_bytes if folders else None
    if limit is not None and limit < needed:
        raise UserError(
            f"data.init_args.cache.max_bytes is {limit}: give at least {needed}, the {OPEN_SHARDS} shards of each "
            "source that are read at a time"
        )
