"""Contrastive losses between paired images and texts: plain functions of tensors."""

from torch import Tensor, nn

from leam_mm.errors import UserError
from leam_mm.losses.logit_tiles import SigmoidTiles, SoftmaxTiles


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
        tile: Logits are computed in squares of this side and never kept: memory grows with B D, not with B^2.
    """

    def __init__(self, label_smoothing: float = 0.0, tile: int = 1024) -> None:
        """See the class for the arguments."""
        super().__init__()
        self.label_smoothing, self.tile = label_smoothing, _positive(tile)

    def forward(self, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """See ContrastiveLoss; a bias cancels in the softmax and is left out."""
        return SoftmaxTiles.apply(image, text, scale, self.label_smoothing, self.tile)


class SigmoidLoss(ContrastiveLoss):
    """Every pair on its own: matching or not (Zhai et al. 2303.15343, equation 1, algorithm 1).

    Args:
        tile: Logits are computed in squares of this side and never kept: memory grows with B D, not with B^2.
    """

    def __init__(self, tile: int = 1024) -> None:
        """See the class for the arguments."""
        super().__init__()
        self.tile = _positive(tile)

    def forward(self, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """See ContrastiveLoss; initialise scale to 10 and bias to -10 as in the paper."""
        return SigmoidTiles.apply(image, text, scale, scale.new_zeros(()) if bias is None else bias, self.tile)


def _positive(tile: int) -> int:
    if tile < 1:
        raise UserError(f"the tile of a contrastive loss is {tile}: give at least 1")
    return tile
