"""Scores of membership: higher for samples that a model was probably trained on. Each gives (B,) float64."""

from typing import Any

import numpy
import torch
from torch import Tensor

from leam_mm.evaluators.embedding import ImageSample, embed_images, embed_texts
from leam_mm.evaluators.sample_losses import encode_images, sample_losses

BATCH = 128


@torch.no_grad()
def generator_scores(module: Any, images: Tensor, texts: list[str], draws: int, seed: int) -> dict[str, numpy.ndarray]:
    """Return the scores of a generator, all with one noise for each sample.

    Args:
        module: A LatentDiffusionModule.
        images: (B, 3, H, W) uint8.
        texts: B captions.
        draws: Number of noises at each timestep.
        seed: Seed of the noises.

    Returns:
        ``loss``, the negative loss on a grid of timesteps (Carlini et al. 2023, 2301.13188, section 5.2), and
        ``caption_gain``, by how much the caption lowers the loss (Zhai et al. 2024, 2405.14800).
    """
    latents, numbers = encode_images(module, images), torch.arange(len(images))
    parts = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    given = torch.cat([
        sample_losses(module, latents[rows], module.caption_encoder.encode(part), numbers[rows], draws, seed)
        for part, rows in zip(parts, numbers.split(BATCH), strict=True)
    ])  # fmt: skip
    free = sample_losses(module, latents, module.conditioning.empty(), numbers, draws, seed)
    return {"loss": -given.numpy(), "caption_gain": (free - given).numpy()}


def encoder_scores(
    module: Any, samples: list[ImageSample], texts: list[str], device: torch.device
) -> dict[str, numpy.ndarray]:
    """Return the scores of a contrastive encoder.

    Args:
        module: A ContrastiveModule.
        samples: B images.
        texts: B captions.
        device: Device of the encoder.

    Returns:
        ``cosine`` of an image and its caption (Ko et al. 2023, 2310.00108), and ``margin``, the cosine less the mean
        cosine with the other captions that differ.
    """
    images = embed_images(module, samples, BATCH, device).double()
    cosines = images @ embed_texts(module, texts, BATCH, device).double().T
    own = cosines.diagonal()
    names = numpy.unique(texts, return_inverse=True)[1]
    other = torch.from_numpy(names[:, None] != names[None, :])
    mean = (cosines * other).sum(1) / other.sum(1).clamp_min(1)
    return {"cosine": own.numpy(), "margin": (own - mean).numpy()}
