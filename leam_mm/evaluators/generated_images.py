"""Images of a generator for a batch of prompts, and as a user receives them: with the watermark.

Evaluators and audits score ``published`` images. Memorization is asked of the weights: near copies, extraction and
canaries look at images before the mark, which an open checkpoint gives to anyone.
"""

from typing import Any

import numpy
import torch
from torch import Tensor

from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.errors import UserError
from leam_mm.marking.generated_image import WATERMARK, marked_pixels

PUBLISHED = f"as published, with the mark {WATERMARK.name}"  # setting of an evaluator, beside its results


def generate(
    module: Any,
    prompts: list[str],
    sampling: SamplerSettings,
    seed: int,
    first: int = 0,
    numbers: list[int] | None = None,
) -> Tensor:
    """Generate the images of one batch of prompts.

    Args:
        module: A LatentDiffusionModule.
        prompts: B texts.
        sampling: How they are sampled.
        seed: Seed of the noise, which depends on the number of a prompt and not on the batch size.
        first: Number of the first prompt.
        numbers: Number of each prompt, which names its noise; None counts from `first`.

    Returns:
        (B, 3, H, W) uint8 on the CPU, before the mark; rounded, not truncated, as in the PIL images of diffusers.

    Raises:
        UserError: A pixel is not finite.
    """
    named: dict[str, Any] = {"first_index": first} if numbers is None else {"numbers": numbers}
    with torch.inference_mode():
        images = module.sample(prompts, seed=seed, **sampling.arguments(), **named)
    if not torch.isfinite(images).all():
        raise UserError("the generator gives pixels that are not finite: the checkpoint diverged; take an earlier one")
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def published(images: Tensor) -> Tensor:
    """Return images as they are written for a user: with the watermark, before any compression.

    Args:
        images: (B, 3, H, W) uint8 of ``generate``.

    Returns:
        (B, 3, H, W) uint8, the pixels of ``save_generated``.
    """
    pixels = [marked_pixels(image) for image in images.permute(0, 2, 3, 1).numpy()]
    return torch.from_numpy(numpy.stack(pixels)).permute(0, 3, 1, 2).contiguous()
