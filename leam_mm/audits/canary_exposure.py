"""Exposure of canaries: how far the loss of a canary's own image ranks above those of images never planted."""

import math
from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from leam_mm.audits.canary_list import PlantedCanary, canary_pixels
from leam_mm.evaluators.sample_losses import encode_images, sample_losses


def loss_ranks(
    module: Any, canaries: Sequence[PlantedCanary], others: Sequence[PlantedCanary], size: int, draws: int, seed: int
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Compare, under each canary's caption, the loss of its own image with those of held-out images.

    All images of one caption get the same noise.

    Args:
        module: A LatentDiffusionModule.
        canaries: N canaries.
        others: M held-out canaries, whose images are the candidates; a canary is no candidate of its own.
        size: Side of the images in pixels.
        draws: Number of noises at each timestep.
        seed: Seed of the noises.

    Returns:
        Exposure (N,) in bits, log2(candidates) - log2(rank) (Carlini et al. 2019, 1802.08232), and the
        loss of the own image less the mean loss of the others (N,).
    """
    own = encode_images(module, canary_pixels(list(canaries), size))
    candidates = encode_images(module, canary_pixels(list(others), size))
    exposures, gaps = [], []
    for canary, latent in zip(canaries, own, strict=True):
        rest = torch.stack([one for one, other in zip(candidates, others, strict=True) if other is not canary])
        state, mask = module.caption_encoder.encode([canary.caption])
        latents = torch.cat([latent[None], rest])
        numbers = torch.zeros(len(latents), dtype=torch.int64)
        losses = sample_losses(module, latents, (state, mask), numbers, draws, seed)
        exposures.append(exposure(losses))
        gaps.append(float(losses[0] - losses[1:].mean()))
    return numpy.array(exposures), numpy.array(gaps)


def exposure(losses: Tensor) -> float:
    """Return log2(candidates) - log2(rank) of the first of several losses; equal losses share their mean rank."""
    below, equal = (losses < losses[0]).sum(), (losses == losses[0]).sum()
    return math.log2(len(losses)) - math.log2(float(below) + (float(equal) + 1) / 2)
