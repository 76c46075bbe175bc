"""Whole batches by number: batch k of a rank holds fixed samples, whoever loads it and whenever.

The loader hands each worker whole batches (k, k + W, ...) and Torch's DataLoader returns them in order, so the number
of workers changes nothing. A resumed run starts its sampler at the position that the checkpoint holds.
"""

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset, Sampler

from leam_mm.data.broken_samples import ATTEMPTS, BrokenSamples
from leam_mm.data.remote_shards import Unreachable
from leam_mm.data.sample_plan import SamplePlan
from leam_mm.errors import UserError

Sample = dict[str, Any]


def read_record(members: dict[str, bytes], field: str) -> list[dict[str, Any]]:
    """The captions of a sample: the list under ``field`` of its json, which strangers may have written."""
    return read_whole_record(members, field)[1]


def read_whole_record(members: dict[str, bytes], field: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The json of a sample, and its captions."""
    try:
        record = json.loads(members["json"])
        captions = record[field]
        if not captions or not all({"text", "language"} <= caption.keys() for caption in captions):
            raise ValueError("an entry has no text or no language" if captions else "the list is empty")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"its json has no usable {field} ({type(error).__name__}: {error}); run data_tools/check_shards.py"
        ) from None
    return record, captions


class Decoding:
    """Decodes the members of a stored sample to one sample of a batch; a plain object that is copied to workers.

    Args:
        seed: All randomness of a sample is derived from it and the sample's number.
        language_weights: Relative weight of each language among a sample's captions.

    Attributes:
        prompts: Maps captions to token ids and lengths, ``prompt`` and ``prompt_length`` of a batch; set in runs whose
            generator learns to read captions.
    """

    def __init__(self, seed: int, language_weights: dict[str, float] | None = None) -> None:
        """See the class for the arguments."""
        self.seed, self.language_weights = seed, language_weights
        self.prompts: Callable[[list[str]], tuple[torch.Tensor, torch.Tensor]] | None = None

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
        spans: Numbers of the samples of each batch, over all ranks (validation: some may be short); None goes on for
            ever, batch after batch.
        replace: Put others in the place of samples that cannot be read, and name these under ``broken``; else fail.
    """

    def __init__(
        self,
        plan: SamplePlan,
        decode: Decoding,
        batch_size: int,
        rank: int,
        world_size: int,
        spans: Sequence[range] | None = None,
        replace: bool = False,
    ) -> None:
        """See the class for the arguments."""
        if batch_size % world_size:
            raise UserError(f"data.batch_size {batch_size} is not divisible by {world_size} ranks: choose a multiple")
        self.plan, self.decode, self.spans, self.replace = plan, decode, spans, replace
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Load batch ``number`` of this rank: a contiguous slice of the global batch."""
        begin = number * self.batch_size
        whole = range(begin, begin + self.batch_size) if self.spans is None else self.spans[number]
        local = len(whole) // self.world_size
        broken: list[str] = []
        own = whole[self.rank * local : (self.rank + 1) * local]
        batch = self.decode.collate([self.sample(index, broken) for index in own])
        if self.decode.prompts is not None:
            batch["prompt"], batch["prompt_length"] = self.decode.prompts(batch["caption"])
        return batch | {"broken": broken} if broken else batch

    def sample(self, index: int, broken: list[str] | None = None) -> Sample:
        """Load and decode one sample, or what stands in for it; what is wrong with it goes into ``broken``.

        All randomness of a substitute is that of the sample in whose place it stands.
        """
        first: UserError | None = None
        for attempt in (None, *range(ATTEMPTS)):
            try:
                return self._read(index, attempt)
            except Unreachable as error:  # nothing is known about the sample; the plain kind survives a worker's border
                raise UserError(str(error)) from None
            except UserError as error:
                if not self.replace or broken is None:
                    raise
                if first is None:
                    first = error
                    broken.append(str(error))
        raise UserError(f"{first}; nor can any of {ATTEMPTS} samples be read that might take its place")

    def _read(self, index: int, attempt: int | None) -> Sample:
        stored = self.plan.read(index, attempt)
        try:
            sample = self.decode(stored.key, stored.members, index)
        except UserError as error:
            raise UserError(f"{stored.shard}, key {stored.key}: {error}") from None
        return sample | {"sample_row": stored.row}


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
    """Stack tensors and whole numbers, list everything else."""
    batch: dict[str, Any] = {}
    for name, first in samples[0].items():
        batch[name] = [sample[name] for sample in samples]
        if isinstance(first, torch.Tensor):
            batch[name] = torch.stack(batch[name])
        elif isinstance(first, int):
            batch[name] = torch.tensor(batch[name])
    return batch


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
    """Keeps the one integer that resumes the data: samples seen, counted over all ranks; and how many were broken."""

    def __init__(self) -> None:
        """Start at the first sample."""
        self.samples_seen = 0
        self.broken = BrokenSamples()

    def state_dict(self) -> dict[str, int]:
        """The position."""
        return {"samples_seen": self.samples_seen, "broken": self.broken.total}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take the position back from a checkpoint."""
        self.samples_seen, self.broken.total = state_dict["samples_seen"], state_dict.get("broken", 0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        """Advance by one global micro-batch (this runs before the checkpoint callbacks)."""
        self.samples_seen += trainer.datamodule.micro_batch_size  # type: ignore[attr-defined]
        self.broken.watch(trainer, pl_module, batch, self.samples_seen)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count what was found since the last look."""
        self.broken.look(trainer, pl_module, self.samples_seen)
        checkpoint.get("callbacks", {}).get(self.state_key, {}).update(self.state_dict())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last look, and the sum."""
        self.broken.look(trainer, pl_module, self.samples_seen)
        self.broken.tell(self.samples_seen)


def samples_seen(trainer: Trainer) -> int | None:
    """Return the number of samples seen in training, over all ranks; None if the trainer has no SamplePosition."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback.samples_seen for callback in callbacks if isinstance(callback, SamplePosition)), None)
