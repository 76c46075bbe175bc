"""Losses of single samples on a grid of timesteps, with noise that is fixed for each sample."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from leam_mm.captions.caption_encoder import Caption
from leam_mm.data.image_range import signed
from leam_mm.denoisers.size_conditioning import whole_image

TIMES = (0.125, 0.375, 0.625, 0.875)  # timesteps: the middles of four equal bins


@torch.no_grad()
def sample_losses(
    module: Any, clean: Tensor, caption: Caption, numbers: Tensor, draws: int, seed: int, batch_size: int = 256
) -> Tensor:
    """Return the loss of each sample, averaged over ``TIMES`` and noises, with the averaged network.

    Args:
        module: A LatentDiffusionModule.
        clean: (B, C, h, w) latents.
        caption: state (B, L, D) and mask (B, L); or those of one caption, (1, L, D), for all samples.
        numbers: (B,) int64 on the CPU; samples with equal numbers get equal noise.
        draws: Number of noises at each timestep.
        seed: Seed of the noises.
        batch_size: Samples at a time.

    Returns:
        (B,) float64 on the CPU.
    """
    network, device = module.ema_denoiser(), module.device
    options = {}
    if getattr(network, "size_conditioning", None) is not None:
        options = {"size": whole_image(clean.shape[-2], clean.shape[-1], module.codec.downscale)}
    found = []
    for start in range(0, len(clean), batch_size):
        part = slice(start, start + batch_size)
        latent = clean[part].to(device)
        state, mask = (each.to(device) for each in caption)
        state, mask = (
            each.expand(len(latent), *each.shape[1:]) if len(each) == 1 else each[part] for each in (state, mask)
        )
        denoise = partial(_predict, partial(network, **options), state, mask)
        losses = torch.zeros(len(latent), dtype=torch.float64)
        for draw in range(draws):
            noise = module.stream.normal(seed, numbers[part], f"held out {draw}", latent.shape[1:]).to(latent)
            for t in TIMES:
                time = latent.new_full((len(latent),), t)
                losses += module.process.loss_at(denoise, latent, noise, time).double().cpu()
        found.append(losses / (draws * len(TIMES)))
    return torch.cat(found)


@torch.no_grad()
def encode_images(module: Any, images: Tensor, batch_size: int = 256) -> Tensor:
    """Return the latents (B, C, h, w) of images (B, 3, H, W) uint8, on the CPU."""
    parts = images.split(batch_size)
    return torch.cat([module.codec.encode(signed(part.to(module.device))).float().cpu() for part in parts])


@torch.no_grad()
def decode_latents(module: Any, latents: Tensor, batch_size: int = 256) -> Tensor:
    """Return the images (B, 3, H, W) uint8 of latents, on the CPU."""
    parts = [module.codec.decode(part.to(module.device)).float().cpu() for part in latents.split(batch_size)]
    return ((torch.cat(parts) / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


def _rows(value: Tensor, part: slice, count: int) -> Tensor:
    return value.expand(count, *value.shape[1:]) if len(value) == 1 else value[part]


def _predict(network: Any, state: Tensor, mask: Tensor, x_t: Tensor, time: Tensor) -> Tensor:
    return network(x_t, time, state, mask)
