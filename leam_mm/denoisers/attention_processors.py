"""Processors of diffusers' attention layers, for kernels and masks that its own do not support."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_prx import apply_rope
from einops import rearrange
from torch import Tensor

from leam_mm.denoisers.caption_cache import CaptionKeysValues, caption_key_value
from leam_mm.denoisers.caption_packing import PackedKeys

Kernel = Callable[..., Tensor]
"""xformers' memory_efficient_attention: query (B, N, K, d), key and value (B, M, K, d), attn_bias -> (B, N, K, d)."""
PackedKernel = Callable[..., Any]
"""torch's varlen_attn: query (T, K, d), key and value (S, K, d), their starts (B + 1,), the longest -> (T, K, d)."""
ALIGNMENT = 8  # rows of a bias must start at a multiple of this


class MemoryEfficientProcessor:
    """Attention of PRX through a memory-efficient kernel, the caption mask as an additive bias.

    Args:
        kernel: Called as kernel(query, key, value, attn_bias=...).
    """

    def __init__(self, kernel: Kernel) -> None:
        """See the class for the arguments."""
        self.kernel = kernel

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | CaptionKeysValues,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor:
        """Attend from image tokens (B, N, E) to caption tokens (B, L, E) and image tokens; the names are diffusers'."""
        heads = _prx_heads(attn, hidden_states, encoder_hidden_states, image_rotary_emb)
        query, key, value = (rearrange(part, "b k n d -> b n k d") for part in heads)
        bias = None if attention_mask is None else mask_to_bias(attention_mask, query, key.shape[1])
        return _output(attn, rearrange(self.kernel(query, key, value, attn_bias=bias), "b n k d -> b n (k d)"))


class MaskedProcessor:
    """Attention of PRX through torch's kernel with a mask, as in diffusers; it takes CaptionKeysValues, too."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | CaptionKeysValues,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor:
        """Attend from image tokens (B, N, E) to caption tokens (B, L, E) and image tokens; the names are diffusers'."""
        return _prx_masked(
            attn, _prx_heads(attn, hidden_states, encoder_hidden_states, image_rotary_emb), attention_mask
        )


class PackedProcessor:
    """Attention of PRX through a kernel without masks on the concatenated real keys of all samples.

    If nothing is masked, or in full precision, which such kernels do not support, torch's attention runs.

    Args:
        kernel: Kernel for packed rows.
        dtypes: Types that the kernel supports.
    """

    def __init__(self, kernel: PackedKernel, dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16)) -> None:
        """See the class for the arguments."""
        self.kernel, self.dtypes = kernel, dtypes

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | CaptionKeysValues,
        attention_mask: Tensor | PackedKeys | None = None,
        image_rotary_emb: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor:
        """Attend from image tokens (B, N, E) to caption tokens (B, L, E) and image tokens; the names are diffusers'."""
        query, key, value = _prx_heads(attn, hidden_states, encoder_hidden_states, image_rotary_emb)
        if isinstance(attention_mask, PackedKeys) and value.dtype in self.dtypes:
            keys = attention_mask
            rows, key, value = (rearrange(part, "b k m d -> (b m) k d") for part in (query, key, value))
            out = self.kernel(rows, key[keys.real], value[keys.real], *keys[2:])
            return _output(attn, rearrange(out, "(b n) k d -> b n (k d)", b=len(query)))
        mask = attention_mask.mask if isinstance(attention_mask, PackedKeys) else attention_mask
        return _prx_masked(attn, [query, key, value], mask)


class JointProcessor:
    """Attention of SD3's blocks over image and caption tokens with masked padding, which diffusers lacks.

    Args:
        kernel: Called as kernel(query, key, value, attn_bias=...); None takes torch's attention.
    """

    def __init__(self, kernel: Kernel | None = None) -> None:
        """See the class for the arguments."""
        self.kernel = kernel

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor]:
        """Attend from all N image tokens (B, N, E) and L caption tokens (B, L, E) to all real ones.

        Args:
            attn: diffusers' attention layer; the argument names are diffusers'.
            hidden_states: The image tokens.
            encoder_hidden_states: The caption tokens.
            attention_mask: (B, L) bool, True at real caption tokens; None masks nothing.
            kwargs: Ignored.
        """
        count = hidden_states.shape[1]
        image = [layer(hidden_states) for layer in (attn.to_q, attn.to_k, attn.to_v)]
        text = [layer(encoder_hidden_states) for layer in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)]
        norms = [(attn.norm_q, attn.norm_added_q), (attn.norm_k, attn.norm_added_k), (None, None)]
        parts = []
        for own, added, pair in zip(image, text, norms, strict=True):
            split = [rearrange(part, "b n (k d) -> b n k d", k=attn.heads) for part in (own, added)]
            parts.append(
                torch.cat([part if norm is None else norm(part) for part, norm in zip(split, pair, strict=True)], dim=1)
            )
        query, key, value = (part.to(parts[2].dtype) for part in parts)
        out = rearrange(self._attend(query, key, value, attention_mask), "b n k d -> b n (k d)")
        text_out = out[:, count:]
        if not attn.context_pre_only:
            text_out = attn.to_add_out(text_out)
        return _output(attn, out[:, :count]), text_out

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        keys = key.shape[1]
        if self.kernel is not None:
            bias = None if mask is None else mask_to_bias(mask, query, keys, first=keys - mask.shape[1])
            return self.kernel(query, key, value, attn_bias=bias)
        if mask is not None:
            mask = F.pad(mask, (keys - mask.shape[1], 0), value=True)[:, None, None]
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def mask_to_bias(mask: Tensor, query: Tensor, keys: int, first: int = 0) -> Tensor:
    """Turn a caption mask (B, L) into a bias (B, K, N, M) of 0 and -inf with aligned rows.

    Heads and queries share one row of memory per sample.

    Args:
        mask: True at real caption tokens.
        query: (B, N, K, d), which gives sizes, type and device.
        keys: M, number of keys.
        first: Index of the first caption key.
    """
    batch, queries, heads, _ = query.shape
    row = query.new_zeros(batch, 1, 1, keys + -keys % ALIGNMENT)
    row[..., first : first + mask.shape[1]].masked_fill_(~mask.bool()[:, None, None], float("-inf"))
    return row[..., :keys].expand(batch, heads, queries, keys)


def _prx_heads(
    attn: Any, image_states: Tensor, text_states: Tensor | CaptionKeysValues, rotary: Tensor | None
) -> list[Tensor]:
    """Return queries (B, K, N, d) of the image, and keys and values (B, K, L + N, d) of caption and image."""
    image = rearrange(attn.img_qkv_proj(image_states), "b n (part k d) -> part b k n d", part=3, k=attn.heads)
    text = text_states.of(attn) if isinstance(text_states, CaptionKeysValues) else caption_key_value(attn, text_states)
    query, image_key = attn.norm_q(image[0]), attn.norm_k(image[1])
    if rotary is not None:
        query, image_key = apply_rope(torch.stack([query, image_key]), rotary)
    value = torch.cat([text[1], image[2]], dim=2)
    key = torch.cat([text[0], image_key], dim=2)
    # Under autocast the norms return float32 beside half precision values; kernels need one type.
    return [part.to(value.dtype) for part in (query, key, value)]


def _prx_masked(attn: Any, heads: list[Tensor], mask: Tensor | None) -> Tensor:
    """Return torch's attention with a mask (B, L) of the caption tokens, after the output layers."""
    query, key, value = heads
    if mask is not None:
        mask = F.pad(mask.bool(), (0, key.shape[2] - mask.shape[1]), value=True)[:, None, None]
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return _output(attn, rearrange(out, "b k n d -> b n (k d)"))


def _output(attn: Any, out: Tensor) -> Tensor:
    for layer in attn.to_out:
        out = layer(out)
    return out
