"""Contrastive losses between paired images and texts: plain functions of tensors."""

from torch import Tensor, nn

from leam_mm.errors import UserError
from leam_mm.losses.logit_tiles import SigmoidTiles, SoftmaxTiles


class ContrastiveLoss(nn.Module):
    """How well each image finds its own text among all texts, and each text its image.

    Subclass it in a file of your own and name it in an overlay; the module hands over the features of all ranks.
    ``needs`` names entries of the batch that it wants besides: they come gathered from all ranks, as keyword arguments
    of forward, in training only.
    """

    needs: tuple[str, ...] = ()

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


class PairwiseLoss(ContrastiveLoss):
    """A loss that is a sum over pairs, so that no rank ever needs the features of all others at once.

    Define ``pairs`` and the ring exchange of `leam_mm.distributed` works with it, gradients included.
    """

    def pairs(self, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None, matching: bool) -> Tensor:
        """Sum of the losses of all pairs of some images and some texts.

        Args:
            image: (B, D), unit length.
            text: (C, D), unit length.
            scale: See ContrastiveLoss.
            bias: See ContrastiveLoss.
            matching: Row i of image belongs to row i of text; otherwise no two rows belong together.
        """
        raise NotImplementedError(f"{type(self).__name__} must define pairs(image, text, scale, bias, matching)")

    def forward(self, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """See ContrastiveLoss."""
        return self.pairs(image, text, scale, bias, matching=True) / len(image)


class SigmoidLoss(PairwiseLoss):
    """Every pair on its own: matching or not (Zhai et al. 2303.15343, equation 1, algorithm 1).

    Initialise scale to 10 and bias to -10 as in the paper.

    Args:
        tile: Logits are computed in squares of this side and never kept: memory grows with B D, not with B^2.
    """

    def __init__(self, tile: int = 1024) -> None:
        """See the class for the arguments."""
        super().__init__()
        self.tile = _positive(tile)

    def pairs(self, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None, matching: bool) -> Tensor:
        """See PairwiseLoss."""
        shift = scale.new_zeros(()) if bias is None else bias
        return SigmoidTiles.apply(image, text, scale, shift, self.tile, matching)


def _positive(tile: int) -> int:
    if tile < 1:
        raise UserError(f"the tile of a contrastive loss is {tile}: give at least 1")
    return tile
