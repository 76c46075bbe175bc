"""Table of the model and progress bar in the terminal, without values that Lightning does not know.

Lightning prints 0 for FLOPs that it has not counted, the last letters of a logger's version, and -2 as the last epoch
of a run whose length is given in samples.
"""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichModelSummary, RichProgressBar
from rich import get_console
from rich.table import Table

COLUMNS = {"Name": "left", "Type": "left", "Params": "right", "Params per Device": "right", "Mode": "left"}


class RunProgressBar(RichProgressBar):
    """Progress bar of an epoch."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return what the module logs, without the logger's version."""
        found = super().get_metrics(trainer, pl_module)
        found.pop("v_num", None)
        return found

    def _get_train_description(self, current_epoch: int) -> str:
        if self.trainer.max_epochs == -1:
            return f"{f'Epoch {current_epoch}':{len(self.validation_description)}}"
        return super()._get_train_description(current_epoch)


class RunSummary(RichModelSummary):
    """Parts of the module with their parameters."""

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **summarize_kwargs: Any,
    ) -> None:
        """Print the table. The arguments are Lightning's; FLOPs are measured by throughput, not here."""
        data = {name: column for name, column in summary_data if name in COLUMNS}
        table = Table()
        for name in data:
            table.add_column(name, justify=COLUMNS[name])  # type: ignore[arg-type]
        for row in zip(*data.values(), strict=True):
            table.add_row(*row)
        get_console().print(table)
        get_console().print(
            f"{total_parameters:,} parameters, {trainable_parameters:,} of them trained; about {model_size:.1f} MB"
        )


def replace_displays(callbacks: list[Any]) -> None:
    """Put these classes in the place of Lightning's own; classes that a recipe names stay.

    Args:
        callbacks: Those of a trainer; changed.
    """
    for number, one in enumerate(callbacks):
        if type(one) is RichProgressBar:
            one.theme.metrics_format = ".4g"  # by default it shows a small learning rate as 0.000
            callbacks[number] = RunProgressBar(int(one.refresh_rate), one._leave, one.theme)
        elif type(one) is RichModelSummary:
            callbacks[number] = RunSummary(one._max_depth)
