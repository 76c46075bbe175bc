"""Which attention kernel a denoiser runs on: xformers where a probe on the real device succeeds, else torch's own SDPA.

diffusers' switches fail silently in two ways that are avoided here: `set_attention_backend("xformers")` does nothing to
a U-Net, and on PRX it adds the boolean caption mask to the scores as 0 and 1, so that padding is attended to. It also
changes the default of the whole process; nothing here does.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import PRXTransformer2DModel
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.transformers.transformer_prx import PRXAttnProcessor2_0, apply_rope
from einops import rearrange
from torch import Tensor, nn

from leam_mm.errors import UserError

logger = logging.getLogger(__name__)

Kernel = Callable[..., Tensor]
"""xformers' memory_efficient_attention: query (B, N, K, d), key and value (B, M, K, d), attn_bias -> (B, N, K, d)."""
Wanted = Literal["auto", "xformers", "sdpa"]
ALIGNMENT = 8  # rows of a bias must start at a multiple of this


def choose_attention(
    model: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    wanted: Wanted = "auto",
    copies: Sequence[nn.Module] = (),
) -> str:
    """Set the attention of one of diffusers' denoisers, say in one log line what runs and why, and return its name.

    Args:
        model: PRXTransformer2DModel, or a model of diffusers' older attention such as UNet2DConditionModel.
        device: On which it will run.
        dtype: In which its attention will run: bfloat16 under bf16-mixed.
        wanted: `auto` takes xformers where the probe succeeds.
        copies: Of the model, such as its average; they get the same.

    Returns:
        `xformers` or `sdpa`.

    Raises:
        UserError: xformers is wanted but does not work here.
    """
    reason = "the recipe wants it" if wanted == "sdpa" else probe_xformers(device, dtype, head_sizes(model))
    if reason and wanted == "xformers":
        raise UserError(
            f"attention: xformers does not work on {device} in {dtype}: {reason}; "
            "set model.init_args.attention to auto or sdpa, or install the xformers build of your torch"
        )
    chosen = "sdpa" if reason else "xformers"
    for one in (model, *copies):
        _use_sdpa(one) if reason else _use_xformers(one)
    logger.info(attention_report(model, device, dtype, chosen, reason))
    return chosen


def attention_report(model: nn.Module, device: torch.device, dtype: torch.dtype, chosen: str, reason: str) -> str:
    """One line for people: which kernel runs where, and why not the other."""
    why = f"xformers not used: {reason}" if reason else "its probe agrees with torch"
    return f"attention of {type(model).__name__} on {device} in {dtype}: {chosen} ({why})"


def head_sizes(model: nn.Module) -> set[int]:
    """The channels per head of all attention layers of a diffusers model."""
    layers: list[Any] = [layer for layer in model.modules() if hasattr(layer, "inner_dim") and hasattr(layer, "heads")]
    return {layer.inner_dim // layer.heads for layer in layers}


def probe_xformers(device: torch.device, dtype: torch.dtype, sizes: set[int]) -> str:
    """Run xformers forward and backward on a small masked problem for each head size, beside torch's attention.

    Returns:
        "" if it works and agrees, else the reason why not.
    """
    if device.type != "cuda":  # ROCm devices are called cuda too
        return f"it has no kernels for a {device.type}"
    try:
        from xformers.ops import memory_efficient_attention
    except (ImportError, OSError, RuntimeError) as error:
        return f"it cannot be imported ({_first_line(error)})"
    for size in sorted(sizes):
        try:
            deviation = _deviation(memory_efficient_attention, device, dtype, size)
        except (NotImplementedError, ValueError, RuntimeError) as error:
            return f"its probe with heads of {size} channels failed ({_first_line(error)})"
        if not deviation < 0.05:  # a wrong mask is off by about 1, half precision by 0.01
            return f"its probe with heads of {size} channels deviates from torch by {deviation:.2g}"
    return ""


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
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor:
        """Attend from image tokens (B, N, E) to caption tokens (B, L, E) and image tokens; the names are diffusers'."""
        image = rearrange(attn.img_qkv_proj(hidden_states), "b n (part k d) -> part b k n d", part=3, k=attn.heads)
        text = rearrange(
            attn.txt_kv_proj(encoder_hidden_states), "b l (part k d) -> part b k l d", part=2, k=attn.heads
        )
        query, image_key = attn.norm_q(image[0]), attn.norm_k(image[1])
        if image_rotary_emb is not None:
            query, image_key = apply_rope(query, image_rotary_emb), apply_rope(image_key, image_rotary_emb)
        value = torch.cat([text[1], image[2]], dim=2)
        key = torch.cat([attn.norm_added_k(text[0]), image_key], dim=2)
        # Under autocast the norms answer in float32 beside half precision values; kernels want one type.
        query, key, value = (rearrange(part.to(value.dtype), "b k n d -> b n k d") for part in (query, key, value))
        bias = None if attention_mask is None else mask_to_bias(attention_mask, query, key.shape[1])
        out = rearrange(self.kernel(query, key, value, attn_bias=bias), "b n k d -> b n (k d)")
        for layer in attn.to_out:
            out = layer(out)
        return out


def mask_to_bias(mask: Tensor, query: Tensor, keys: int) -> Tensor:
    """Turn a caption mask (B, L) into a bias (B, K, N, M) of 0 and -inf over `keys` = M = L + N keys, rows aligned.

    Heads and queries share one row of memory per sample.
    """
    batch, queries, heads, _ = query.shape
    row = query.new_zeros(batch, 1, 1, keys + -keys % ALIGNMENT)
    row[..., : mask.shape[1]].masked_fill_(~mask.bool()[:, None, None], float("-inf"))
    return row[..., :keys].expand(batch, heads, queries, keys)


def _deviation(kernel: Kernel, device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Largest difference to torch over output and gradients, 13 queries on 13 + 8 keys of which some are masked."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(2, length, 2, size, generator=generator) for length in (13, 21, 21)]
    parts = [part.to(device, dtype).requires_grad_() for part in drawn]
    mask = torch.arange(8, device=device) < torch.tensor([[3], [8]], device=device)
    bias = mask_to_bias(mask, parts[0].detach(), 21)
    ours = kernel(*parts, attn_bias=bias)
    query, key, value = (part.transpose(1, 2) for part in parts)
    theirs = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2)
    slopes = [torch.autograd.grad(out.float().square().sum(), parts) for out in (ours, theirs)]
    pairs = [(ours, theirs), *zip(*slopes, strict=True)]
    return max(float((mine - other).abs().max() / other.abs().max()) for mine, other in pairs)


def _use_xformers(model: Any) -> None:
    if _is_prx(model):
        from xformers.ops import memory_efficient_attention

        model.set_attn_processor(MemoryEfficientProcessor(memory_efficient_attention))
    else:
        model.enable_xformers_memory_efficient_attention()


def _use_sdpa(model: Any) -> None:
    model.set_attn_processor(PRXAttnProcessor2_0() if _is_prx(model) else AttnProcessor2_0())


def _is_prx(model: object) -> bool:
    return isinstance(model, PRXTransformer2DModel)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
