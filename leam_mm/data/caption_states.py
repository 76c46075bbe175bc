"""A caption's states from several text encoders as one sequence: real tokens first, padding at the end.

Each encoder's tokens use channels of their own, with zeros in all others. So the one linear layer through which a
denoiser reads caption states acts as one layer per encoder, whatever their widths, and the mask remains a length.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor


def pack_states(states: Sequence[Tensor]) -> Tensor:
    """Concatenate the states of one caption: each (L_e, D_e), real tokens only -> (sum of L_e, sum of D_e)."""
    if len(states) == 1:
        return states[0]
    packed = states[0].new_zeros(sum(len(state) for state in states), sum(state.shape[1] for state in states))
    row = column = 0
    for state in states:
        packed[row : row + len(state), column : column + state.shape[1]] = state
        row, column = row + len(state), column + state.shape[1]
    return packed


def pack_batch(states: Sequence[Tensor], masks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Concatenate the states of a batch as `pack_states` does.

    Args:
        states: One (B, L_e, D_e) per encoder.
        masks: One (B, L_e) bool per encoder, True for real tokens.

    Returns:
        state (B, L, D) with D the sum of all D_e, zero beyond each caption's end, and mask (B, L); L is the longest.
    """
    width = sum(state.shape[2] for state in states)
    starts = accumulate((state.shape[2] for state in states), initial=0)
    spread = [state.new_zeros(*state.shape[:2], width) for state in states]
    for target, state, start in zip(spread, states, starts, strict=False):
        target[..., start : start + state.shape[2]] = state
    mask, state = torch.cat(list(masks), dim=1), torch.cat(spread, dim=1)
    order = (~mask).long().argsort(dim=1, stable=True)[:, : max(1, int(mask.sum(1).max()))]
    mask = mask.gather(1, order)
    return state.gather(1, order[..., None].expand(-1, -1, width)) * mask[..., None], mask


def pad_states(states: Sequence[Tensor]) -> Tensor:
    """Pad captions of different lengths to a batch: each (L_b, D) -> (B, longest, D), zero beyond each end."""
    batch = states[0].new_zeros(len(states), max(1, *(len(state) for state in states)), states[0].shape[1])
    for row, state in zip(batch, states, strict=True):
        row[: len(state)] = state
    return batch


def trim(*captions: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Bring captions to the length of the longest: cut padding that no caption needs, and pad shorter tensors."""
    needed = max(int(mask.any(0).nonzero().max()) + 1 for _, mask in captions)
    return [tuple(fit_length(part[:, :needed], needed) for part in caption) for caption in captions]  # type: ignore[misc]


def fit_length(part: Tensor, length: int) -> Tensor:
    """Cut or pad dimension 1 to ``length``; only padding may be cut."""
    if part.shape[1] == length:
        return part
    padded = part.new_zeros(part.shape[0], length, *part.shape[2:])
    kept = min(length, part.shape[1])
    padded[:, :kept] = part[:, :kept]
    return padded
