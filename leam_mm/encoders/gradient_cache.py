"""A large batch embedded in parts whose activations are never in memory together (GradCache, 2101.06983).

A first pass keeps the features only, the loss then sees the pairs of the whole batch, and the backward pass embeds
each part once more to send the features' gradients through it. That is a checkpoint around each part: autograd adds
the parts' gradients up before any hook of a parameter runs, so that DDP communicates once, with the last part, and
scale and bias, which stand after the parts, are touched once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

Batch = dict[str, Any]


def split_batch(batch: Batch, images: int) -> Iterator[Batch]:
    """Parts of ``images`` images with all that belongs to them; the last part may be smaller.

    Entries with K rows for each image are cut after every K rows; entries of another size go to every part whole.
    """
    count = len(batch["image"])
    for first in range(0, count, images):
        part = {}
        for name, value in batch.items():
            rows = len(value) if isinstance(value, list) or (isinstance(value, Tensor) and value.ndim) else 0
            each = rows // count if rows and rows % count == 0 else 0
            part[name] = value[first * each : (first + images) * each] if each else value
        yield part


def embed_in_parts(
    embed: Callable[[Batch], tuple[Tensor, Tensor]], batch: Batch, images: int, network: nn.Module
) -> tuple[Tensor, Tensor]:
    """Embed a batch with the activations of ``images`` images and their captions in memory at a time.

    Features and gradients are those of embedding part after part, dropout included: the second pass draws the numbers
    of the first again, on CPU and device. A batch norm normalises over a part, as with every kind of accumulation; its
    running statistics move in the first pass only.

    Args:
        embed: Batch -> image (b, D) and text (b K, D).
        batch: See `split_batch`.
        images: Size of a part, at least 1.
        network: What ``embed`` computes with, for its batch norms.

    Returns:
        image (B, D) and text (B K, D).
    """

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), _still_statistics(network)

    parts = [checkpoint(embed, part, use_reentrant=False, context_fn=contexts) for part in split_batch(batch, images)]
    image, text = zip(*parts, strict=True)
    return torch.cat(image), torch.cat(text)


@contextmanager
def _still_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norms go on normalising by the batch, but count it into copies that are thrown away."""
    norms = [layer for layer in network.modules() if isinstance(layer, _BatchNorm) and layer.training]
    kept = [(layer, dict(layer._buffers)) for layer in norms]
    for layer, buffers in kept:
        layer._buffers.update({name: None if value is None else value.clone() for name, value in buffers.items()})
    try:
        yield
    finally:
        for layer, buffers in kept:
            layer._buffers.update(buffers)
