"""Choice of a denoiser's attention kernel by probes on the real device.

- ``packed``: torch's kernel for rows of different lengths; captions are packed instead of masked (PRX only).
- ``xformers``: its memory-efficient kernel with the mask as a bias.
- ``sdpa``: torch's attention with a mask, which works everywhere; used on CPUs.

All compute the same. diffusers' `set_attention_backend("xformers")` fails silently: it has no effect on a U-Net, and on
PRX it adds the boolean caption mask to the scores as 0 and 1, so that padding is attended to. It also changes the
default of the whole process.
"""

import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import PRXTransformer2DModel, SD3Transformer2DModel
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.transformers.transformer_prx import PRXAttnProcessor2_0
from einops import rearrange
from torch import Tensor, nn

from leam_mm.denoisers.attention_processors import (
    JointProcessor,
    Kernel,
    MemoryEfficientProcessor,
    PackedKernel,
    PackedProcessor,
    mask_to_bias,
)
from leam_mm.denoisers.caption_packing import pack_keys
from leam_mm.errors import UserError

logger = logging.getLogger(__name__)

Wanted = Literal["auto", "packed", "xformers", "sdpa"]


def choose_attention(
    model: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    wanted: Wanted = "auto",
    copies: Sequence[nn.Module] = (),
) -> str:
    """Set the attention of a denoiser of diffusers, log it with the reason in one line, and return its name.

    Args:
        model: PRXTransformer2DModel, SD3Transformer2DModel, or a model of diffusers' older attention such as
            UNet2DConditionModel.
        device: Device on which it will run.
        dtype: Type in which its attention will run: bfloat16 under bf16-mixed.
        wanted: `auto` takes the first of packed (PRX only) and xformers whose probe succeeds, or else sdpa.
        copies: Copies of the model, such as its average, which get the same attention.

    Returns:
        `packed`, `xformers` or `sdpa`.

    Raises:
        UserError: The wanted kernel does not work here.
    """
    order = ("packed", "xformers", "sdpa") if isinstance(model, PRXTransformer2DModel) else ("xformers", "sdpa")
    chosen, refused = "sdpa", []
    for name in order if wanted == "auto" else (wanted,):
        reason = probe(name, model, device, dtype)
        if not reason:
            chosen = name
            break
        if name == wanted:
            raise UserError(
                f"attention: {name} does not work on {device} in {dtype}: {reason}; "
                "set model.init_args.attention to auto or sdpa, or install builds that fit your torch and device"
            )
        refused.append(f"{name} not used: {reason}")
    for one in (model, *copies):
        _use(chosen, one)
    why = "; ".join(refused) or ("set by the recipe" if chosen == "sdpa" else "its probe agrees with torch")
    logger.info(attention_report(model, device, dtype, chosen, why))
    return chosen


def attention_report(model: nn.Module, device: torch.device, dtype: torch.dtype, chosen: str, why: str) -> str:
    """Return one line that says which kernel runs where, and why not another."""
    return f"attention of {type(model).__name__} on {device} in {dtype}: {chosen} ({why})"


def head_sizes(model: nn.Module) -> set[int]:
    """Return the channels per head of all attention layers of a diffusers model."""
    layers: list[Any] = [layer for layer in model.modules() if hasattr(layer, "inner_dim") and hasattr(layer, "heads")]
    return {layer.inner_dim // layer.heads for layer in layers}


def probe(name: str, model: nn.Module, device: torch.device, dtype: torch.dtype) -> str:
    """Try a kernel on the device, for each head size of the model.

    Returns:
        "" if it works and agrees with torch's attention, or else the reason.
    """
    if name == "sdpa":
        return ""
    if name == "packed" and not isinstance(model, PRXTransformer2DModel):
        return f"captions are packed for a PRXTransformer2DModel only, not for a {type(model).__name__}"
    return {"packed": probe_packed, "xformers": probe_xformers}[name](device, dtype, head_sizes(model))


def probe_xformers(device: torch.device, dtype: torch.dtype, sizes: set[int]) -> str:
    """Compare xformers, forward and backward, with torch's attention on a small masked problem for each head size.

    Returns:
        "" if it works and agrees, or else the reason.
    """
    if device.type != "cuda":  # ROCm devices are called cuda too
        return f"it has no kernels for a {device.type}"
    try:
        from xformers.ops import memory_efficient_attention
    except (ImportError, OSError, RuntimeError) as error:
        return f"it cannot be imported ({_first_line(error)})"
    return _try(_masked(memory_efficient_attention), device, dtype, sizes)


def probe_packed(device: torch.device, dtype: torch.dtype, sizes: set[int]) -> str:
    """Compare torch's kernel for packed rows in the same way.

    Returns:
        "" if it works and agrees, or else the reason.
    """
    if device.type != "cuda":
        return f"torch has no kernel of packed rows for a {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"torch's kernel of packed rows does not support {dtype}"
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        return f"it cannot be imported ({_first_line(error)})"
    return _try(_packed(varlen_attn), device, dtype, sizes)


def _try(kernel: Kernel, device: torch.device, dtype: torch.dtype, sizes: set[int]) -> str:
    for size in sorted(sizes):
        try:
            deviation = _deviation(kernel, device, dtype, size)
        except (NotImplementedError, ValueError, RuntimeError, TypeError) as error:
            return f"its probe with heads of {size} channels failed ({_first_line(error)})"
        if not deviation < 0.05:  # a wrong mask is off by about 1, half precision by 0.01
            return f"its probe with heads of {size} channels deviates from torch by {deviation:.2g}"
    return ""


def _masked(kernel: Kernel) -> Kernel:
    return lambda query, key, value, mask: kernel(query, key, value, attn_bias=mask_to_bias(mask, query, key.shape[1]))


def _packed(kernel: PackedKernel) -> Kernel:
    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        keys = pack_keys(mask, mask.sum(1).cpu(), query.shape[1])
        rows = [rearrange(part, "b n k d -> (b n) k d") for part in (query, key, value)]
        out = kernel(rows[0], rows[1][keys.real], rows[2][keys.real], *keys[2:])
        return rearrange(out, "(b n) k d -> b n k d", b=len(query))

    return attend


def _deviation(kernel: Kernel, device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Return the largest relative difference to torch in output and gradients, for 13 queries and 21 keys, some masked.

    The kernel is called as kernel(query, key, value, mask (B, 8) bool of the first keys).
    """
    generator = torch.Generator().manual_seed(0)
    random = [torch.randn(2, length, 2, size, generator=generator) for length in (13, 21, 21)]
    parts = [part.to(device, dtype).requires_grad_() for part in random]
    mask = torch.arange(8, device=device) < torch.tensor([[3], [8]], device=device)
    bias = mask_to_bias(mask, parts[0].detach(), 21)
    ours = kernel(*parts, mask)
    query, key, value = (part.transpose(1, 2) for part in parts)
    theirs = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2)
    grads = [torch.autograd.grad(out.float().square().sum(), parts) for out in (ours, theirs)]
    pairs = [(ours, theirs), *zip(*grads, strict=True)]
    return max(float((mine - other).abs().max() / other.abs().max()) for mine, other in pairs)


def _use(chosen: str, model: Any) -> None:
    """Set the processor of a kernel in all attention layers of the model."""
    prx, joint = isinstance(model, PRXTransformer2DModel), isinstance(model, SD3Transformer2DModel)
    if chosen == "packed":
        from torch.nn.attention.varlen import varlen_attn

        model.set_attn_processor(PackedProcessor(varlen_attn))
    elif chosen == "sdpa":
        model.set_attn_processor((PRXAttnProcessor2_0 if prx else JointProcessor if joint else AttnProcessor2_0)())
    elif prx or joint:
        from xformers.ops import memory_efficient_attention

        model.set_attn_processor((MemoryEfficientProcessor if prx else JointProcessor)(memory_efficient_attention))
    else:
        model.enable_xformers_memory_efficient_attention()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
