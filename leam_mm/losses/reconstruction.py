"""How far a reconstruction is from its image: pixels, features, a critic, and the price of the latent code.

Everything here is a function of tensors. The perceptual distance follows LPIPS (1801.03924) without its learned
weights, on an openly licensed network small enough for a CPU; the critic is the patch discriminator of pix2pix
(1611.07004) with the hinge loss (1705.02894), its weight that of VQGAN (2012.09841).
"""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional


class ReconstructionLoss(nn.Module):
    """A distance between reconstructions and images, both (B, 3, H, W) in [-1, 1]; one number per sample (B,)."""

    def forward(self, reconstruction: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """The distance of each sample (B,); its gradient flows to the reconstruction."""
        raise NotImplementedError


class L1Loss(ReconstructionLoss):
    """Mean absolute difference of the pixels."""

    def forward(self, reconstruction: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """The distance of each sample (B,), in units of half the range from black to white."""
        return (reconstruction - image).abs().mean((1, 2, 3))


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """At least float32, since losses are no sums for half precision; float64 stays what it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def gaussian_divergence(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of a diagonal Gaussian from the standard normal, in nats.

    Args:
        mean: (B, C, h, w).
        log_variance: (B, C, h, w).

    Returns:
        (B,), summed over everything of a sample.
    """
    # Eq. 10 of 1312.6114, appendix B
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum((1, 2, 3))


class PatchDiscriminator(nn.Module):
    """A critic that scores overlapping patches: high for images, low for reconstructions.

    Args:
        width: Channels of the first layer; they double with each further one.
        layers: Layers that halve the resolution.
    """

    def __init__(self, width: int = 32, layers: int = 2) -> None:
        """Build the layers; see the class for the arguments."""
        super().__init__()
        widths = [3] + [width * 2**i for i in range(layers)]
        blocks: list[nn.Module] = []
        for i, (inward, outward) in enumerate(pairwise(widths)):
            blocks.append(nn.Conv2d(inward, outward, 4, stride=2, padding=1))
            if i:
                # Group norm, since batch norm would couple the samples of a batch and differ between ranks.
                blocks.append(nn.GroupNorm(1, outward))
            blocks.append(nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*blocks, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Scores (B, 1, h, w) of images (B, 3, H, W) in [-1, 1]."""
        return self.layers(image)


def discriminator_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Hinge loss of the critic (B,): scores of images should exceed 1, of reconstructions lie below -1.

    Args:
        real: (B, 1, h, w), scores of images.
        fake: (B, 1, h, w), scores of *detached* reconstructions.
    """
    return 0.5 * (functional.relu(1 - real) + functional.relu(1 + fake)).mean((1, 2, 3))


def adversarial_loss(fake: torch.Tensor) -> torch.Tensor:
    """What the codec pays (B,): the critic's negative score (B, 1, h, w) of its reconstructions."""
    return -fake.mean((1, 2, 3))


def adaptive_weight(
    others: torch.Tensor, opinion: torch.Tensor, most: float = 1e4, epsilon: float = 1e-6
) -> torch.Tensor:
    """The factor that makes the critic's gradient as long as that of all other terms; a constant for the gradient.

    Args:
        others: Gradient of the other terms at the decoder's last layer, of any shape.
        opinion: Gradient of `adversarial_loss` there.
        most: Bound, for a critic that hardly has an opinion.
        epsilon: Added to its length, so that none at all divides by no zero.

    Returns:
        Scalar.
    """
    # Eq. 7 of 2012.09841
    return (others.norm() / (opinion.norm() + epsilon)).clamp(max=most).detach()
