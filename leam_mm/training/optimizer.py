"""Learning-rate schedules and the split of parameters into those with and without weight decay."""

import math
from collections.abc import Callable

from lightning.pytorch.cli import OptimizerCallable
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(optimizer: Optimizer, warmup_steps: int, total_steps: int, floor: float = 0.0) -> LambdaLR:
    """Rise linearly over the warm-up, then fall by half a cosine to ``floor`` times the base rate.

    Args:
        optimizer: Whose rate is scaled.
        warmup_steps: Optimizer steps of the rise; 0 starts at the full rate.
        total_steps: Optimizer steps of the whole training.
        floor: Share of the base rate at the end, in [0, 1].
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def warmup_constant(optimizer: Optimizer, warmup_steps: int) -> LambdaLR:
    """Rise linearly over the warm-up, then stay at the base rate."""
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(1, warmup_steps)))


def decay_groups(module: nn.Module, skip: Callable[[str, nn.Parameter], bool] | None = None) -> list[dict[str, object]]:
    """Two parameter groups: matrices and kernels decay, vectors and scalars (biases, norms, scales) do not.

    Args:
        module: Its trainable parameters are split.
        skip: Further parameters, by name and tensor, that must not decay.

    Returns:
        Groups for an optimizer; the second has ``weight_decay`` 0.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            without = parameter.ndim < 2 or (skip is not None and skip(name, parameter))
            (plain if without else decayed).append(parameter)
    return [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]


def build_optimizer(optimizer: OptimizerCallable, module: nn.Module) -> Optimizer:
    """Build the recipe's optimizer over the two groups of ``decay_groups``."""
    return optimizer(decay_groups(module))  # type: ignore[arg-type]
