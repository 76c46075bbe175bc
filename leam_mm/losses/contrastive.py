"""Contrastive losses between paired images and texts: plain functions of tensors."""

from torch import Tensor, nn

from leam_mm.errors import UserError
from leam_mm.losses.logit_tiles import SigmoidTiles, SoftmaxTiles


class ContrastiveLoss(nn.Module):
    """Base class of contrastive losses: each image against all texts, and each text against all images.

    To add a loss, subclass it in your own file and name the class in an overlay. The module passes the features of all
    ranks. ``needs`` names further entries of the batch: in training, they are gathered from all ranks and passed to
    ``forward`` as keyword arguments.
    """

    needs: tuple[str, ...] = ()

    def forward(self, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the loss.

        Args:
            image: (B, D), unit length; row i belongs to row i of text.
            text: (B, D), unit length.
            scale: Scalar, the inverse temperature that multiplies the similarities.
            bias: Scalar added to the scaled similarities, or None.

        Returns:
            Scalar, the mean over the batch.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(image, text, scale, bias)")


class InfoNCE(ContrastiveLoss):
    """Softmax over the batch in both directions (Radford et al. 2103.00020, figure 3).

    Args:
        label_smoothing: Share of the target spread over the other pairs, in [0, 1).
        tile: Side of the squares in which logits are computed and discarded: memory grows with B D, not with B^2.
    """

    def __init__(self, label_smoothing: float = 0.0, tile: int = 1024) -> None:
        """See the class for the arguments."""
        super().__init__()
        self.label_smoothing, self.tile = label_smoothing, _positive(tile)

    def forward(self, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """See ContrastiveLoss; a bias cancels in the softmax and is left out."""
        return SoftmaxTiles.apply(image, text, scale, self.label_smoothing, self.tile)


class PairwiseLoss(ContrastiveLoss):
    """A loss that is a sum over pairs, so that no rank needs the features of all others at once.

    A subclass defines ``pairs``; the ring exchange of `leam_mm.distributed` then computes it and its gradients.
    """

    def pairs(self, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None, matching: bool) -> Tensor:
        """Return the sum of the losses of all pairs of B images and C texts.

        Args:
            image: (B, D), unit length.
            text: (C, D), unit length.
            scale: See ContrastiveLoss.
            bias: See ContrastiveLoss.
            matching: True if row i of image belongs to row i of text; False if no two rows belong together.
        """
        raise NotImplementedError(f"{type(self).__name__} must define pairs(image, text, scale, bias, matching)")

    def forward(self, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """See ContrastiveLoss."""
        return self.pairs(image, text, scale, bias, matching=True) / len(image)


class SigmoidLoss(PairwiseLoss):
    """Binary classification of each pair: matching or not (SigLIP, Zhai et al. 2303.15343, equation 1, algorithm 1).

    Initialise scale to 10 and bias to -10 as in the paper.

    Args:
        tile: Side of the squares in which logits are computed and discarded: memory grows with B D, not with B^2.
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
        raise UserError(f"contrastive loss: tile is {tile}, but must be at least 1")
    return tile
