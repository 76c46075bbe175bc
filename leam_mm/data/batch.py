"""Whole batches by number: batch k of a rank holds fixed samples, whoever loads it and whenever.

The loader hands each worker whole batches (k, k + W, ...) and Torch's DataLoader returns them in order, so the number
of workers changes nothing. A resumed run starts its sampler at the position that the checkpoint holds.
"""

import json
import mmap
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset, Sampler

from leam_mm.data.sample_order import MixtureOrder, SampleOrder
from leam_mm.data.shard_index import ShardFolder, parse_sample
from leam_mm.errors import UserError

Sample = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """One shard folder of a mixture.

    Args:
        path: Folder with ``manifest.jsonl``.
        weight: Relative share of samples drawn from it.
    """

    path: Path
    weight: float = 1.0


class SampleReader:
    """Random access to the samples of one shard folder by (shard, row); opened lazily in each worker.

    Args:
        path: Folder with ``manifest.jsonl``.
    """

    def __init__(self, path: Path) -> None:
        """See the class for the arguments."""
        self.folder = ShardFolder(path)
        self._open: dict[int, tuple[mmap.mmap, list[str], Any, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files behind when a worker process gets its copy."""
        return {**self.__dict__, "_open": {}}

    def read(self, shard: int, row: int) -> tuple[str, dict[str, bytes]]:
        """Key and members of one sample."""
        if shard not in self._open:
            index = self.folder.index(shard)
            with open(self.folder.tar(shard), "rb") as file:
                view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._open[shard] = (view, index.keys, index.offset, index.size)
        view, keys, offset, size = self._open[shard]
        start = int(offset[row])
        try:
            return keys[row], parse_sample(view[start : start + int(size[row])])
        except UserError as error:
            raise UserError(f"{self.folder.path}/{self.folder.shards[shard].shard}, key {keys[row]}: {error}") from None


class SamplePlan:
    """The n-th sample of a mixture of shard folders.

    Args:
        sources: The folders and their weights.
        seed: Names the order.
        shuffle: False walks each folder in manifest order.
    """

    def __init__(self, sources: Sequence[Source], seed: int, shuffle: bool) -> None:
        """See the class for the arguments."""
        if not sources:
            raise UserError("data.train is empty: name at least one shard folder")
        self.readers = [SampleReader(source.path) for source in sources]
        self.orders = [
            SampleOrder([entry.samples for entry in reader.folder.shards], seed + number, shuffle=shuffle)
            for number, reader in enumerate(self.readers)
        ]
        self.mixture = MixtureOrder([source.weight for source in sources], seed) if len(sources) > 1 else None
        self.samples = sum(order.samples for order in self.orders)

    def locate(self, index: int) -> tuple[int, int, int]:
        """Folder, shard and row of the sample that is seen ``index``-th."""
        source, place = self.mixture.locate(index) if self.mixture else (0, index)
        return source, *self.orders[source].locate(place)

    def read(self, index: int) -> tuple[str, dict[str, bytes]]:
        """Key and members of the sample that is seen ``index``-th."""
        source, shard, row = self.locate(index)
        return self.readers[source].read(shard, row)

    def shard(self, index: int) -> Path:
        """The tar that holds the sample that is seen ``index``-th, for messages."""
        source, shard, _ = self.locate(index)
        folder = self.readers[source].folder
        return folder.path / folder.shards[shard].shard

    def roots(self) -> dict[str, str]:
        """Merkle root of each folder: the name of the data that a checkpoint was trained on."""
        return {str(reader.folder.path): reader.folder.merkle_root for reader in self.readers}


def read_record(members: dict[str, bytes], field: str) -> list[dict[str, Any]]:
    """The captions of a sample: the list under ``field`` of its json, which strangers may have written."""
    try:
        captions = json.loads(members["json"])[field]
        if not captions or not all({"text", "language"} <= caption.keys() for caption in captions):
            raise ValueError("an entry has no text or no language" if captions else "the list is empty")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"its json has no usable {field} ({type(error).__name__}: {error}); run data_tools/check_shards.py"
        ) from None
    return captions


class Decoding:
    """Turns the members of a stored sample into one sample of a batch; a plain object that workers can copy.

    Args:
        seed: All randomness of a sample is derived from it and the sample's number.
    """

    def __init__(self, seed: int) -> None:
        """See the class for the arguments."""
        self.seed = seed

    def __call__(self, key: str, members: dict[str, bytes], index: int) -> Sample:
        """Decode the sample that is seen ``index``-th."""
        raise NotImplementedError(f"{type(self).__name__} must say how a sample is decoded")

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        """Make a batch of decoded samples; what is cheaper for all at once than one by one belongs here."""
        return collate_samples(samples)


class PlannedBatches(Dataset[dict[str, Any]]):
    """Batch k of one rank.

    Args:
        plan: Which sample is n-th.
        decode: Members of a stored sample -> one sample.
        batch_size: Of all ranks together, per micro-batch.
        rank: Of this process.
        world_size: Number of ranks.
        limit: Samples in all (validation: the last batch may be short); None goes on for ever.
    """

    def __init__(
        self,
        plan: SamplePlan,
        decode: Decoding,
        batch_size: int,
        rank: int,
        world_size: int,
        limit: int | None = None,
    ) -> None:
        """See the class for the arguments."""
        if batch_size % world_size:
            raise UserError(f"data.batch_size {batch_size} is not divisible by {world_size} ranks: choose a multiple")
        self.plan, self.decode, self.limit = plan, decode, limit
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Load batch ``number`` of this rank: a contiguous slice of the global batch."""
        local = self.batch_size // self.world_size
        first = number * self.batch_size + self.rank * local
        last = first + local if self.limit is None else min(first + local, self.limit)
        return self.decode.collate([self.sample(index) for index in range(first, last)])

    def sample(self, index: int) -> Sample:
        """Load and decode one sample; what is wrong with it is told with its shard and key."""
        key, members = self.plan.read(index)
        try:
            return self.decode(key, members, index)
        except UserError as error:
            raise UserError(f"{self.plan.shard(index)}, key {key}: {error}") from None


class FromPosition(Sampler[int]):
    """Batch numbers from ``first`` on, with the length of the whole training (the progress bar counts all of it)."""

    def __init__(self, first: int, total: int) -> None:
        """See the class."""
        self.first, self.total = first, total

    def __iter__(self) -> Iterator[int]:
        """Number after number."""
        return iter(range(self.first, self.total))

    def __len__(self) -> int:
        """Batches of the whole training."""
        return self.total


def collate_samples(samples: list[Sample]) -> dict[str, Any]:
    """Stack tensors, list everything else."""
    return {
        name: torch.stack([sample[name] for sample in samples])
        if isinstance(samples[0][name], torch.Tensor)
        else [sample[name] for sample in samples]
        for name in samples[0]
    }


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Schedulers signal every process of a job; a worker that died of it would take the training's last save along.

    TERM still ends a worker when its own trainer sends it, as multiprocessing does at the end of a program.
    """
    for number in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    trainer = multiprocessing.parent_process()  # not os.getppid(), which under forkserver is the server
    if trainer is not None and hasattr(signal, "sigwaitinfo"):  # macOS has none: there TERM goes on to end a worker
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_the_trainer, args=(trainer.pid,), daemon=True).start()


def _end_with_the_trainer(trainer: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
        continue
    os._exit(0)


def batch_loader(batches: PlannedBatches, sampler: Sampler[int], workers: int) -> DataLoader[dict[str, Any]]:
    """A DataLoader over whole batches; the number of workers changes the speed only."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_signals_to_the_trainer,
    )


class SamplePosition(Callback):
    """Keeps the one integer that resumes the data: samples seen, counted over all ranks."""

    def __init__(self) -> None:
        """Start at the first sample."""
        self.samples_seen = 0

    def state_dict(self) -> dict[str, int]:
        """The position."""
        return {"samples_seen": self.samples_seen}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take the position back from a checkpoint."""
        self.samples_seen = state_dict["samples_seen"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        """Advance by one global micro-batch (this runs before the checkpoint callbacks)."""
        self.samples_seen += trainer.datamodule.micro_batch_size  # type: ignore[attr-defined]
