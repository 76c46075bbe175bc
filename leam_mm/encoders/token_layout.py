"""Layouts of tokens, which the blocks of open_clip's transformers take in place of an attention mask.

A tower that pools one token of each sample reads no other output of its last block. With a layout, that block computes
the output of the attention, the second norm and the MLP for the pooled tokens only. Values and gradients equal those of
the whole block to rounding. Everything runs inside open_clip's own blocks, so weights, names, variants (LayerScale,
QuickGELU), checkpointing, compilation and sharding work unchanged.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn


class TokenLayout(ABC):
    """Base class: which tokens of the states (B, N, E) attend to each other."""

    def to(self, dtype: torch.dtype) -> "TokenLayout":
        """Return self; open_clip casts masks to ``dtype``, but a layout holds no floating-point numbers."""
        return self

    @abstractmethod
    def attend(self, mixed: Tensor, heads: int) -> Tensor:
        """Return the attention's output for all tokens: queries, keys and values (B, N, 3 E) -> (B, N, E)."""


class ImageTokens(TokenLayout):
    """Tokens of images: each attends to all tokens of its image, and the first one, the class token, is pooled."""

    def attend(self, mixed: Tensor, heads: int) -> Tensor:
        """See TokenLayout."""
        return self._attend(mixed, heads, mixed.shape[1])

    def attend_pooled(self, mixed: Tensor, heads: int) -> Tensor:
        """Return the attention's output for the class token, which alone has a query: (B, N, 3 E) -> (B, 1, E)."""
        return self._attend(mixed, heads, 1)

    def pool(self, states: Tensor) -> Tensor:
        """Return the class token: (B, N, E) -> (B, 1, E)."""
        return states[:, :1]

    @staticmethod
    def _attend(mixed: Tensor, heads: int, queries: int) -> Tensor:
        query, key, value = mixed.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # (B, K, N, E / K) each
        out = F.scaled_dot_product_attention(query[:, :, :queries], key, value)
        return out.transpose(1, 2).flatten(2)


class LayoutAttention(nn.MultiheadAttention):
    """Self-attention of torch that also accepts a TokenLayout as ``attn_mask``."""

    def project(self, tokens: Tensor) -> Tensor:
        """Return concatenated queries, keys and values: (..., E) -> (..., 3 E)."""
        return F.linear(tokens, self.in_proj_weight, self.in_proj_bias)

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | TokenLayout | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as the layout says; with any other mask, call torch's forward."""
        if not isinstance(attn_mask, TokenLayout):
            return super().forward(query, key, value, need_weights=need_weights, attn_mask=attn_mask)
        return self.out_proj(attn_mask.attend(self.project(query), self.num_heads)), None


class PooledBlock(ResidualAttentionBlock):
    """Last block of an image tower: with ImageTokens as ``attn_mask`` it returns the class token only, (B, 1, E)."""

    def forward(
        self, q_x: Tensor, k_x: Tensor | None = None, v_x: Tensor | None = None, attn_mask: Any = None
    ) -> Tensor:
        """See the class; with any other mask, call open_clip's forward."""
        if not isinstance(attn_mask, ImageTokens):
            return super().forward(q_x, k_x, v_x, attn_mask)
        attention: Any = self.attn
        attended = attn_mask.attend_pooled(attention.project(self.ln_1(q_x)), attention.num_heads)
        x = attn_mask.pool(q_x) + self.ls_1(attention.out_proj(attended))
        return x + self.ls_2(self.mlp(self.ln_2(x)))


def enable_layouts(transformer: Any, pooled: bool) -> str:
    """Make the blocks of an open_clip transformer accept a TokenLayout; weights and names do not change.

    Args:
        transformer: The transformer of a tower.
        pooled: With ImageTokens, the last block returns the class token only.

    Returns:
        "" on success, otherwise the types of the block and attention that are not supported.
    """
    blocks = list(transformer.resblocks)
    for block in blocks:
        if type(block) is not ResidualAttentionBlock or type(block.attn) is not nn.MultiheadAttention:
            return f"{type(block).__name__} with {type(block.attn).__name__}"
    for block in blocks:
        block.attn.__class__ = LayoutAttention  # the objects stay the same
    if pooled and blocks:
        blocks[-1].__class__ = PooledBlock
    return ""
