"""What all our data modules share: planned training batches from a resumable position, ordered validation batches."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule

from leam_mm.data.aspect_buckets import folder_name
from leam_mm.data.batch import Decoding, FromPosition, PlannedBatches, batch_loader, samples_seen
from leam_mm.data.bucket_order import BucketAfterBucket, RunOrder
from leam_mm.data.remote_shards import ShardCache
from leam_mm.data.sample_plan import SamplePlan, Source
from leam_mm.errors import UserError

log = logging.getLogger(__name__)


class PlannedModule(LightningDataModule):
    """Base of data modules over shard folders.

    Args:
        train: Shard folder, or one with a keep-list, or its URL; or several with weights.
        validation: Shard folder walked in order, or None.
        batch_size: Samples per optimizer step, over all ranks and accumulated micro-batches.
        validation_samples: Upper bound for validation.
        workers: Loader processes per rank; changes speed, never order.
        decode: Of training samples; its seed names the order too.
        decode_validation: Of validation samples.
        max_broken: Share of the samples that may be unreadable and are replaced by others: of an epoch's, or of those
            seen where they are more. 0 ends the run at the first: shards that were checked have none, and a fault in
            copying them should be seen. Validation samples are never replaced.
        cache: Where the shards behind URLs are kept.
        bucket_batch: Where the training folders have buckets, samples of one shape that follow each other: a multiple
            of the micro-batch. None takes the micro-batch, or what the checkpoint says.
    """

    def __init__(
        self,
        train: list[Source] | str | Path,
        validation: str | Path | None,
        batch_size: int,
        validation_samples: int,
        workers: int,
        decode: Decoding,
        decode_validation: Decoding,
        max_broken: float = 0.0,
        cache: ShardCache | None = None,
        bucket_batch: int | None = None,
    ) -> None:
        """See the class for the arguments."""
        super().__init__()
        if not 0 <= max_broken < 1:
            raise UserError(
                f"data.init_args.max_broken is {max_broken}: give a share of the samples, from 0 to below 1"
            )
        self.train_sources: Sequence[Source] = [Source(train)] if isinstance(train, str | Path) else train
        self.max_broken, self.cache, self.bucket_batch = max_broken, cache, bucket_batch
        self.validation, self.validation_samples = validation, validation_samples
        self.batch_size, self.workers, self.seed = batch_size, workers, decode.seed
        self.decode, self.decode_validation = decode, decode_validation
        self.train_plan: SamplePlan | None = None

    @property
    def micro_batch_size(self) -> int:
        """Samples of one micro-batch over all ranks."""
        return self.batch_size // self.trainer.accumulate_grad_batches if self.trainer else self.batch_size

    def setup(self, stage: str) -> None:
        """Open the shard folders and check divisibility before the first step."""
        runs = self.micro_batch_size if self.bucket_batch is None else self.bucket_batch
        plan = self.train_plan = SamplePlan(self.train_sources, self.seed, True, self.cache, runs)
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
        self._tell_buckets()

    def _check_runs(self, runs: int, where: str) -> None:
        """A micro-batch must not reach over the end of a run: it would mix shapes."""
        if not runs or runs % self.micro_batch_size:
            raise UserError(
                f"{where} {runs} samples of one shape in a row, which {self.micro_batch_size} of a micro-batch do not "
                "divide: choose batch_size and trainer.accumulate_grad_batches so that they do"
            )

    def _tell_buckets(self) -> None:
        """Say which shapes there are, and which repeat their samples inside a batch."""
        plan = self.train_plan
        assert plan is not None
        if plan.shapes and self._ranks()[0] == 0:
            log.info("%d buckets, height x width: %s", len(plan.shapes), ", ".join(map(folder_name, plan.shapes)))
            runs = plan.buckets.length if isinstance(plan.buckets, RunOrder) else 0
            few = {folder_name(shape): count for shape, count in plan.shape_samples.items() if count < runs}
            if few:
                log.warning("buckets with fewer samples than a batch of %d repeat them in it: %s", runs, few)

    def state_dict(self) -> dict[str, Any]:
        """The length of the runs of one shape: the order of buckets depends on it."""
        buckets = self.train_plan.buckets if self.train_plan is not None else None
        return {"bucket_batch": buckets.length} if isinstance(buckets, RunOrder) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the length of the runs, or refuse to go on with another order."""
        before, plan = state_dict.get("bucket_batch"), self.train_plan
        if before is None or plan is None or not isinstance(plan.buckets, RunOrder) or before == plan.buckets.length:
            return
        if self.bucket_batch is not None:
            raise UserError(
                f"the checkpoint's buckets come in runs of {before} samples, data.init_args.bucket_batch is "
                f"{self.bucket_batch}: set it to {before}, else samples would be lost and doubled"
            )
        self._check_runs(before, "the checkpoint's buckets come in runs of")
        log.info("buckets go on in runs of %d samples, as the checkpoint began", before)
        plan.buckets.length = plan.bucket_batch = before

    def broken_limit(self, seen: int) -> float:
        """How many training samples may be broken when ``seen`` were seen: early faults lie together, in one shard."""
        assert self.train_plan is not None
        planned = self.train_plan.samples
        if self.trainer is not None and self.trainer.max_steps > 0:
            planned = min(planned, self.trainer.max_steps * self.batch_size)
        return self.max_broken * max(seen, planned)

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> Any:
        """Batches from the position of the checkpoint on."""
        assert self.train_plan is not None
        rank, world = self._ranks()
        seen, total = 0, math.ceil(self.train_plan.samples / self.batch_size)
        if self.trainer is not None:
            seen = samples_seen(self.trainer) or 0
            if self.trainer.max_steps > 0:
                total = self.trainer.max_steps * self.trainer.accumulate_grad_batches
        if seen % self.micro_batch_size:
            raise UserError(
                f"the checkpoint was written after {seen} samples, which is no multiple of the micro-batch "
                f"{self.micro_batch_size}: resume with a batch size that divides it"
            )
        replace = self.max_broken > 0
        batches = PlannedBatches(self.train_plan, self.decode, self.micro_batch_size, rank, world, replace=replace)
        return batch_loader(batches, FromPosition(seen // self.micro_batch_size, total), self.workers)

    def val_dataloader(self) -> Any:
        """The first samples of the validation folder in the order of its manifest; of each bucket where it has some."""
        if self.validation is None:
            return []
        rank, world = self._ranks()
        plan = SamplePlan([Source(self.validation)], seed=0, shuffle=False, cache=self.cache)
        limit = min(plan.samples, self.validation_samples)
        size = min(self.micro_batch_size, max(world, limit // world * world))
        # Ranks must make the same number of steps with work for each, so several ranks leave the short batch out.
        whole = limit // size if world > 1 else math.ceil(limit / size)
        spans = [range(first, min(first + size, limit)) for first in range(0, whole * size, size)]
        if isinstance(plan.buckets, BucketAfterBucket):
            spans = plan.buckets.batches(limit, size, world)
        batches = PlannedBatches(plan, self.decode_validation, size, rank, world, spans)
        return batch_loader(batches, FromPosition(0, len(spans)), min(self.workers, 1))
