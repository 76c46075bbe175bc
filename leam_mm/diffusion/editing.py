"""Pictures drawn from a picture: image-to-image (SDEdit, 2108.01073) and inpainting, with any process and sampler.

Sampling starts in the middle of the way, at a time t = strength where the given latents are noised but not yet gone. A
strength of 1 is plain sampling, one of 0 gives the latents back. With a mask, what is to be kept is put back after each
step, noised as the time asks, with the same noise all the way.
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
    """What is asked of a codec; codecs/latent_codec.py has them."""

    def encode(self, image: Tensor) -> Tensor:
        """Encode pictures (B, 3, H, W) in [-1, 1] to latents (B, C, h, w)."""

    def decode(self, latent: Tensor) -> Tensor:
        """Decode latents to pictures."""


@dataclass(frozen=True)
class Edit:
    """What is to be drawn from which picture.

    Args:
        image: (B, 3, H, W) or (1, 3, H, W), float in [0, 1].
        strength: The time in [0, 1] at which drawing starts: 0 gives the picture back, 1 forgets it where is drawn.
        mask: (B, 1, H, W) or (1, 1, H, W), true where is drawn anew; None draws everywhere.
    """

    image: Tensor
    strength: float = 1.0
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse what fits no picture."""
        if not 0 <= self.strength <= 1:
            raise UserError(f"strength is {self.strength}: give a number from 0 (the picture) to 1 (only noise)")
        if self.image.ndim != 4 or self.image.shape[1] != 3 or not self.image.is_floating_point():
            raise UserError(f"image has shape {tuple(self.image.shape)}: give (B, 3, H, W), floats in [0, 1]")
        if self.mask is not None and self.mask.shape[-3:] != (1, *self.image.shape[-2:]):
            raise UserError(
                f"mask has shape {tuple(self.mask.shape)}, the image {tuple(self.image.shape)}: give (B, 1, H, W)"
            )

    def rows(self, start: int, count: int, size: int) -> "Edit":
        """The edit of `count` pictures from number `start` on; one image or mask alone serves all of them.

        Args:
            start: Number of the first.
            count: How many.
            size: H = W that the generator draws.
        """
        if self.image.shape[-2:] != (size, size):
            raise UserError(
                f"image has {self.image.shape[-1]} x {self.image.shape[-2]} pixels, the generator draws {size} x "
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
    """The part of a falling grid of times that is left from `strength` on; all of it at 1, and 0 alone at 0."""
    start = times.new_tensor(strength)
    return torch.cat([start[None], times[times < start]])


def begin(process: DiffusionProcess, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """The state (B, ...) at one time: the latents noised that far; at time 1 the noise itself, as in plain sampling."""
    return noise if time >= 1 else process.corrupt(clean, noise, time.to(clean).expand(len(clean)))


def latent_mask(mask: Tensor, downscale: int) -> Tensor:
    """Positions of the latents of which any pixel is drawn anew: (B, 1, H, W) -> (B, 1, h, w) bool."""
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
    """Draw from latents.

    Args:
        process: How data becomes noise.
        sampler: Draws from one time to others; where there is a mask it must keep nothing from step to step, as
            sample_euler and sample_heun.
        clean: (B, C, h, w), the latents to start from.
        noise: (B, C, h, w).
        times: (steps + 1,), the grid of plain sampling, from 1 to 0.
        strength: Time in [0, 1] at which to start; the steps of the grid after it are taken.
        mask: (B, 1, h, w) bool, true where is drawn anew.

    Returns:
        (B, C, h, w), equal to `clean` wherever the mask is false.
    """
    times = remaining_times(times.to(clean.device), strength)
    x = begin(process, clean, noise, times[0])
    if mask is None:
        return sampler(x, times) if len(times) > 1 else x
    for now, then in pairwise(times):
        x = sampler(x, torch.stack([now, then]))
        kept = clean if then <= 0 else begin(process, clean, noise, then)
        x = torch.where(mask, x, kept)
    return x


def draw_from(
    edit: Edit, codec: Codec, process: DiffusionProcess, sampler: Sampler, noise: Tensor, times: Tensor
) -> Tensor:
    """Draw pictures (B, 3, H, W) in [-1, 1] from those of an edit; arguments as in sample_edit.

    Outside the mask the pictures are the codec's reconstruction to the bit. Decoded latents alone would not be: a
    decoder looks beyond the position that it decodes.
    """
    image = edit.image.to(noise) * 2 - 1
    clean = codec.encode(image)
    mask = edit.mask.to(noise.device) > 0 if edit.mask is not None else None
    fine = None if mask is None else latent_mask(mask, image.shape[-1] // noise.shape[-1])
    drawn = codec.decode(sample_edit(process, sampler, clean, noise, times, edit.strength, fine))
    return drawn if mask is None else torch.where(mask, drawn, codec.decode(clean))
