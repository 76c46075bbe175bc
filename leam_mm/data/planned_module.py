"""What all our data modules share: planned training batches from a resumable position, ordered validation batches."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule

from leam_mm.data.batch import (
    Decoding,
    FromPosition,
    PlannedBatches,
    SamplePlan,
    SamplePosition,
    Source,
    batch_loader,
)
from leam_mm.errors import UserError


class PlannedModule(LightningDataModule):
    """Base of data modules over shard folders.

    Args:
        train: Shard folder, or several with weights.
        validation: Shard folder walked in order, or None.
        batch_size: Samples per optimizer step, over all ranks and accumulated micro-batches.
        validation_samples: Upper bound for validation.
        workers: Loader processes per rank; changes speed, never order.
        decode: Of training samples; its seed names the order too.
        decode_validation: Of validation samples.
    """

    def __init__(
        self,
        train: Path | list[Source],
        validation: Path | None,
        batch_size: int,
        validation_samples: int,
        workers: int,
        decode: Decoding,
        decode_validation: Decoding,
    ) -> None:
        """See the class for the arguments."""
        super().__init__()
        self.train_sources: Sequence[Source] = [Source(train)] if isinstance(train, Path) else train
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
        self.train_plan = SamplePlan(self.train_sources, self.seed, shuffle=True)
        if self.trainer is not None:
            parts = self.trainer.world_size * self.trainer.accumulate_grad_batches
            if self.batch_size % parts:
                raise UserError(
                    f"data.batch_size {self.batch_size} is not divisible by {self.trainer.world_size} ranks x "
                    f"{self.trainer.accumulate_grad_batches} accumulated batches: choose a multiple of {parts}"
                )

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> Any:
        """Batches from the position of the checkpoint on."""
        assert self.train_plan is not None
        rank, world = self._ranks()
        seen, total = 0, math.ceil(self.train_plan.samples / self.batch_size)
        if self.trainer is not None:
            positions = [callback for callback in self.trainer.callbacks if isinstance(callback, SamplePosition)]  # type: ignore[attr-defined]
            seen = positions[0].samples_seen if positions else 0
            if self.trainer.max_steps > 0:
                total = self.trainer.max_steps * self.trainer.accumulate_grad_batches
        if seen % self.micro_batch_size:
            raise UserError(
                f"the checkpoint was written after {seen} samples, which is no multiple of the micro-batch "
                f"{self.micro_batch_size}: resume with a batch size that divides it"
            )
        batches = PlannedBatches(self.train_plan, self.decode, self.micro_batch_size, rank, world)
        return batch_loader(batches, FromPosition(seen // self.micro_batch_size, total), self.workers)

    def val_dataloader(self) -> Any:
        """The first samples of the validation folder, in the order of its manifest."""
        if self.validation is None:
            return []
        rank, world = self._ranks()
        plan = SamplePlan([Source(self.validation)], seed=0, shuffle=False)
        limit = min(plan.samples, self.validation_samples)
        size = min(self.micro_batch_size, max(world, limit // world * world))
        # Ranks must make the same number of steps with work for each, so several ranks leave the short batch out.
        whole = limit // size if world > 1 else math.ceil(limit / size)
        batches = PlannedBatches(plan, self.decode_validation, size, rank, world, limit)
        return batch_loader(batches, FromPosition(0, whole), min(self.workers, 1))
