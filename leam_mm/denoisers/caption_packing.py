"""Captions without their padding: cut to the longest of a batch, and packed for attention kernels that know no masks.

Flash attention takes no mask of keys. Captions of one length need none once they are cut; others can be packed: the
real keys of all samples stand one after another, and the kernel is told where each sample's begin.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class PackedKeys(NamedTuple):
    """Where the real keys of a batch stand, for attention from N image tokens to L caption tokens and N image tokens.

    Args:
        mask: (B, L) bool, True at real caption tokens, for those who do not pack.
        real: (S,) int64, the real ones among the B (L + N) keys, row by row.
        query_starts: (B + 1,) int32, where each sample's queries begin among all B N, and the end.
        key_starts: (B + 1,) int32, where each sample's keys begin in `real`, and the end.
        longest_query: N.
        longest_key: The most keys of a sample.
    """

    mask: Tensor
    real: Tensor
    query_starts: Tensor
    key_starts: Tensor
    longest_query: int
    longest_key: int


class TrimmedCaptions:
    """Captions cut after the last real token of the longest one.

    The mask is looked at from the host once, here.

    Args:
        state: (B, L, D).
        mask: (B, L) bool, True at real tokens.
    """

    def __init__(self, state: Tensor, mask: Tensor) -> None:
        """See the class for the arguments."""
        rows = mask.cpu()
        columns = rows.any(0).nonzero()
        length = int(columns.max()) + 1 if len(columns) else 1
        self.state = state[:, :length]
        self.mask: Tensor | None = None if bool(rows[:, :length].all()) else mask[:, :length]
        self._lengths = rows.sum(1)
        self._packed: dict[int, PackedKeys] = {}

    def packed(self, tokens: int) -> PackedKeys | None:
        """What a kernel without masks needs to know with so many image tokens; None where nothing is to be masked."""
        if self.mask is not None and tokens not in self._packed:
            self._packed[tokens] = pack_keys(self.mask, self._lengths, tokens)
        return None if self.mask is None else self._packed[tokens]


def pack_keys(mask: Tensor, lengths: Tensor, tokens: int) -> PackedKeys:
    """Find the real keys without asking a GPU for their number.

    Args:
        mask: (B, L) bool, True at real caption tokens.
        lengths: (B,) int64 on the CPU, how many of them each sample has.
        tokens: N, image tokens of each sample, which follow its caption.
    """
    batch, device = len(lengths), mask.device
    rows = torch.cat([mask, mask.new_ones(batch, tokens)], dim=1)
    keys = lengths + tokens
    ends = torch.cat([keys.new_zeros(1), keys.cumsum(0)])
    return PackedKeys(
        mask,
        torch.nonzero_static(rows.flatten(), size=int(ends[-1]))[:, 0],
        torch.arange(0, (batch + 1) * tokens, tokens, dtype=torch.int32, device=device)[: batch + 1],
        ends.to(device, torch.int32),
        tokens,
        int(keys.max()),
    )
