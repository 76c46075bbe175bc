"""Whole batches by number: batch k of a rank always holds the same samples.

Each worker loads whole batches (k, k + W, ...) and torch's DataLoader returns them in order, so the number of workers
changes nothing. A resumed run starts its sampler at the position in the checkpoint.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import Dataset

from leam_mm.data.batch_spans import BatchSpans
from leam_mm.data.broken_samples import ATTEMPTS, BrokenSamples
from leam_mm.data.loader_workers import FromPosition, RestartingLoader, begin_worker
from leam_mm.data.remote_shards import Unreachable
from leam_mm.data.sample_json import read_sample_json, sample_captions
from leam_mm.data.sample_plan import SamplePlan
from leam_mm.errors import UserError

Sample = dict[str, Any]


def read_record(members: dict[str, bytes], field: str) -> list[dict[str, Any]]:
    """Return the captions of a sample: the list under ``field`` of its json, which may be hostile."""
    return read_whole_record(members, field)[1]


def read_whole_record(members: dict[str, bytes], field: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the json of a sample, and its captions."""
    record = read_sample_json(members)
    return record, sample_captions(record, field)


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
        raise NotImplementedError(f"{type(self).__name__} must define __call__")

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        """Make a batch of decoded samples; work that is cheaper per batch than per sample belongs here."""
        return collate_samples(samples)


class PlannedBatches(Dataset[dict[str, Any]]):
    """The batches of one rank.

    Args:
        plan: Which sample is n-th.
        decode: Members of a stored sample -> one sample.
        batch_size: Samples per micro-batch, over all ranks.
        rank: Rank of this process.
        world_size: Number of ranks.
        spans: Sample numbers of each batch, over all ranks (some may be short); None means endless batches.
        replace: Replace samples that cannot be read and list them under ``broken``; else fail.
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
        """Load this rank's contiguous slice of batch ``number``."""
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
        """Load and decode one sample or its substitute; the reason is appended to ``broken``.

        A substitute uses the random numbers of the sample that it replaces.
        """
        first: UserError | None = None
        for attempt in (None, *range(ATTEMPTS)):
            try:
                return self._read(index, attempt)
            except Unreachable as error:  # the sample may be fine; a plain UserError can leave a worker process
                raise UserError(str(error)) from None
            except UserError as error:
                if not self.replace or broken is None:
                    raise
                if first is None:
                    first = error
                    broken.append(str(error))
        raise UserError(f"{first}; and none of {ATTEMPTS} substitutes can be read")

    def _read(self, index: int, attempt: int | None) -> Sample:
        stored = self.plan.read(index, attempt)
        try:
            sample = self.decode(stored.key, stored.members, index)
        except UserError as error:
            raise UserError(f"{stored.shard}, key {stored.key}: {error}") from None
        return sample | {"sample_row": stored.row}


def collate_samples(samples: list[Sample]) -> dict[str, Any]:
    """Stack tensors and integers; list everything else."""
    batch: dict[str, Any] = {}
    for name, first in samples[0].items():
        batch[name] = [sample[name] for sample in samples]
        if isinstance(first, torch.Tensor):
            batch[name] = torch.stack(batch[name])
        elif isinstance(first, int):
            batch[name] = torch.tensor(batch[name])
    return batch


def batch_loader(batches: PlannedBatches, sampler: FromPosition, workers: int) -> RestartingLoader:
    """Return a DataLoader over whole batches; the number of workers changes the speed only."""
    return RestartingLoader(
        batches,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
        prefetch_factor=4 if workers else None,
        worker_init_fn=begin_worker,
    )


class SamplePosition(Callback):
    """Counts samples seen over all ranks, the one integer that resumes the data; and broken samples.

    Args:
        end: Samples of the whole run; None means trainer.max_steps times the batch size.
    """

    def __init__(self, end: int | None = None) -> None:
        """Start at sample 0."""
        self.samples_seen, self.end = 0, end
        self.broken = BrokenSamples()

    def state_dict(self) -> dict[str, int]:
        """Return the position and the number of broken samples."""
        return {"samples_seen": self.samples_seen, "broken": self.broken.total}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restore the position from a checkpoint."""
        self.samples_seen, self.broken.total = state_dict["samples_seen"], state_dict.get("broken", 0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        """Advance by one global micro-batch (this runs before the checkpoint callbacks)."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        spans: BatchSpans | None = getattr(data, "spans", None)
        self.samples_seen += data.micro_batch_size if spans is None else spans.size_after(self.samples_seen)
        self.broken.watch(trainer, pl_module, batch, self.samples_seen)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Update the number of broken samples first."""
        self.broken.check(trainer, pl_module, self.samples_seen)
        checkpoint.get("callbacks", {}).get(self.state_key, {}).update(self.state_dict())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the number of broken samples a last time and log it."""
        self.broken.check(trainer, pl_module, self.samples_seen)
        self.broken.log_total(self.samples_seen)


def samples_seen(trainer: Trainer) -> int | None:
    """Return the number of samples seen in training, over all ranks; None if the trainer has no SamplePosition."""
    position = _position(trainer)
    return None if position is None else position.samples_seen


def planned_samples(trainer: Trainer, batch_size: int) -> int | None:
    """Return the number of samples of the whole run, repetitions counted; None if it has no planned end."""
    position = _position(trainer)
    if position is not None and position.end is not None:
        return position.end
    return trainer.max_steps * batch_size if trainer.max_steps > 0 else None


def _position(trainer: Trainer) -> SamplePosition | None:
    callbacks: list[Callback] = getattr(trainer, "callbacks", [])
    return next((callback for callback in callbacks if isinstance(callback, SamplePosition)), None)
