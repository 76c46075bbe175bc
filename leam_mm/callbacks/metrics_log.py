"""A CSV of all logged metrics that a resumed run continues instead of deleting.

Lightning's CSVLogger empties its folder when a run is started again. Here rows after the resumed step are dropped (the
resumed run writes equal ones), and the others stay. Rows that do not fit on a full disk wait. Lightning writes a
checkpoint between a step and its row, where a kill would lose the row; ``RowBeforeCheckpoint`` therefore writes the row
first.
"""

import csv
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from leam_mm.files import atomic_write, named_faults
from leam_mm.system_fault import fault_line, system_fault


class MetricsLog(Logger):
    """Logger that writes ``metrics.csv``: a column ``step``, then one per metric, empty if it was not logged.

    Args:
        save_dir: Run folder.
    """

    def __init__(self, save_dir: str) -> None:
        """See the class for the arguments."""
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self._columns: list[str] | None = None
        self._last: dict[str, str] | None = None
        self._waiting: list[dict[str, str]] = []

    @property
    def name(self) -> str:
        """Empty: the file is in the run folder itself."""
        return ""

    @property
    def version(self) -> str:
        """Empty: each run has its own folder."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    @property
    def log_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        with open(self.path, newline="") as file:
            return list(csv.DictReader(file))

    def _rewrite(self, rows: list[dict[str, str]], columns: list[str]) -> None:
        with atomic_write(self.path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        self._columns = columns

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row with full precision, unless it equals the last one; two runs can be compared bit by bit."""
        number = step or 0
        row = {"step": str(number), **{name: repr(float(value)) for name, value in metrics.items() if name != "epoch"}}
        if row == self._last:
            return
        self._last = row
        self._waiting.append(row)
        self.write_waiting()

    @rank_zero_only
    def write_waiting(self, last: bool = False) -> None:
        """Write the rows that are not written yet; a full disk keeps them waiting, unless this is the last attempt."""
        try:
            while self._waiting:
                self._append(self._waiting[0])
                del self._waiting[0]
        except OSError as error:
            self._columns = None  # the next attempt removes a row that was cut off
            if last or system_fault(error) is None:
                raise
            if len(self._waiting) == 1:
                rank_zero_warn(f"training continues, and rows wait until they can be written: {fault_line(error)}")

    def _append(self, row: dict[str, str]) -> None:
        number = int(row["step"])
        if self._columns is None:
            # A row cut off by a kill has no step or too few cells; later steps will be logged again.
            old = [
                found for found in self._rows() if (found.get("step") or "").isdigit() and None not in found.values()
            ]
            kept = [
                found
                for found in old
                if int(found["step"]) < number
                or (int(found["step"]) == number and not any(found.get(name) for name in row if name != "step"))
            ]
            self._rewrite(kept, list(kept[0]) if kept else ["step"])
        assert self._columns is not None
        if new := [name for name in row if name not in self._columns]:
            self._rewrite(self._rows(), self._columns + new)
        with named_faults(self.path), open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self._columns, restval="").writerow(row)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Ignore them: config.yaml has them."""


class EventsLog(TensorBoardLogger):
    """TensorBoard's files, which a full disk interrupts: training continues, and a later step starts a new file."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write the metrics, or skip them."""
        self._try(super().log_metrics, metrics, step)

    @rank_zero_only
    def save(self) -> None:
        """Flush the file."""
        self._try(super().save)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the file."""
        self._try(super().finalize, status)

    def _try(self, write: Callable[..., object], *values: Any) -> None:
        try:
            write(*values)
        except Exception as error:
            if system_fault(error) is None:
                raise
            if self._experiment is not None:
                rank_zero_warn(f"TensorBoard misses step(s), training continues: {fault_line(error)}")
            self._experiment = None  # its writer has ended


class RowBeforeCheckpoint(Callback):
    """Write the current step's row before its checkpoint; Lightning would write it afterwards."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the row; all callbacks have logged by now, since those that write checkpoints come last."""
        connector, loop = trainer._logger_connector, trainer.fit_loop
        # Outside a batch the row has been written already; during accumulation there is none.
        in_step = trainer._results is not None and connector._first_loop_iter is not None and trainer.training
        if not in_step or loop._should_accumulate() or not connector.should_update_logs:
            return
        for logger in trainer.loggers:
            if isinstance(logger, MetricsLog):
                row = {name: float(value) for name, value in connector.metrics["log"].items()}
                logger.log_metrics(row, loop.epoch_loop._batches_that_stepped)
