"""Base of the data modules: planned training batches from a resumable position, ordered validation batches."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule

from leam_mm.data.aspect_buckets import folder_name
from leam_mm.data.batch import Decoding, PlannedBatches, batch_loader, planned_samples, samples_seen
from leam_mm.data.batch_spans import BatchSpans
from leam_mm.data.bucket_order import BucketAfterBucket, RunOrder
from leam_mm.data.caption_choice import CaptionChoice
from leam_mm.data.loader_workers import FromPosition
from leam_mm.data.remote_shards import ShardCache
from leam_mm.data.sample_plan import SamplePlan, Source
from leam_mm.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loading:
    """How samples are read; changes the speed, never the order.

    Args:
        workers: Loader processes per rank.
        max_broken: Share of the training samples that may be unreadable and are replaced by others: of an epoch's
            samples, or of those seen if these are more. 0 ends the run at the first one: checked shards have none, and
            a fault in copying them should be noticed. Validation samples are never replaced.
        cache: Local copy of shards behind URLs.
    """

    workers: int = 2
    max_broken: float = 0.0
    cache: ShardCache | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0 <= self.max_broken < 1:
            raise UserError(
                f"data.init_args.loading.max_broken is {self.max_broken}: give a share of the samples, at least 0 and "
                "below 1"
            )


DEFAULT_LOADING = Loading()


class PlannedModule(LightningDataModule):
    """Base of data modules over shard folders.

    Args:
        train: Shard folder, its URL, a folder with a keep-list, or several of these with weights.
        validation: Shard folder that is read in order, or None.
        batch_size: Samples per optimizer step, over all ranks and accumulated micro-batches.
        validation_samples: Upper bound for validation.
        decode: Decoding of training samples; its seed also determines the order.
        decode_validation: Decoding of validation samples.
        loading: Processes, tolerance of unreadable samples, cache.
        captions: Choice of captions; its language balance is computed when the training data are opened.
        bucket_batch: Number of consecutive samples of one shape, a multiple of the micro-batch, for training folders
            with buckets. None means the micro-batch, or the value in the checkpoint.
    """

    caption_field = "captions"  # entry of a sample's json that lists its captions

    def __init__(
        self,
        train: list[Source] | str | Path,
        validation: str | Path | None,
        batch_size: int,
        validation_samples: int,
        decode: Decoding,
        decode_validation: Decoding,
        loading: Loading = DEFAULT_LOADING,
        captions: CaptionChoice | None = None,
        bucket_batch: int | None = None,
    ) -> None:
        """See the class for the arguments."""
        super().__init__()
        self.train_sources: Sequence[Source] = [Source(train)] if isinstance(train, str | Path) else train
        self.loading, self.captions, self.bucket_batch = loading, captions, bucket_batch
        self.validation, self.validation_samples = validation, validation_samples
        self.batch_size, self.seed = batch_size, decode.seed
        self.decode, self.decode_validation = decode, decode_validation
        self.train_plan: SamplePlan | None = None
        self.spans: BatchSpans | None = None  # of training, once its length is known

    @property
    def micro_batch_size(self) -> int:
        """Samples of one micro-batch over all ranks."""
        return self.batch_size // self.trainer.accumulate_grad_batches if self.trainer else self.batch_size

    @property
    def max_broken(self) -> float:
        """Share of the training samples that may be unreadable."""
        return self.loading.max_broken

    def roots(self) -> dict[str, str]:
        """Return the Merkle root of each training folder, as `SamplePlan.roots`."""
        return SamplePlan(self.train_sources, self.seed, False, self.loading.cache).roots()

    def setup(self, stage: str) -> None:
        """Open the shard folders, check divisibility before the first step, weigh the languages."""
        runs = self.micro_batch_size if self.bucket_batch is None else self.bucket_batch
        plan = self.train_plan = SamplePlan(self.train_sources, self.seed, True, self.loading.cache, runs)
        if self.trainer is not None:
            parts = self.trainer.world_size * self.trainer.accumulate_grad_batches
            if self.batch_size % parts:
                raise UserError(
                    f"data.batch_size {self.batch_size} is not divisible by {self.trainer.world_size} ranks x "
                    f"{self.trainer.accumulate_grad_batches} accumulated batches: choose a multiple of {parts}"
                )
        if self.bucket_batch is not None and not isinstance(plan.buckets, RunOrder):
            raise UserError("data.init_args.bucket_batch is for folders of buckets, and data.train has none: drop it")
        self._check_runs(runs, "data.init_args.bucket_batch is")
        self._log_buckets()
        self._log_repeats()
        if self.captions is not None and self.captions.language_balance is not None:
            self.decode.language_weights = self.captions.language_balance.apply(
                plan, self.train_sources, self.captions.language_weights, self.caption_field
            )

    def _check_runs(self, runs: int, where: str) -> None:
        """Refuse a micro-batch that would reach beyond the end of a run: it would mix shapes."""
        if not runs or runs % self.micro_batch_size:
            raise UserError(
                f"{where} {runs} samples of one shape in a row, which is no multiple of the micro-batch "
                f"{self.micro_batch_size}: change batch_size or trainer.accumulate_grad_batches"
            )

    def _log_buckets(self) -> None:
        """Log the shapes, and which buckets are so small that samples repeat within a batch."""
        plan = self.train_plan
        assert plan is not None
        if plan.shapes and self._ranks()[0] == 0:
            log.info("%d buckets, height x width: %s", len(plan.shapes), ", ".join(map(folder_name, plan.shapes)))
            runs = plan.buckets.length if isinstance(plan.buckets, RunOrder) else 0
            few = {folder_name(shape): count for shape, count in plan.shape_samples.items() if count < runs}
            if few:
                log.warning("buckets with fewer samples than a batch of %d repeat them in it: %s", runs, few)

    def _log_repeats(self) -> None:
        """Warn of sources with fewer samples than their part of a batch, which repeats them."""
        plan = self.train_plan
        assert plan is not None
        if self._ranks()[0] != 0:
            return
        whole = sum(source.weight for source in self.train_sources)
        for source, samples in zip(self.train_sources, plan.source_samples, strict=True):
            part = source.weight / whole * self.micro_batch_size
            if samples < part:
                log.warning(
                    "%s holds %d samples, each batch has %.0f of them: it repeats them", source.path, samples, part
                )

    def state_dict(self) -> dict[str, Any]:
        """Return the length of the runs of one shape, on which the order of buckets depends."""
        buckets = self.train_plan.buckets if self.train_plan is not None else None
        return {"bucket_batch": buckets.length} if isinstance(buckets, RunOrder) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the checkpoint's length of runs, or refuse to resume with another order."""
        before, plan = state_dict.get("bucket_batch"), self.train_plan
        if before is None or plan is None or not isinstance(plan.buckets, RunOrder) or before == plan.buckets.length:
            return
        if self.bucket_batch is not None:
            raise UserError(
                f"the checkpoint's buckets come in runs of {before} samples, data.init_args.bucket_batch is "
                f"{self.bucket_batch}: set it to {before}, else samples would be skipped and repeated"
            )
        self._check_runs(before, "the checkpoint's buckets come in runs of")
        log.info("buckets continue in runs of %d samples, as in the checkpoint", before)
        plan.buckets.length = plan.bucket_batch = before

    def broken_limit(self, seen: int) -> float:
        """Return how many training samples may be broken after ``seen`` samples.

        The limit is a share of the planned samples at first, since the faults of one damaged shard come together.
        """
        assert self.train_plan is not None
        planned = self.train_plan.samples
        if self.trainer is not None and (end := planned_samples(self.trainer, self.batch_size)) is not None:
            planned = min(planned, end)
        return self.max_broken * max(seen, planned)

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> Any:
        """Return the batches from the checkpoint's position on."""
        assert self.train_plan is not None
        rank, world = self._ranks()
        seen = (samples_seen(self.trainer) or 0) if self.trainer is not None else 0
        self._check_position(seen)
        end = planned_samples(self.trainer, self.batch_size) if self.trainer is not None else None
        if end is not None:
            accumulate = self.trainer.accumulate_grad_batches  # type: ignore[union-attr]
            self.spans = BatchSpans(self._batches_before(seen), seen, end, self.batch_size, accumulate)
            self.spans.check(world)
            sampler = FromPosition(self.spans.first, len(self.spans))
        else:  # epochs without a planned end
            sampler = FromPosition(seen // self.micro_batch_size, math.ceil(self.train_plan.samples / self.batch_size))
        parts = (self.train_plan, self.decode, self.micro_batch_size, rank, world, self.spans)
        batches = PlannedBatches(*parts, replace=self.max_broken > 0)
        return batch_loader(batches, sampler, self.loading.workers)

    def _batches_before(self, seen: int) -> int:
        """Return the number of micro-batches that the trainer has counted, of whatever size they were."""
        loop = getattr(self.trainer, "fit_loop", None)
        return seen // self.micro_batch_size if loop is None else loop.epoch_loop.batch_progress.current.ready

    def _check_position(self, seen: int) -> None:
        """Refuse to begin in the middle of what must be one batch: a run of one shape, a drawn image size."""
        shapes = self.train_plan is not None and isinstance(self.train_plan.buckets, RunOrder)
        sizes = getattr(self, "stages", None) is not None
        unit = self.batch_size if sizes else self.micro_batch_size
        if (shapes or sizes) and seen % unit:
            raise UserError(
                f"the checkpoint was written after {seen} samples, which is no multiple of the "
                f"{'batch size' if sizes else 'micro-batch'} {unit}: resume with a batch size that divides it, since "
                f"all images of a batch have one size with {'stages' if sizes else 'buckets'}"
            )

    def val_dataloader(self) -> Any:
        """Return the first validation samples in the order of the manifest; with buckets, some of each."""
        if self.validation is None:
            return []
        rank, world = self._ranks()
        plan = SamplePlan([Source(self.validation)], seed=0, shuffle=False, cache=self.loading.cache)
        limit = min(plan.samples, self.validation_samples)
        size = min(self.micro_batch_size, max(world, limit // world * world))
        # All ranks must make the same number of steps, each with samples: several ranks leave out the short batch.
        whole = limit // size if world > 1 else math.ceil(limit / size)
        spans = [range(first, min(first + size, limit)) for first in range(0, whole * size, size)]
        if isinstance(plan.buckets, BucketAfterBucket):
            spans = plan.buckets.batches(limit, size, world)
        batches = PlannedBatches(plan, self.decode_validation, size, rank, world, spans)
        return batch_loader(batches, FromPosition(0, len(spans)), min(self.loading.workers, 1))
