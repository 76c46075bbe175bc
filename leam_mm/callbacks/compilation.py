"""Compilation of a network with torch.compile, block by block.

trainer:
  callbacks:
  - class_path: leam_mm.callbacks.compilation.Compilation

Blocks of the same class and shapes share one compilation, so compile time does not grow with depth. Parameter names and
checkpoints are the same with and without compilation.
"""

import logging
from functools import lru_cache

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from leam_mm.encoders.repeated_blocks import repeated_blocks
from leam_mm.optim.ema import Ema

log = logging.getLogger(__name__)
logging.getLogger("torch.utils.cpp_extension").addFilter(lambda record: "No CUDA runtime" not in record.getMessage())


class Compilation(Callback):
    """Compile the blocks with trained weights if a probe succeeds on the device; otherwise log the reason.

    Averaged copies and frozen parts are not compiled.

    Args:
        dynamic: As in ``torch.compile``. True compiles for captions of any length; None compiles for the first shapes
            and recompiles with dynamic shapes if they change; False recompiles for each shape.
    """

    def __init__(self, dynamic: bool | None = True) -> None:
        """See the class for the arguments."""
        self.dynamic = dynamic

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mark the blocks for compilation at their first call."""
        blocks = trained_blocks(pl_module)
        reason = probe(pl_module.device) if blocks else "the network has no repeated blocks"
        if reason:
            log.warning("torch.compile is not used: %s", reason)
            return
        for block in blocks:
            block.compile(dynamic=self.dynamic)
        log.info("torch.compile: %d blocks are compiled at their first call, which slows the first steps", len(blocks))


def trained_blocks(module: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks with trained weights, without averaged copies."""
    parts = [child for child in module.children() if not isinstance(child, Ema)]
    return [
        block
        for part in parts
        for block in repeated_blocks(part)
        if any(weight.requires_grad for weight in block.parameters())
    ]


@lru_cache
def probe(device: torch.device) -> str:
    """Compile and run a small function forward and backward on the device; the result is cached per process.

    Returns:
        "" if it works, else the reason for the failure (no C++ compiler on a CPU, no Triton on a GPU).
    """
    try:
        x = torch.ones(16, device=device, requires_grad=True)
        torch.compile(_small, dynamic=False)(x).backward()
    except Exception as error:  # compiler backends raise many types
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
    return ""


def _small(x: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x * 2 + 1).sum()
