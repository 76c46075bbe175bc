"""What a picture was before it became a training sample, told to the denoiser (2307.01952, section 2.2).

A small picture that was enlarged is blurred, and a crop shows half a thing. A network that is told so learns both apart
from the rest, and draws whole, sharp pictures when it is told of a large one that lost nothing. The six numbers of a
PictureSize become Fourier features, and those a vector that is added to the embedding of the time.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUMBERS = 6  # original height and width, crop top and left, target height and width
MAX_PERIOD = 10_000.0  # as of the time's embedding; pixels have about the same range


class SizeConditioning(nn.Module):
    """Sizes and crop to a vector that is zero before any training, so that a trained denoiser may get it too.

    Args:
        width: E, channels of the vector: those of the time's embedding.
        side: H = W in pixels of the whole picture that is meant where nobody says more.
        frequencies: F, of the Fourier features of each number.
    """

    def __init__(self, width: int, side: int, frequencies: int = 32) -> None:
        """See the class for the arguments."""
        super().__init__()
        self.side, self.frequencies = side, frequencies
        self.hidden = nn.Linear(2 * frequencies * NUMBERS, width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, size: Tensor | None = None) -> Tensor:
        """Embed.

        Args:
            size: (B, 6) or (6,), the numbers of a PictureSize in pixels; None means a whole picture.

        Returns:
            (B, E), or (1, E) for all.
        """
        if size is None:
            size = whole_picture(self.side, self.side)
        size = size.to(self.hidden.weight.device).reshape(-1, NUMBERS)
        features = fourier_features(size, self.frequencies).flatten(1)  # (B, 6 * 2F)
        return self.out(F.silu(self.hidden(features.to(self.hidden.weight.dtype))))

    @torch.no_grad()
    def fold_into(self, layer: nn.Linear) -> None:
        """Add the vector of a whole picture to a layer's bias: what that layer gives then needs no conditioning.

        Args:
            layer: The last linear layer of the time's embedding.
        """
        layer.bias.add_(self()[0].to(layer.bias))


def fourier_features(values: Tensor, frequencies: int) -> Tensor:
    """Cosines and sines at geometrically falling frequencies from 1 on: (...) -> (..., 2F) float32."""
    falling = torch.exp(-math.log(MAX_PERIOD) / frequencies * torch.arange(frequencies, device=values.device))
    angles = values[..., None].float() * falling
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def whole_picture(height: int, width: int, scale: int = 1) -> Tensor:
    """The numbers (6,) of a picture of which nothing was cut off, as samples are told of.

    Args:
        height: In pixels over scale.
        width: In pixels over scale.
        scale: Pixels per side of a position, of latents.
    """
    return scale * torch.tensor([height, width, 0, 0, height, width])
