"""The one place where tensors cross ranks inside a training step."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, features: Tensor) -> Tensor:
        context.rows = len(features)
        parts = [torch.empty_like(features) for _ in range(world_size())]
        dist.all_gather(parts, features.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        # A sum hands the same tensor to all of its terms: summing over ranks in place would change theirs as well.
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        first = dist.get_rank() * context.rows
        return total[first : first + context.rows]


def gather(features: Tensor) -> Tensor:
    """Concatenate the rows of all ranks, in rank order, with the gradient flowing back to each rank's own rows.

    When every rank then computes the same loss of the gathered rows and DDP averages the parameters' gradients, the
    result is the gradient of that loss, whatever the world size: the sum here cancels the average there.

    Args:
        features: (B, D), the same B on each rank.

    Returns:
        (W B, D).
    """
    return _Gather.apply(features) if world_size() > 1 else features


def any_rank(flag: bool, device: torch.device) -> bool:
    """True on all ranks when it is true on one."""
    if world_size() == 1:
        return flag
    vote = torch.tensor(float(flag), device=device)
    dist.all_reduce(vote, op=dist.ReduceOp.MAX)
    return bool(vote.item())
