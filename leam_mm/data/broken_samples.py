"""Samples that cannot be read: replaced by others, counted, named, and too many of them end the run.

The replacement of the n-th sample is a function of (manifest, seed, n), so it depends on no rank or worker, and no
other sample moves: a resumed run goes on with the same ones.
"""

import logging
import math
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from leam_mm.errors import UserError

ATTEMPTS = 64  # substitutes that are looked at for one sample
NAMED = 5
log = logging.getLogger(__name__)


class BrokenSamples:
    """Counts what was replaced, over all ranks, and compares it with what the recipe allows.

    Args:
        every_n_batches: Batches between two looks, at which the ranks add up what each has found.
    """

    def __init__(self, every_n_batches: int = 16) -> None:
        """See the class for the arguments."""
        self.every_n_batches = every_n_batches
        self.total = 0  # over all ranks, up to the last look
        self._new, self._found, self._batches = 0, 0, 0
        self._first = ""

    def watch(self, trainer: Trainer, module: LightningModule, batch: dict[str, Any], seen: int) -> None:
        """Take what a training batch says; look now and then, where the recipe allows broken samples at all."""
        for message in batch.get("broken", []) if isinstance(batch, dict) else []:
            self._new, self._found, self._first = self._new + 1, self._found + 1, self._first or message
            if self._found <= NAMED:
                log.warning("replaced: %s", message)
            elif math.log10(self._found).is_integer():
                log.warning("%s samples could not be read so far and were replaced", f"{self._found:,}")
        self._batches += 1
        if _allows(trainer) and self._batches % self.every_n_batches == 0:
            self.look(trainer, module, seen)
            module.log("data/broken", float(self.total), rank_zero_only=True, batch_size=1)

    def look(self, trainer: Trainer, module: LightningModule, seen: int) -> None:
        """Add up what all ranks have found; all end together where it is too much.

        Raises:
            UserError: More samples were broken than ``max_broken`` allows.
        """
        if not _allows(trainer):
            return
        new = torch.tensor(self._new, device=module.device)
        self.total, self._new = self.total + int(trainer.strategy.reduce(new, reduce_op="sum")), 0
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        limit = data.broken_limit(seen)
        if self.total > limit:
            raise UserError(
                f"{self.total} samples could not be read after {seen} were seen; data.init_args.loading.max_broken "
                f"{data.max_broken:g} allows {int(limit)}. Run data_tools/check_shards.py on the folders"
                + (f"; the first was {self._first}" if self._first else "")
            )

    def tell(self, seen: int) -> None:
        """The sum, in one line, where anything was broken."""
        if self.total:
            share = f"{self.total:,} of {seen:,} samples seen ({self.total / seen:.2%})"
            log.warning("%s could not be read and were replaced", share)


def _allows(trainer: Trainer) -> bool:
    """Whether the recipe's data go on after a broken sample."""
    return bool(getattr(getattr(trainer, "datamodule", None), "max_broken", 0.0))
