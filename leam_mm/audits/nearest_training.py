"""Distances of images to their nearest training images, exact, in one pass over the shards."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from leam_mm.audits.copy_distance import CopyDistance
from leam_mm.evaluators.embedding import read_image_samples

CHUNK = 1000  # training images in memory


def nearest_training(
    shards: Path, size: int, distances: Sequence[CopyDistance], queries: Tensor, neighbours: int = 1
) -> list[Tensor]:
    """Return the distances of each query to its nearest training images.

    Args:
        shards: Shard folder of the training images.
        size: Side in pixels to which they are decoded, as in training.
        distances: The distances.
        queries: (B, 3, size, size) uint8.
        neighbours: Number of nearest images.

    Returns:
        For each distance (B, neighbours) float32, rising; fewer columns if there are fewer training images.
    """
    prepared = [distance.parts(queries) for distance in distances]
    found: list[Tensor] = [torch.empty(len(queries), 0) for _ in distances]

    def take(chunk: list[Tensor]) -> None:
        images = torch.stack(chunk)
        for number, distance in enumerate(distances):
            between = distance.between(prepared[number], distance.parts(images))
            joined = torch.cat([found[number], between], dim=1)
            count = min(neighbours, joined.shape[1])
            found[number] = joined.topk(count, largest=False).values

    chunk: list[Tensor] = []
    for sample in read_image_samples(shards):
        chunk.append(sample.pixels(size))
        if len(chunk) == CHUNK:
            take(chunk)
            chunk = []
    if chunk:
        take(chunk)
    return found


def relative_distance(nearest: Tensor) -> Tensor:
    """Return the distance to the nearest image over the mean of those to all neighbours (2301.13188, section 5).

    It is small only where one training image is much nearer than the others, and so does not take simple images, which
    are near to many, for copies.

    Args:
        nearest: (B, neighbours), rising.
    """
    return nearest[:, 0] / nearest.mean(dim=1).clamp_min(1e-12)
