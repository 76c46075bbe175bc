"""Keep a deep compression autoencoder within the range of float16, whose largest number is 65,504.

Nothing bounds the results inside its residual blocks: the second convolution is followed by an RMS norm, which divides
by their size, and so is the last layer of the decoder. Both convolutions of a block are divided by powers of two where
results are too large:

- the second has no bias, and the norm removes the factor but for its epsilon;
- the first is followed by a SiLU, x sigmoid(x), which is x or 0 at the sizes that need it: a factor k changes results
  by at most 0.28 k, where they are larger than float16's range divided by ``HEADROOM``.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

LARGEST = torch.finfo(torch.float16).max
HEADROOM = 8  # other latents give larger results than the probes
PROBES, SIDE, BATCH = 32, 8, 4  # latents, their height and width, and how many are decoded at once


@torch.no_grad()
def fit_float16(autoencoder: Any, scale: float) -> dict[str, tuple[int, int]]:
    """Divide the convolutions of residual blocks by powers of two, in place, so that results fit float16.

    Args:
        autoencoder: An autoencoder of diffusers in float32, on the CPU; one without such blocks is left as it is.
        scale: What normalises its latents, ``scaling_factor``.

    Returns:
        The factors of both convolutions by the name of the block; blocks that fit are left out.
    """
    blocks = dict(_blocks(autoencoder))
    if not blocks:
        return {}
    sizes: dict[nn.Module, float] = {}

    def note(layer: nn.Module, _: Any, result: Tensor) -> None:
        sizes[layer] = max(sizes.get(layer, 0.0), result.abs().max().item())

    hooks = [conv.register_forward_hook(note) for block in blocks.values() for conv in (block.conv1, block.conv2)]
    try:
        generator = torch.Generator().manual_seed(0)
        shape = (PROBES, int(autoencoder.config.latent_channels), SIDE, SIDE)
        for latent in torch.randn(shape, generator=generator).split(BATCH):
            image = autoencoder.decode(latent / scale, return_dict=False)[0]
            autoencoder.encode(image.clamp(-1, 1), return_dict=False)
    finally:
        for hook in hooks:
            hook.remove()
    found = {}
    for name, block in blocks.items():
        first = _factor(sizes[block.conv1])
        second = _factor(sizes[block.conv2] / first)
        if max(first, second) > 1:
            for value in (block.conv1.weight, block.conv1.bias):
                value /= first
            block.conv2.weight /= second
            found[name] = (first, second)
    return found


def _blocks(autoencoder: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the residual blocks with an RMS norm after a convolution without bias."""
    for name, block in autoencoder.named_modules():
        second = getattr(block, "conv2", None)
        if getattr(block, "norm_type", "") == "rms_norm" and isinstance(second, nn.Conv2d) and second.bias is None:
            yield name, block


def _factor(size: float) -> int:
    """Return the smallest power of two that brings a finite size below float16's range divided by the headroom."""
    factor = 1
    while math.isfinite(size) and size / factor > LARGEST / HEADROOM:
        factor *= 2
    return factor
