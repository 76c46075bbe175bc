"""Learning-rate schedules and the split of parameters into those with and without weight decay."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from lightning.pytorch.cli import OptimizerCallable
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from leam_mm.encoders.repeated_blocks import repeated_blocks
from leam_mm.errors import UserError
from leam_mm.optim.layer_decay import LayerDecay, rate_shares, scale_rates, split_by_share
from leam_mm.optim.muon import MATRICES

MODULATIONS = ("modulation", "norm", "time_emb")  # in names of layers of diffusers that scale and shift features


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


@dataclass(frozen=True)
class Cooldown:
    """The end of a schedule that is constant before: a long run can be ended, or gone on with, at any point of it.

    Args:
        steps: Optimizer steps of the fall, at the end of the training.
        shape: With a share x of them done, ``sqrt`` leaves 1 - sqrt(x) of the rate (2405.18392), ``linear`` 1 - x.
    """

    steps: int
    shape: Literal["sqrt", "linear"] = "sqrt"

    def __post_init__(self) -> None:
        """Check the range."""
        if self.steps < 1:
            raise UserError(f"model.init_args.cooldown.steps is {self.steps}: give at least 1, or leave cooldown out")


def warmup_cooldown(
    optimizer: Optimizer, warmup_steps: int, total_steps: int, cooldown: Cooldown, floor: float = 0.0
) -> LambdaLR:
    """Rise linearly over the warm-up, stay at the base rate, then fall to ``floor`` times it.

    Args:
        optimizer: Whose rate is scaled.
        warmup_steps: Optimizer steps of the rise; 0 starts at the full rate.
        total_steps: Optimizer steps of the whole training.
        cooldown: The fall.
        floor: Share of the base rate at the end, in [0, 1].
    """
    if warmup_steps + cooldown.steps > total_steps:
        raise UserError(
            f"model.init_args: {warmup_steps} steps of warm-up and {cooldown.steps} of cool-down do not fit into a "
            f"training of {total_steps}: shorten them, or raise max_samples"
        )
    begin = total_steps - cooldown.steps

    def factor(step: int) -> float:
        if step < begin:
            return min(1.0, (step + 1) / max(1, warmup_steps))
        done = min(1.0, (step - begin) / cooldown.steps)
        return floor + (1 - floor) * (1 - (math.sqrt(done) if cooldown.shape == "sqrt" else done))

    return LambdaLR(optimizer, factor)


def hidden_matrices(module: nn.Module) -> set[nn.Parameter]:
    """The matrices and kernels inside a network's repeated blocks, for optimizers that treat them as matrices.

    Embeddings, the layers before and after the blocks, and kernels of one input channel are none; nor are the layers
    that make scales and shifts of the time (tried once with Muon on PRX: they learn better under AdamW).
    """
    return {
        weight
        for block in repeated_blocks(module)
        for name, layer in block.named_modules()
        if not isinstance(layer, nn.Embedding) and not any(word in name for word in MODULATIONS)
        for weight in layer.parameters(recurse=False)
        if _is_matrix(weight)
    }


def _is_matrix(weight: nn.Parameter) -> bool:
    return weight.ndim in (2, 4) and weight.shape[1] > 1


def decay_groups(module: nn.Module, skip: Callable[[str, nn.Parameter], bool] | None = None) -> list[dict[str, object]]:
    """Parameter groups: hidden matrices, other matrices and kernels, and what does not decay (biases, norms, scales).

    Args:
        module: Its trainable parameters are split.
        skip: Further parameters, by name and tensor, that must not decay.

    Returns:
        Groups for an optimizer, none of them empty; the first has ``matrices`` true, the last ``weight_decay`` 0.
    """
    hidden = hidden_matrices(module)
    inside: list[nn.Parameter] = []
    outside: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            if parameter.ndim < 2 or (skip is not None and skip(name, parameter)):
                plain.append(parameter)
            else:
                (inside if parameter in hidden else outside).append(parameter)
    groups: list[dict[str, object]] = [
        {"params": inside, MATRICES: True},
        {"params": outside},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    optimizer: OptimizerCallable, module: nn.Module, rates: LayerDecay | Mapping[nn.Parameter, float] | None = None
) -> Optimizer:
    """Build the recipe's optimizer over the groups of ``decay_groups``.

    Args:
        optimizer: Takes the groups.
        module: Its trainable parameters are stepped.
        rates: Shares of the rate, by which the groups are then split: smaller ones for lower layers, or those of some
            weights, where all others have the whole.
    """
    groups = decay_groups(module)
    if rates is not None:
        shares = rate_shares(module, rates) if isinstance(rates, LayerDecay) else rates
        groups = split_by_share(groups, {weight: shares.get(weight, 1.0) for weight in module.parameters()})
    built: Optimizer = optimizer(groups)  # type: ignore[arg-type]
    scale_rates(built)
    return built
