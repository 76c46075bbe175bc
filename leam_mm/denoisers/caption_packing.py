"""Captions without padding: trimmed to the longest of a batch, and packed for attention kernels without masks.

Flash attention takes no mask of keys. Trimmed captions of equal length need none. Others can be packed: the real keys
of all samples are concatenated, and the kernel gets the start of each sample.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class PackedKeys(NamedTuple):
    """Indices of the real keys of a batch, for attention from N image tokens to L caption tokens and N image tokens.

    Args:
        mask: (B, L) bool, True at real caption tokens, for kernels with masks.
        real: (S,) int64, indices of the real keys among all B (L + N), row by row.
        query_starts: (B + 1,) int32, start of each sample's queries among all B N, and the end.
        key_starts: (B + 1,) int32, start of each sample's keys in `real`, and the end.
        longest_query: N.
        longest_key: Largest number of keys of a sample.
    """

    mask: Tensor
    real: Tensor
    query_starts: Tensor
    key_starts: Tensor
    longest_query: int
    longest_key: int


class TrimmedCaptions:
    """Captions trimmed to the longest one; only the constructor reads the mask on the host.

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
        """Return the indices for a kernel without masks and N image tokens; None if no key is masked."""
        if self.mask is not None and tokens not in self._packed:
            self._packed[tokens] = pack_keys(self.mask, self._lengths, tokens)
        return None if self.mask is None else self._packed[tokens]


def pack_keys(mask: Tensor, lengths: Tensor, tokens: int) -> PackedKeys:
    """Find the real keys without a GPU synchronisation.

    Args:
        mask: (B, L) bool, True at real caption tokens.
        lengths: (B,) int64 on the CPU, number of real caption tokens of each sample.
        tokens: N, number of image tokens, which follow the caption.
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
