"""Communication of tensors between ranks inside a training step.

With `gather` and with the ring functions, every rank returns the loss of the global batch. The average of the parameter
gradients over the ranks, which DDP computes, is the gradient of that loss for any world size.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from leam_mm.losses.logit_tiles import own_logits, softmax_gradients, softmax_sums

Pairs = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], Tensor]


def world_size() -> int:
    """Return the number of ranks; 1 without a process group."""
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
        # Autograd may pass the same tensor to several functions, so it must not be changed in place.
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        first = dist.get_rank() * context.rows
        return total[first : first + context.rows]


def gather(features: Tensor) -> Tensor:
    """Concatenate the rows of all ranks in rank order; gradients flow back to the rank of each row.

    Every rank computes the same loss of the gathered rows. The sum over ranks in backward cancels DDP's average.

    Args:
        features: (B, D), the same B on each rank.

    Returns:
        (W B, D), where W is the number of ranks.
    """
    return _Gather.apply(features) if world_size() > 1 else features


def ring(
    pairs: Pairs, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None, weights: Sequence[Tensor] = ()
) -> Tensor:
    """Compute a pairwise loss of the global batch, divided by its number of images, with ring communication of texts.

    Each rank keeps its images and processes the texts of one rank at a time. The gradients of the texts are sent along,
    accumulate on each rank, and return to their own rank in the last step. Transfers overlap with the computation of
    the next block. Memory is that of one block of one rank's images and one rank's texts.

    Args:
        pairs: Sum of the loss over the pairs of a block, such as `leam_mm.losses.contrastive.PairwiseLoss.pairs`.
        image: (B, D), images of this rank, the same B on each rank.
        text: (B, D), texts of this rank.
        scale: Scalar, the same on all ranks.
        bias: Scalar, the same on all ranks, or None.
        weights: Further tensors that ``pairs`` uses and that need gradients, the same on all ranks.

    Returns:
        Scalar, the same on all ranks. Gradients of scale, bias and weights are those of the global loss on each rank.
    """
    return _Ring.apply(pairs, image, text, scale, bias, *weights)


class _Ring(torch.autograd.Function):
    """Sum over blocks whose gradients are computed in the forward pass, one block at a time."""

    @staticmethod
    def forward(
        context: Any, pairs: Pairs, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None, *weights: Tensor
    ) -> Tensor:
        ranks, wanted = world_size(), any(context.needs_input_grad)
        shared = [scale, *([] if bias is None else [bias])]
        to_image = torch.zeros_like(image)
        whole = [torch.zeros((), dtype=torch.float64, device=image.device)]
        whole += [torch.zeros_like(part, dtype=torch.float64) for part in (*shared, *weights)]

        def visit(step: int, block: Tensor) -> Tensor | None:
            value, found = _block(pairs, image, block, shared, list(weights), step == 0, wanted)
            for mine, more in zip(whole, [value, *found[2:]], strict=False):
                mine += more
            if not wanted:
                return None
            to_image.add_(found[0])
            return found[1]

        to_text = _go_round(visit, [text.detach()], torch.add)
        total, *to_shared = _sum_over_ranks(whole)
        images = len(image) * ranks
        if wanted:
            # DDP divides by the number of ranks; gradients of scale, bias and weights are already global on each rank.
            to_shared = [part.div_(images).to(like) for part, like in zip(to_shared, (*shared, *weights), strict=True)]
            context.save_for_backward(to_image / len(image), to_text / len(image), *to_shared)
            context.without_bias = bias is None
        return (total / images).to(image.dtype)

    @staticmethod
    @once_differentiable
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        to_image, to_text, to_scale, *others = (part * upstream for part in context.saved_tensors)
        bias: list[Tensor | None] = [None] if context.without_bias else [others.pop(0)]
        return None, to_image, to_text, to_scale, *bias, *others


def ring_softmax(image: Tensor, text: Tensor, scale: Tensor, smoothing: float, tile: int) -> Tensor:
    """Compute `leam_mm.losses.contrastive.InfoNCE` of the global batch, with two rounds of ring communication of texts.

    The first round computes softmax sums: those of rows stay on the rank, those of columns are sent with the texts. The
    second round computes gradients likewise. Each logit of a round is computed on one rank only.

    Args:
        image: (B, D), images of this rank, the same B on each rank.
        text: (B, D), texts of this rank.
        scale: Scalar, the same on all ranks.
        smoothing: See InfoNCE.
        tile: See InfoNCE.

    Returns:
        Scalar, the same on all ranks. The gradient of scale is that of the global loss on each rank.
    """
    return _RingSoftmax.apply(image, text, scale, smoothing, tile)


class _RingSoftmax(torch.autograd.Function):
    """Formulas of SoftmaxTiles, applied block by block."""

    @staticmethod
    def forward(context: Any, image: Tensor, text: Tensor, scale: Tensor, smoothing: float, tile: int) -> Tensor:
        count = len(image) * world_size()
        with torch.autocast(image.device.type, enabled=False):
            own = own_logits(image, text, scale, tile)
            row = torch.full_like(own, -torch.inf)
            to_image = torch.zeros_like(image)

            def sums(step: int, block: Tensor, block_own: Tensor) -> Tensor:
                mine, theirs = softmax_sums(image, block, scale, own, block_own, tile)
                torch.logaddexp(row, mine, out=row)
                return theirs

            def gradients(step: int, block: Tensor, block_column: Tensor) -> Tensor:
                mine, theirs = softmax_gradients(image, block, scale, own + row, block_column, tile)
                to_image.add_(mine)
                return theirs

            column = _go_round(sums, [text, own], torch.logaddexp)
            parts = [row.sum() + column.sum(), own.sum(), image.sum(dim=0), text.sum(dim=0)]
            both, owns, images, texts = _sum_over_ranks([part.double() for part in parts])
            everywhere = scale * (images @ texts) / count**2
            loss = both / (2 * count) - smoothing * (everywhere - owns / count)
            if any(context.needs_input_grad):
                to_text = _go_round(gradients, [text, own + column], torch.add)
                to_image.sub_(2 * (1 - smoothing) * text).sub_((2 * smoothing / count * texts).to(image))
                to_text = to_text - 2 * (1 - smoothing) * image - (2 * smoothing / count * images).to(image)
                (to_scale,) = _sum_over_ranks([(to_image * image).sum().double() / (2 * count)])
                # DDP divides by the number of ranks; the gradient of scale is already global on each rank.
                factor = scale / (2 * len(image))
                context.save_for_backward(to_image * factor, to_text * factor, to_scale.to(scale).reshape(scale.shape))
        return loss.to(image.dtype).reshape(())

    @staticmethod
    @once_differentiable
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        to_image, to_text, to_scale = (part * upstream for part in context.saved_tensors)
        return to_image, to_text, to_scale, None, None


def _go_round(
    visit: Callable[..., Tensor | None], carried: list[Tensor], merge: Callable[[Tensor, Tensor], Tensor]
) -> Any:
    """Send tensors around the ring, call ``visit`` on each rank, and return the merged results for this rank's tensors.

    Transfers overlap with the computation of the next block.

    Args:
        visit: Called with the step (0 for the tensors of this rank) and the tensors now on this rank.
        carried: Tensors of this rank, of the same sizes on all ranks.
        merge: Combines the result of the earlier ranks with that of this rank.
    """
    ranks, here, arriving, found = world_size(), [part.contiguous() for part in carried], None, None
    for step in range(ranks):
        following = [_Passing(part, tag) for tag, part in enumerate(here)] if step < ranks - 1 else []
        found = visit(step, *here)
        if arriving is not None and found is not None:
            found = merge(arriving.wait(), found)
        if found is not None and ranks > 1:  # after the last step the result returns to its own rank
            arriving = _Passing(found, len(here))
        if following:
            here = [part.wait() for part in following]
    return found if arriving is None else arriving.wait()


def _sum_over_ranks(parts: list[Tensor]) -> list[Tensor]:
    """Return the sums over ranks of small float64 tensors, with one all-reduce."""
    if world_size() == 1:
        return parts
    together = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(together)
    sizes = [part.numel() for part in parts]
    return [part.reshape(like.shape) for part, like in zip(together.split(sizes), parts, strict=True)]


def _block(
    pairs: Pairs, image: Tensor, text: Tensor, shared: list[Tensor], weights: list[Tensor], matching: bool, wanted: bool
) -> tuple[Tensor, list[Tensor]]:
    """Return the loss of one block and its gradients with respect to image, text, scale, bias and weights."""
    leaves = [part.detach().requires_grad_(wanted) for part in (image, text, *shared)]
    with torch.set_grad_enabled(wanted):
        value = pairs(leaves[0], leaves[1], leaves[2], leaves[3] if len(shared) > 1 else None, matching)
    if not wanted:
        return value.detach(), []
    asked = [*leaves, *weights]
    found = torch.autograd.grad(value, asked, allow_unused=True)
    return value.detach(), [torch.zeros_like(a) if f is None else f for a, f in zip(asked, found, strict=True)]


class _Passing:
    """Send a tensor to the next rank and receive one of the same size from the previous rank; wait() returns it."""

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
    """Return True on all ranks if ``flag`` is true on at least one."""
    if world_size() == 1:
        return flag
    vote = torch.tensor(float(flag), device=device)
    dist.all_reduce(vote, op=dist.ReduceOp.MAX)
    return bool(vote.item())
