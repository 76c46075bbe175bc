"""Gradient cache: embed a large batch in parts, with the activations of one part in memory (arXiv 2101.06983).

The first pass stores only the features. The loss uses the pairs of the whole batch. The backward pass embeds each part
again and backpropagates the gradients of its features. This is a checkpoint around each part. Autograd sums the
gradients of the parts before the hooks of a parameter run, so DDP communicates once. Scale and bias are applied after
the parts, so they get their gradients once.
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
    """Yield parts of a batch with ``images`` images each; the last part may be smaller.

    Entries with K rows per image are split with their images; all other entries are passed whole to every part.
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

    Features and gradients equal those of embedding each part once, including dropout: the second pass uses the random
    numbers of the first, on CPU and device. Batch norm normalises over a part, as with gradient accumulation. Its
    buffers are updated only in the first pass.

    Args:
        embed: Function from a batch to image (b, D) and text (b K, D).
        batch: Batch of B images; see ``split_batch``.
        images: Number of images in a part, at least 1.
        network: Module that ``embed`` uses, for its batch norms.

    Returns:
        image (B, D) and text (B K, D).
    """

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), _frozen_statistics(network)

    parts = [checkpoint(embed, part, use_reentrant=False, context_fn=contexts) for part in split_batch(batch, images)]
    image, text = zip(*parts, strict=True)
    return torch.cat(image), torch.cat(text)


@contextmanager
def _frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Keep batch norm buffers unchanged: batch norms still normalise by the batch, but update copies."""
    norms = [layer for layer in network.modules() if isinstance(layer, _BatchNorm) and layer.training]
    kept = [(layer, dict(layer._buffers)) for layer in norms]
    for layer, buffers in kept:
        layer._buffers.update({name: None if value is None else value.clone() for name, value in buffers.items()})
    try:
        yield
    finally:
        for layer, buffers in kept:
            layer._buffers.update(buffers)
