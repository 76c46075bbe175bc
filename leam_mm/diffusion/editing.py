"""Image-to-image (SDEdit, 2108.01073) and inpainting, with any process and sampler.

Sampling starts at a time t = strength from the noised latents of a given image. A strength of 1 is plain sampling, 0
returns the latents. With a mask, the kept positions are reset after each step to the given latents, noised to the
current time with the same noise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from leam_mm.diffusion.process import DiffusionProcess
from leam_mm.errors import UserError

Sampler = Callable[[Tensor, Tensor], Tensor]
"""(x (B, ...) at times[0], times (steps + 1,)) -> x at times[-1]; the network is bound."""


class Codec(Protocol):
    """What editing needs of a codec; codecs/latent_codec.py has the class."""

    def encode(self, image: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) in [-1, 1] to latents (B, C, h, w)."""

    def decode(self, latent: Tensor) -> Tensor:
        """Decode latents to images."""


@dataclass(frozen=True)
class Edit:
    """Images to start from, and what to replace in them.

    Args:
        image: (B, 3, H, W) or (1, 3, H, W), float in [0, 1].
        strength: The time in [0, 1] at which sampling starts: 0 returns the image, 1 replaces it completely.
        mask: (B, 1, H, W) or (1, 1, H, W), true where the image is replaced; None replaces it everywhere.
    """

    image: Tensor
    strength: float = 1.0
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        """Check range and shapes."""
        if not 0 <= self.strength <= 1:
            raise UserError(f"strength is {self.strength}: give a number from 0 (the image) to 1 (pure noise)")
        if self.image.ndim != 4 or self.image.shape[1] != 3 or not self.image.is_floating_point():
            raise UserError(f"image has shape {tuple(self.image.shape)}: give (B, 3, H, W), floats in [0, 1]")
        if self.mask is not None and self.mask.shape[-3:] != (1, *self.image.shape[-2:]):
            raise UserError(
                f"mask has shape {tuple(self.mask.shape)}, the image {tuple(self.image.shape)}: give (B, 1, H, W)"
            )

    def rows(self, start: int, count: int, size: int) -> "Edit":
        """Return the edit of some of the images; a single image or mask serves all of them.

        Args:
            start: Number of the first image.
            count: Number of images.
            size: H = W of the generator's images.
        """
        if self.image.shape[-2:] != (size, size):
            raise UserError(
                f"image has {self.image.shape[-1]} x {self.image.shape[-2]} pixels, the generator's have {size} x "
                f"{size}: resize it"
            )
        parts = []
        for part in (self.image, self.mask):
            if part is None or len(part) == 1:
                parts.append(part if part is None else part.expand(count, -1, -1, -1))
            elif len(part) < start + count:
                raise UserError(f"{len(part)} images or masks for {start + count} prompts: give as many, or one")
            else:
                parts.append(part[start : start + count])
        image, mask = parts
        assert image is not None
        return Edit(image, self.strength, mask)


def remaining_times(times: Tensor, strength: float) -> Tensor:
    """Return the part of a falling grid of times from `strength` on: all of it for 1, and 0 alone for 0."""
    start = times.new_tensor(strength)
    return torch.cat([start[None], times[times < start]])


def noised(process: DiffusionProcess, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Return the state (B, ...) at one time: the noised latents, or at time 1 the noise, as in plain sampling."""
    return noise if time >= 1 else process.corrupt(clean, noise, time.to(clean).expand(len(clean)))


def latent_mask(mask: Tensor, downscale: int) -> Tensor:
    """Return the latent positions of which any pixel is replaced: (B, 1, H, W) -> (B, 1, h, w) bool."""
    return F.max_pool2d(mask.float(), downscale) > 0


def sample_edit(
    process: DiffusionProcess,
    sampler: Sampler,
    clean: Tensor,
    noise: Tensor,
    times: Tensor,
    strength: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Sample from given latents.

    Args:
        process: How data becomes noise.
        sampler: Samples along times; with a mask it must be stateless between steps, as sample_euler and sample_heun
            are.
        clean: (B, C, h, w), the latents to start from.
        noise: (B, C, h, w).
        times: (steps + 1,), the grid of plain sampling, from 1 to 0.
        strength: Time in [0, 1] at which to start; the later times of the grid follow.
        mask: (B, 1, h, w) bool, true where the latents are replaced.

    Returns:
        (B, C, h, w), equal to `clean` wherever the mask is false.
    """
    times = remaining_times(times.to(clean.device), strength)
    x = noised(process, clean, noise, times[0])
    if mask is None:
        return sampler(x, times) if len(times) > 1 else x
    for now, then in pairwise(times):
        x = sampler(x, torch.stack([now, then]))
        kept = clean if then <= 0 else noised(process, clean, noise, then)
        x = torch.where(mask, x, kept)
    return x


def edit_images(
    edit: Edit, codec: Codec, process: DiffusionProcess, sampler: Sampler, noise: Tensor, times: Tensor
) -> Tensor:
    """Sample images (B, 3, H, W) in [-1, 1] from those of an edit; arguments as in sample_edit.

    Outside the mask the images equal the codec's reconstruction to the bit. The decoded latents alone would not: a
    decoder reads neighbouring positions, too.
    """
    image = edit.image.to(noise) * 2 - 1
    clean = codec.encode(image)
    mask = edit.mask.to(noise.device) > 0 if edit.mask is not None else None
    positions = None if mask is None else latent_mask(mask, image.shape[-1] // noise.shape[-1])
    edited = codec.decode(sample_edit(process, sampler, clean, noise, times, edit.strength, positions))
    return edited if mask is None else torch.where(mask, edited, codec.decode(clean))
