"""Conditioning of a denoiser on original size and crop of the training images (2307.01952, section 2.2).

A small image that was enlarged is blurred, and a crop shows half an object. A network that is conditioned on both can
tell them from the rest, and makes whole, sharp images for the size of a large image without a crop. The six numbers of
an ImageSize become Fourier features, and these a vector that is added to the embedding of the time.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUMBERS = 6  # original height and width, crop top and left, target height and width
MAX_PERIOD = 10_000.0  # as of the time's embedding; pixels have about the same range


class SizeConditioning(nn.Module):
    """Sizes and crop to a vector that starts at zero, so that it can be added to a trained denoiser.

    Args:
        width: E, channels of the vector and of the time's embedding.
        side: H = W in pixels of the whole image that is meant if no size is given.
        frequencies: F, number of frequencies of the Fourier features of each number.
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
        """Embed sizes.

        Args:
            size: (B, 6) or (6,), the numbers of an ImageSize in pixels; None means a whole image.

        Returns:
            (B, E), or (1, E) for all.
        """
        if size is None:
            size = whole_image(self.side, self.side)
        size = size.to(self.hidden.weight.device).reshape(-1, NUMBERS)
        features = fourier_features(size, self.frequencies).flatten(1)  # (B, 6 * 2F)
        return self.out(F.silu(self.hidden(features.to(self.hidden.weight.dtype))))

    @torch.no_grad()
    def fold_into(self, layer: nn.Linear) -> None:
        """Add the vector of a whole image to a layer's bias, so that the layer needs no conditioning.

        Args:
            layer: The last linear layer of the time's embedding.
        """
        layer.bias.add_(self()[0].to(layer.bias))


def fourier_features(values: Tensor, frequencies: int) -> Tensor:
    """Return cosines and sines at geometrically falling frequencies from 1 on: (...) -> (..., 2F) float32."""
    falling = torch.exp(-math.log(MAX_PERIOD) / frequencies * torch.arange(frequencies, device=values.device))
    angles = values[..., None].float() * falling
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def whole_image(height: int, width: int, scale: int = 1) -> Tensor:
    """Return the numbers (6,) of an image that was not cropped.

    Args:
        height: In pixels over scale.
        width: In pixels over scale.
        scale: Pixels per side of a latent position.
    """
    return scale * torch.tensor([height, width, 0, 0, height, width])
