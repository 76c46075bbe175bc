"""Parameter groups by weight decay and shape, and the optimizer built over them."""

from collections.abc import Callable, Mapping

from lightning.pytorch.cli import OptimizerCallable
from torch import nn
from torch.optim import Optimizer

from leam_mm.encoders.repeated_blocks import repeated_blocks
from leam_mm.optim.layer_decay import LayerDecay, rate_shares, scale_rates, split_by_share
from leam_mm.optim.muon import MATRICES

# Parts of the names of diffusers' layers that compute scales and shifts from the timestep.
MODULATIONS = ("modulation", "norm", "time_emb")


def hidden_matrices(module: nn.Module) -> set[nn.Parameter]:
    """Return the matrices and convolution kernels inside the repeated blocks, for optimizers such as Muon.

    Excludes embeddings, layers before and after the blocks, kernels of one input channel, and layers that compute
    scales and shifts from the timestep (in one trial of Muon on PRX these learned better with AdamW).
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
    """Group trainable parameters: hidden matrices, other matrices and kernels, and those without decay.

    Args:
        module: Module whose trainable parameters are grouped.
        skip: Predicate of name and tensor; parameters for which it is true get no weight decay, like biases, norms and
            scalars.

    Returns:
        Non-empty groups for an optimizer; hidden matrices have ``matrices`` true, the last has ``weight_decay`` 0.
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
        optimizer: Called with the groups.
        module: Module whose trainable parameters are optimized.
        rates: Shares of the learning rate: a layer-wise decay, or a share per weight (1 for weights not in the
            mapping). None gives all weights the full rate.
    """
    groups = decay_groups(module)
    if rates is not None:
        shares = rate_shares(module, rates) if isinstance(rates, LayerDecay) else rates
        groups = split_by_share(groups, {weight: shares.get(weight, 1.0) for weight in module.parameters()})
    built: Optimizer = optimizer(groups)  # type: ignore[arg-type]
    scale_rates(built)
    return built
