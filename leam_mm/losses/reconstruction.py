"""Losses of autoencoders: pixel distance, KL divergence of the latent, and a patch discriminator.

The discriminator is that of pix2pix (1611.07004) with the hinge loss (1705.02894), weighted as in VQGAN (2012.09841).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


class ReconstructionLoss(nn.Module):
    """Base class of distances between reconstructions and images, both (B, 3, H, W) in [-1, 1]."""

    def forward(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        """Return the distance of each sample (B,), differentiable in the reconstruction."""
        raise NotImplementedError


class L1Loss(ReconstructionLoss):
    """Mean absolute difference of the pixels."""

    def forward(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        """Return the distance of each sample (B,), in units of half the range from black to white."""
        return (reconstruction - image).abs().mean((1, 2, 3))


class SquaredLoss(ReconstructionLoss):
    """Mean squared difference of the pixels, which hardly weighs differences too small to be seen."""

    def forward(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        """Return the distance of each sample (B,), in units of the square of half the range from black to white."""
        return (reconstruction - image).square().mean((1, 2, 3))


def widened(tensor: Tensor) -> Tensor:
    """Convert half precision to float32, in which losses are summed; leave float32 and float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def gaussian_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of a diagonal Gaussian from the standard normal, in nats.

    Args:
        mean: (B, C, h, w).
        log_variance: (B, C, h, w).

    Returns:
        (B,), summed over channels and positions.
    """
    # Eq. 10 of 1312.6114, appendix B
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum((1, 2, 3))


class PatchDiscriminator(nn.Module):
    """Discriminator of overlapping patches: high scores for images, low ones for reconstructions.

    Args:
        width: Channels of the first layer; each further layer doubles them.
        layers: Number of layers that halve the resolution.
    """

    def __init__(self, width: int = 32, layers: int = 2) -> None:
        """See the class for the arguments."""
        super().__init__()
        widths = [3] + [width * 2**i for i in range(layers)]
        blocks: list[nn.Module] = []
        for i, (inward, outward) in enumerate(pairwise(widths)):
            blocks.append(nn.Conv2d(inward, outward, 4, stride=2, padding=1))
            if i:
                # Group norm: batch norm would couple the samples of a batch and differ between ranks.
                blocks.append(nn.GroupNorm(1, outward))
            blocks.append(nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*blocks, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        """Return scores (B, 1, h, w) of images (B, 3, H, W) in [-1, 1]."""
        return self.layers(image)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's hinge loss (B,): zero if images score above 1 and reconstructions below -1.

    Args:
        real: (B, 1, h, w), scores of images.
        fake: (B, 1, h, w), scores of *detached* reconstructions.
    """
    return 0.5 * (functional.relu(1 - real) + functional.relu(1 + fake)).mean((1, 2, 3))


def adversarial_loss(fake: Tensor) -> Tensor:
    """Return the codec's adversarial loss (B,): minus the mean score (B, 1, h, w) of its reconstructions."""
    return -fake.mean((1, 2, 3))


def adaptive_weight(others: Tensor, adversarial: Tensor, most: float = 1e4, epsilon: float = 1e-6) -> Tensor:
    """Return the factor that scales the adversarial gradient to the norm of all other terms' gradient, detached.

    Args:
        others: Gradient of the other terms at the decoder's last layer, of any shape.
        adversarial: Gradient of `adversarial_loss` at the same layer.
        most: Upper bound, for an adversarial gradient near zero.
        epsilon: Added to the norm of the adversarial gradient, which may be zero.

    Returns:
        Scalar.
    """
    # Eq. 7 of 2012.09841
    return (others.norm() / (adversarial.norm() + epsilon)).clamp(max=most).detach()
