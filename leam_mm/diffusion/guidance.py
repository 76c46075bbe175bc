"""Guidance: push the prediction away from a worse one.

The worse prediction is that of the empty caption (classifier-free guidance, Ho and Salimans, 2207.12598) or that of a
worse network for the same caption (autoguidance, Karras et al., 2406.02507).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from leam_mm.diffusion.process import Denoise
from leam_mm.errors import UserError

CaptionDenoise = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x_t (B, ...), time (B,), caption_state (B, L, D), caption_mask (B, L)) -> prediction (B, ...)."""
Caption = tuple[Tensor, Tensor]
"""caption_state (B, L, D) and caption_mask (B, L) bool."""
Pair = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x_t (B, ...), time (B,)) -> the worse prediction and the caption's own, both (B, ...)."""


@dataclass(frozen=True)
class Guidance:
    """Settings of guidance; a plain number in its place is the scale.

    Args:
        scale: g of worse + g (own - worse). At 1 or below guidance is off.
        low: Guide at times above this only; 0 data, 1 noise.
        high: Guide at times below this only (2404.07724: guidance harms at high noise and does nothing at low).
        rescale: Share in [0, 1] of the result whose standard deviation is set to that of the unguided prediction; 0.7
            in 2305.08891.
        weaker: Checkpoint or run folder of a smaller or less trained generator, whose prediction for the same caption
            is the worse one; None takes this generator's prediction for the empty caption.
    """

    scale: float = 3.0
    low: float = 0.0
    high: float = 1.0
    rescale: float = 0.0
    weaker: str | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.low < self.high <= 1:
            raise UserError(
                f"Guidance: low {self.low} and high {self.high} are no interval of times: give 0 <= low < high <= 1"
            )
        if not 0 <= self.rescale <= 1:
            raise UserError(f"Guidance: rescale is {self.rescale}, but it is a share in [0, 1]")


def guide(
    denoise: CaptionDenoise,
    caption: Caption,
    empty: Caption,
    guidance: float | Guidance,
    weaker: CaptionDenoise | None = None,
) -> Denoise:
    """Bind captions to a denoiser and return (x_t, time) -> guided prediction.

    With a scale alone it equals diffusers' pipelines: one call a step on a doubled batch, empty captions first.

    Args:
        denoise: The network.
        caption: B captions.
        empty: The unconditional (or negative) captions, B of them or one for all.
        guidance: Settings; where guidance is off, the network is called on the captions alone.
        weaker: The worse network, or None; with it `empty` is ignored, and both networks are called each step.
    """
    if not isinstance(guidance, Guidance):
        guidance = Guidance(guidance)
    scale, share = guidance.scale, guidance.rescale

    def plain(x_t: Tensor, time: Tensor) -> Tensor:
        return denoise(x_t, time, *caption)

    if scale <= 1:
        return plain
    pair = beside_empty(denoise, caption, empty) if weaker is None else beside_weaker(denoise, weaker, caption)

    def guided(x_t: Tensor, time: Tensor) -> Tensor:
        worse, own = pair(x_t, time)
        pushed = worse + scale * (own - worse)
        return rescale_deviation(pushed, own, share) if share else pushed

    return within(guided, plain, guidance.low, guidance.high)


def beside_empty(denoise: CaptionDenoise, caption: Caption, empty: Caption) -> Pair:
    """Predict for the empty and the given captions in one call."""
    state, mask = (torch.cat([part.expand_as(whole), whole]) for part, whole in zip(empty, caption, strict=True))

    def predict(x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        worse, own = denoise(torch.cat([x_t, x_t]), torch.cat([time, time]), state, mask).chunk(2)
        return worse, own

    return predict


def beside_weaker(denoise: CaptionDenoise, weaker: CaptionDenoise, caption: Caption) -> Pair:
    """Predict for the captions with both networks (2406.02507: its w is our scale)."""
    return lambda x_t, time: (weaker(x_t, time, *caption), denoise(x_t, time, *caption))


def rescale_deviation(guided: Tensor, plain: Tensor, share: float) -> Tensor:
    """Rescale each sample to the standard deviation of the plain prediction (section 3.4 of 2305.08891).

    Args:
        guided: (B, ...), the guided prediction.
        plain: (B, ...), the caption's own.
        share: Share in [0, 1] of the rescaled prediction in the result.
    """
    inner = tuple(range(1, guided.ndim))
    ratio = plain.std(inner, keepdim=True) / guided.std(inner, keepdim=True)
    return share * ratio * guided + (1 - share) * guided


def within(guided: Denoise, plain: Denoise, low: float, high: float) -> Denoise:
    """Use the guided prediction strictly between two times, and the plain one elsewhere (2404.07724, in our time).

    All samples of a batch are at the same time, as in the samplers.
    """
    if low <= 0 and high >= 1:
        return guided

    def chosen(x_t: Tensor, time: Tensor) -> Tensor:
        return (guided if low < float(time[0]) < high else plain)(x_t, time)

    return chosen
