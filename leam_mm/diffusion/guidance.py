"""Classifier-free guidance (Ho and Salimans, 2207.12598): push the prediction away from that of the empty caption."""

from collections.abc import Callable

import torch
from torch import Tensor

from leam_mm.diffusion.process import Denoise

CaptionDenoise = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x_t (B, ...), time (B,), caption_state (B, L, D), caption_mask (B, L)) -> prediction (B, ...)."""
Caption = tuple[Tensor, Tensor]
"""caption_state (B, L, D) and caption_mask (B, L) bool."""


def guide(denoise: CaptionDenoise, caption: Caption, empty: Caption, guidance: float) -> Denoise:
    """Bind captions to a denoiser and return (x_t, time) -> guided prediction, as diffusers' pipelines compute it.

    Args:
        denoise: The network.
        caption: What to draw, B captions.
        empty: The unconditional (or negative) captions, B of them or one for all.
        guidance: g of empty + g (caption - empty). At 1 or below guidance is off and the network is called on the
            captions alone; above, once per step on a doubled batch, empty half first.
    """
    if guidance <= 1:
        return lambda x_t, time: denoise(x_t, time, *caption)
    state, mask = (torch.cat([part.expand_as(whole), whole]) for part, whole in zip(empty, caption, strict=True))

    def guided(x_t: Tensor, time: Tensor) -> Tensor:
        without, with_caption = denoise(torch.cat([x_t, x_t]), torch.cat([time, time]), state, mask).chunk(2)
        return without + guidance * (with_caption - without)

    return guided
