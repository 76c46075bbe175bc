"""Sequence packing: the captions of a batch form one sequence without padding, and each attends only to itself.

Linear layers, norms and MLPs compute no padding. Attention uses xformers' block-diagonal kernel if a probe on the
device succeeds. Otherwise captions are sorted by length and split into groups of similar length. Each group is a view
of the sequence and a batch for torch's attention. It is padded at the end to its longest caption, which causal
attention never reads. Both run inside open_clip's own blocks, so weights, variants (LayerScale, QuickGELU),
checkpointing, compilation and sharding work unchanged.
"""

import logging
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leam_mm.encoders.token_layout import TokenLayout

logger = logging.getLogger(__name__)

FILLING = 32  # padding tokens that cost about as much as one more attention call (measured on a CPU)
Group = tuple[int, int]
"""Number of captions, and tokens of each."""


class Packing(TokenLayout):
    """Layout of the captions of a batch in one sequence (1, T, E); the last token of each caption is pooled.

    Args:
        length: (B,) int64 on the CPU, tokens of each caption. No GPU synchronisation is needed.
        columns: L, columns of the padded text.
        device: Device of the text.
        blocks: Keep the order of the captions and build xformers' mask; otherwise sort them into groups.
    """

    def __init__(self, length: Tensor, columns: int, device: torch.device, blocks: bool = False) -> None:
        """See the class for the arguments."""
        order = torch.arange(len(length)) if blocks else length.argsort(stable=True)
        lengths = length[order]
        if not 1 <= int(length.min()) <= int(length.max()) <= columns:
            raise ValueError(f"captions of {length.min()} to {length.max()} tokens do not fit in {columns} columns")
        self.groups = [] if blocks else group_lengths(lengths.tolist())
        counts, tokens = zip(*self.groups, strict=True) if self.groups else ((), ())
        width = lengths if blocks else torch.tensor(tokens).repeat_interleave(torch.tensor(counts))
        start = width.cumsum(0) - width
        position = torch.arange(int(width.sum())) - start.repeat_interleave(width)
        token = (order * columns).repeat_interleave(width) + position
        last = torch.empty_like(order).scatter_(0, order, start + lengths - 1)
        index = torch.cat([token, position, last])
        index = (index.pin_memory() if device.type == "cuda" else index).to(device, non_blocking=True)
        self.token, self.place, self.last = index.split([len(token), len(position), len(last)])
        self.bias: Any = None
        if blocks:
            from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask

            self.bias = BlockDiagonalCausalMask.from_seqlens(lengths.tolist(), device=device)

    def attend(self, mixed: Tensor, heads: int) -> Tensor:
        """See TokenLayout."""
        return attend(mixed, self, heads)


def group_lengths(lengths: Sequence[int], filling: int = FILLING) -> list[Group]:
    """Split sorted lengths into groups with the lowest cost of padding and of attention calls.

    Args:
        lengths: Lengths in tokens, ascending.
        filling: Padding tokens that cost as much as one more group.

    Returns:
        Number of captions and longest length of each group, in the same order.
    """
    runs = [(len(list(run)), length) for length, run in groupby(lengths)]
    # Lowest cost of splitting the first n runs: (cost, index of the last split).
    best: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, len(runs) + 1):
        cost, cheapest, first = 0, None, end
        while first > 0:
            first -= 1
            count, length = runs[first]
            cost += count * (runs[end - 1][1] - length)
            total = best[first][0] + cost + filling
            if cheapest is None or total < cheapest[0]:
                cheapest = (total, first)
            if cheapest[0] < cost:
                break  # longer groups cost more
        assert cheapest is not None
        best.append(cheapest)
    groups: list[Group] = []
    end = len(runs)
    while end:
        first = best[end][1]
        groups.append((sum(count for count, _ in runs[first:end]), runs[end - 1][1]))
        end = first
    return groups[::-1]


@torch.compiler.disable
def attend(mixed: Tensor, packing: Packing, heads: int) -> Tensor:
    """Compute causal attention within each caption: (1, T, 3 E) queries, keys and values -> (1, T, E)."""
    if packing.bias is not None:
        from xformers.ops import memory_efficient_attention

        query, key, value = mixed.view(1, mixed.shape[1], 3, heads, -1).unbind(2)
        return memory_efficient_attention(query, key, value, attn_bias=packing.bias).flatten(2)
    parts = []
    for (count, length), part in zip(
        packing.groups, mixed[0].split([count * length for count, length in packing.groups]), strict=True
    ):
        query, key, value = part.view(count, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True)  # (count, K, length, E / K)
        parts.append(out.transpose(1, 2).reshape(count * length, -1))
    return torch.cat(parts)[None]


def packed_states(tower: Any, text: Tensor, text_length: Tensor) -> tuple[Tensor, Packing]:
    """Return the hidden states (T, E) of all tokens after the final layer norm, and their Packing.

    Args:
        tower: A CLIP or TextTransformer of open_clip with causal attention.
        text: (B, L) int64.
        text_length: (B,) int64 on the CPU.
    """
    attention = tower.transformer.resblocks[0].attn
    device_type, weight = text.device.type, tower.positional_embedding
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else weight.dtype
    packing = Packing(text_length, text.shape[1], text.device, _blocks(text.device, dtype, attention.head_dim))
    states = F.embedding(text.flatten()[packing.token], tower.token_embedding.weight)
    states = states + F.embedding(packing.place, weight)
    return tower.ln_final(tower.transformer(states[None], attn_mask=packing))[0], packing


@lru_cache
def _blocks(device: torch.device, dtype: torch.dtype, size: int) -> bool:
    """Return whether xformers is used; probe and log once per device, dtype and head size."""
    reason = probe_block_diagonal(device, dtype, size)
    kernel, why = ("groups of similar length", f"xformers not used: {reason}") if reason else ("xformers", "it works")
    logger.info("attention of packed captions on %s in %s: %s (%s)", device, dtype, kernel, why)
    return not reason


def probe_block_diagonal(device: torch.device, dtype: torch.dtype, size: int) -> str:
    """Compare xformers' block-diagonal causal attention to torch's on three short captions, forward and backward.

    Args:
        device: Device of the text tower.
        dtype: Data type of the attention.
        size: Channels per head.

    Returns:
        "" if both agree, otherwise the reason.
    """
    if device.type != "cuda":  # ROCm devices are called cuda too
        return f"it has no kernels for {device.type} devices"
    try:
        worst = _deviation(device, dtype, size)
    except (ImportError, OSError, NotImplementedError, ValueError, RuntimeError) as error:
        lines = str(error).strip().splitlines()
        return f"the probe with heads of {size} channels failed ({lines[0] if lines else type(error).__name__})"
    if not worst < 0.05:  # a wrong mask is off by about 1, half precision by 0.01
        return f"the probe with heads of {size} channels deviates from torch by {worst:.2g}"
    return ""


def _deviation(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Return the largest relative difference of xformers and groups, for captions of 5, 1 and 9 tokens."""
    lengths = torch.tensor([5, 1, 9])
    mixed = torch.randn(1, 15, 6 * size, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    answers = []
    for blocks in (True, False):
        packing, leaf = Packing(lengths, 9, device, blocks), mixed.clone().requires_grad_()
        # The same tokens in the layout of this packing; padding repeats the last token of its caption.
        caption = packing.token // 9
        start, room = (torch.tensor(values, device=device)[caption] for values in ([0, 5, 6], [4, 0, 8]))
        out = attend(leaf[:, start + packing.place.minimum(room)], packing, 2)[:, packing.last]
        answers.append((out.detach(), torch.autograd.grad(out.float().square().sum(), leaf)[0]))
    return max(float((mine - other).abs().max() / other.abs().max()) for mine, other in zip(*answers, strict=True))
