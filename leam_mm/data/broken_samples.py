"""Unreadable samples: replaced by others, counted and logged; too many end the run.

The replacement of the n-th sample is a function of (manifest, seed, n): it depends on no rank or worker, no other
sample moves, and a resumed run uses the same replacements.
"""

import logging
import math
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from leam_mm.errors import UserError

ATTEMPTS = 64  # substitutes that are tried for one sample
NAMED = 5  # broken samples that are logged one by one
log = logging.getLogger(__name__)


class BrokenSamples:
    """Counts the replaced samples of all ranks and compares them with the limit of the recipe.

    Args:
        every_n_batches: Batches between two checks, in which the counts of the ranks are summed.
    """

    def __init__(self, every_n_batches: int = 16) -> None:
        """See the class for the arguments."""
        self.every_n_batches = every_n_batches
        self.total = 0  # over all ranks, up to the last check
        self._new, self._found, self._batches = 0, 0, 0
        self._first = ""

    def watch(self, trainer: Trainer, module: LightningModule, batch: dict[str, Any], seen: int) -> None:
        """Record the broken samples of a training batch; check regularly if the recipe allows broken samples."""
        for message in batch.get("broken", []) if isinstance(batch, dict) else []:
            self._new, self._found, self._first = self._new + 1, self._found + 1, self._first or message
            if self._found <= NAMED:
                log.warning("replaced: %s", message)
            elif math.log10(self._found).is_integer():
                log.warning("%s samples could not be read so far and were replaced", f"{self._found:,}")
        self._batches += 1
        if _allows(trainer) and self._batches % self.every_n_batches == 0:
            self.check(trainer, module, seen)
            module.log("data/broken", float(self.total), rank_zero_only=True, batch_size=1)

    def check(self, trainer: Trainer, module: LightningModule, seen: int) -> None:
        """Sum the counts of all ranks; all ranks fail together if the limit is exceeded.

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

    def log_total(self, seen: int) -> None:
        """Log the total, if any sample was broken."""
        if self.total:
            share = f"{self.total:,} of {seen:,} samples seen ({self.total / seen:.2%})"
            log.warning("%s could not be read and were replaced", share)


def _allows(trainer: Trainer) -> bool:
    """Return whether the recipe tolerates broken samples."""
    return bool(getattr(getattr(trainer, "datamodule", None), "max_broken", 0.0))
