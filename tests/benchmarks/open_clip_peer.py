"""What all comparisons with open_clip_train 3.3.0 set up alike."""

from typing import Any

import open_clip_train.data
from torch import nn


def skip_nameless_entries() -> None:
    """Let open_clip_train read tars with webdataset >= 0.2.96, which ends each with an entry that has no name."""
    expand = open_clip_train.data.tar_file_expander
    if not hasattr(expand, "skips_nameless_entries"):

        def expander(*args: Any, **named: Any) -> Any:
            return (entry for entry in expand(*args, **named) if "fname" in entry)

        expander.skips_nameless_entries = True  # type: ignore[attr-defined]
        open_clip_train.data.tar_file_expander = expander


def decay_groups(model: nn.Module, decay: float) -> Any:
    """Parameter groups of open_clip_train's main: gains, biases and the scale are not decayed."""
    plain = [weight for weight in model.parameters() if weight.ndim < 2]
    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    return [{"params": plain, "weight_decay": 0.0}, {"params": matrices, "weight_decay": decay}]
