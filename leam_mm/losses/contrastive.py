"""Contrastive losses between paired images and texts: plain functions of tensors."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ContrastiveLoss(nn.Module):
    """How well each image finds its own text among all texts, and each text its image.

    Subclass it in a file of your own and name it in an overlay; the module hands over the features of all ranks.
    """

    def forward(self, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the loss.

        Args:
            image: (B, D), unit length; row i belongs to row i of text.
            text: (B, D), unit length.
            scale: Scalar that multiplies the similarities (the inverse temperature).
            bias: Scalar that is added to the scaled similarities, or None.

        Returns:
            Scalar, the mean over the batch.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(image, text, scale, bias)")


class InfoNCE(ContrastiveLoss):
    """Softmax over the batch in both directions (Radford et al. 2103.00020, figure 3).

    Args:
        label_smoothing: Share of the target spread over the other pairs, in [0, 1).
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        """See the class for the arguments."""
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """See ContrastiveLoss; a bias cancels in the softmax and is left out."""
        logits = scale * image @ text.T
        target = torch.arange(len(logits), device=logits.device)
        forward = F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        backward = F.cross_entropy(logits.T, target, label_smoothing=self.label_smoothing)
        return (forward + backward) / 2


class SigmoidLoss(ContrastiveLoss):
    """Every pair on its own: matching or not (Zhai et al. 2303.15343, equation 1, algorithm 1)."""

    def forward(self, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """See ContrastiveLoss; initialise scale to 10 and bias to -10 as in the paper."""
        logits = scale * image @ text.T
        if bias is not None:
            logits = logits + bias
        sign = 2 * torch.eye(len(logits), device=logits.device, dtype=logits.dtype) - 1
        return -F.logsigmoid(sign * logits).sum() / len(logits)
