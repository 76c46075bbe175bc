"""The one place where tensors cross ranks inside a training step.

Both ways below keep the same promise. Every rank returns the loss of the whole batch; when DDP then averages the
parameters' gradients over the ranks, the result is the gradient of that loss, whatever the world size.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

Pairs = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], Tensor]


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

    Every rank then computes the same loss of the gathered rows. The sum over ranks here cancels the average in DDP.

    Args:
        features: (B, D), the same B on each rank.

    Returns:
        (W B, D).
    """
    return _Gather.apply(features) if world_size() > 1 else features


def ring(
    pairs: Pairs, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None, weights: Sequence[Tensor] = ()
) -> Tensor:
    """Mean over all images of all ranks of a loss that is a sum over pairs, while the texts go round.

    Each rank keeps its images and sees the texts of one rank at a time; the gradient of a text collects its terms on
    the way and comes home with the last step. Transfers run while the next block is computed. Memory is that of one
    block of one rank's images and one rank's texts.

    Args:
        pairs: Sum over the pairs of a block, as `leam_mm.losses.contrastive.PairwiseLoss.pairs`.
        image: (B, D), this rank's, the same B on each rank.
        text: (B, D), this rank's.
        scale: Scalar, the same on all ranks.
        bias: Scalar, the same on all ranks, or None.
        weights: Further tensors that ``pairs`` computes with and that want a gradient, the same on all ranks.

    Returns:
        Scalar, the same on all ranks. The gradients of scale, bias and weights are those of the whole, on each rank.
    """
    return _Ring.apply(pairs, image, text, scale, bias, *weights)


class _Ring(torch.autograd.Function):
    """A sum over blocks has the sum of their gradients, so that each block is differentiated while it is there."""

    @staticmethod
    def forward(
        context: Any, pairs: Pairs, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None, *weights: Tensor
    ) -> Tensor:
        ranks, wanted = world_size(), any(context.needs_input_grad)
        images = len(image) * ranks
        shared = [scale, *([] if bias is None else [bias])]
        to_image = torch.zeros_like(image)
        to_shared = [torch.zeros_like(part, dtype=torch.float64) for part in (*shared, *weights)]
        total = torch.zeros(1, dtype=torch.float64, device=image.device)
        block, to_block, arriving = text.detach().contiguous(), torch.zeros_like(text), None
        for step in range(ranks):
            following = _Passing(block, 0) if step < ranks - 1 else None
            value, found = _block(pairs, image, block, shared, list(weights), step == 0, wanted)
            total += value
            if wanted:
                to_image += found[0]
                if arriving is not None:
                    to_block = arriving.wait()
                to_block = to_block + found[1]
                for mine, more in zip(to_shared, found[2:], strict=True):
                    mine += more
                if ranks > 1:  # with the last step the gradient of this rank's own texts comes home
                    arriving = _Passing(to_block, 1)
            if following is not None:
                block = following.wait()
        if arriving is not None:
            to_block = arriving.wait()
        if ranks > 1:
            whole = torch.cat([total, *(part.flatten() for part in to_shared)])
            dist.all_reduce(whole)
            total, *parts = whole.split([1, *(part.numel() for part in to_shared)])
            to_shared = [part.reshape(like.shape) for part, like in zip(parts, to_shared, strict=True)]
        if wanted:
            # DDP divides by the number of ranks; scale, bias and weights are whole on each rank already.
            to_shared = [part.div_(images).to(like) for part, like in zip(to_shared, (*shared, *weights), strict=True)]
            context.save_for_backward(to_image / len(image), to_block / len(image), *to_shared)
            context.without_bias = bias is None
        return (total / images).to(image.dtype).reshape(())

    @staticmethod
    @once_differentiable
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        to_image, to_text, to_scale, *others = (part * upstream for part in context.saved_tensors)
        bias: list[Tensor | None] = [None] if context.without_bias else [others.pop(0)]
        return None, to_image, to_text, to_scale, *bias, *others


def _block(
    pairs: Pairs, image: Tensor, text: Tensor, shared: list[Tensor], weights: list[Tensor], matching: bool, wanted: bool
) -> tuple[Tensor, list[Tensor]]:
    """Value of one block and its gradients of image, text, scale, bias and weights."""
    leaves = [part.detach().requires_grad_(wanted) for part in (image, text, *shared)]
    with torch.set_grad_enabled(wanted):
        value = pairs(leaves[0], leaves[1], leaves[2], leaves[3] if len(shared) > 1 else None, matching)
    if not wanted:
        return value.detach(), []
    asked = [*leaves, *weights]
    found = torch.autograd.grad(value, asked, allow_unused=True)
    return value.detach(), [torch.zeros_like(a) if f is None else f for a, f in zip(asked, found, strict=True)]


class _Passing:
    """Send a tensor to the next rank and receive one of the same size from the rank before; wait() gives it."""

    def __init__(self, tensor: Tensor, tag: int) -> None:
        rank, ranks = dist.get_rank(), dist.get_world_size()
        self.sent, self.received = tensor.contiguous(), torch.empty_like(tensor.contiguous())
        operations = [
            dist.P2POp(dist.isend, self.sent, (rank + 1) % ranks, tag=tag),
            dist.P2POp(dist.irecv, self.received, (rank - 1) % ranks, tag=tag),
        ]
        self.requests = dist.batch_isend_irecv(operations)

    def wait(self) -> Tensor:
        for request in self.requests:
            request.wait()
        return self.received


def any_rank(flag: bool, device: torch.device) -> bool:
    """True on all ranks when it is true on one."""
    if world_size() == 1:
        return flag
    vote = torch.tensor(float(flag), device=device)
    dist.all_reduce(vote, op=dist.ReduceOp.MAX)
    return bool(vote.item())
