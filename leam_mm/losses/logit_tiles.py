"""Contrastive losses tile by tile: memory grows with the features, not with their B x B logits.

The forward pass stores the features and, for the softmax, two numbers per pair; the backward pass recomputes each tile
of logits. Values and gradients, those of scale and bias included, equal the plain formulas. Autocast is off inside.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def parts(rows: int, tile: int) -> Iterator[slice]:
    """Yield slices that cover ``rows`` rows, ``tile`` at a time."""
    return (slice(start, min(start + tile, rows)) for start in range(0, rows, tile))


def own_logits(image: Tensor, text: Tensor, scale: Tensor, tile: int) -> Tensor:
    """Return the logits of the matching pairs, (B,), from the same products as those of all pairs."""
    return torch.cat([(scale * image[rows] @ text[rows].T).diagonal() for rows in parts(len(image), tile)])


def softmax_sums(
    image: Tensor, text: Tensor, scale: Tensor, own_image: Tensor, own_text: Tensor, tile: int
) -> tuple[Tensor, Tensor]:
    """Return the logarithms of sum_j exp(x_ij - own_image_i), (B,), and of sum_i exp(x_ij - own_text_j), (C,).

    The sums are relative to the logit of the matching pair, so that a loss near zero keeps its precision.
    """
    row, column = torch.full_like(own_image, -torch.inf), torch.full_like(own_text, -torch.inf)
    for rows in parts(len(image), tile):
        scaled = scale * image[rows]
        for columns in parts(len(text), tile):
            logits = scaled @ text[columns].T
            row[rows] = torch.logaddexp(row[rows], (logits - own_image[rows, None]).logsumexp(dim=1))
            column[columns] = torch.logaddexp(column[columns], logits.sub_(own_text[columns]).logsumexp(dim=0))
    return row, column


def softmax_gradients(
    image: Tensor, text: Tensor, scale: Tensor, row: Tensor, column: Tensor, tile: int
) -> tuple[Tensor, Tensor]:
    """Return (P + Q) text and (P + Q)^T image, with P_ij = exp(x_ij - row_i) and Q_ij = exp(x_ij - column_j)."""
    to_image, to_text = torch.zeros_like(image), torch.zeros_like(text)
    for rows in parts(len(image), tile):
        scaled = scale * image[rows]
        for columns in parts(len(text), tile):
            logits = scaled @ text[columns].T
            both = (logits - column[columns]).exp_().add_(logits.sub_(row[rows, None]).exp_())
            to_image[rows].addmm_(both, text[columns])
            to_text[columns].addmm_(both.T, image[rows])
    return to_image, to_text


class SoftmaxTiles(torch.autograd.Function):
    """Mean cross-entropy of the rows and of the columns of ``scale image text^T`` (2103.00020, figure 3).

    With P the softmax of the rows, Q that of the columns and T the targets, the gradient of the logits is
    (P + Q - 2 T) / (2 B). Logits, P and Q are never stored as whole matrices.
    """

    @staticmethod
    def forward(context: Any, image: Tensor, text: Tensor, scale: Tensor, smoothing: float, tile: int) -> Tensor:
        """Return the loss of image and text (B, D); targets are 1 - smoothing on the diagonal, the rest uniform."""
        count = len(image)
        with torch.autocast(image.device.type, enabled=False):
            own = own_logits(image, text, scale, tile)
            row, column = softmax_sums(image, text, scale, own, own, tile)
            # The mean of all logits is a product of two sums: (sum of images) . (sum of texts) / B^2.
            everywhere = scale * (image.sum(dim=0) @ text.sum(dim=0)) / count**2
            loss = (row.mean() + column.mean()) / 2 - smoothing * (everywhere - own.mean())
        context.save_for_backward(image, text, scale, own + row, own + column)
        context.smoothing, context.tile = smoothing, tile
        return loss

    @staticmethod
    @once_differentiable
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Return the gradients of image, text and scale."""
        image, text, scale, row, column = context.saved_tensors
        count, smoothing = len(image), context.smoothing
        with torch.autocast(image.device.type, enabled=False):
            to_image, to_text = softmax_gradients(image, text, scale, row, column, context.tile)
            to_image.sub_(2 * (1 - smoothing) * text).sub_(2 * smoothing / count * text.sum(dim=0))
            to_text.sub_(2 * (1 - smoothing) * image).sub_(2 * smoothing / count * image.sum(dim=0))
            # A logit is scale <image, text>: the scale's gradient sums the logits' gradients times <image, text>.
            to_scale = (to_image * image).sum() * (upstream / (2 * count))
            factor = scale * upstream / (2 * count)
        return to_image.mul_(factor), to_text.mul_(factor), to_scale.to(scale.dtype).reshape(scale.shape), None, None


class SigmoidTiles(torch.autograd.Function):
    """Sum over all pairs of -log sigmoid(+-(scale image text^T + bias)) (2303.15343, equation 1, times B).

    With x the logit, negated for matching pairs, a pair's loss is softplus(x) and its gradient sigmoid(x). No sum over
    rows is needed, so the forward pass computes the gradients from the same tiles.
    """

    @staticmethod
    def forward(
        context: Any, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, tile: int, matching: bool
    ) -> Tensor:
        """Return the sum for image (B, D) and text (C, D); matching: row i of the one belongs to row i of the other."""
        wanted = any(context.needs_input_grad)
        to_image, to_text = (torch.zeros_like(part) if wanted else part for part in (image, text))
        total = torch.zeros((), dtype=torch.float64, device=image.device)
        bias_gradient = total.clone()
        with torch.autocast(image.device.type, enabled=False):
            for rows in parts(len(image), tile):
                scaled = scale * image[rows]
                for columns in parts(len(text), tile):
                    logits = (scaled @ text[columns].T).add_(bias)
                    if matching and rows == columns:
                        logits.diagonal().neg_()
                    total += F.softplus(logits).sum()
                    if wanted:
                        gradient = logits.sigmoid_()
                        if matching and rows == columns:
                            gradient.diagonal().neg_()
                        bias_gradient += gradient.sum()
                        to_image[rows].addmm_(gradient, text[columns])
                        to_text[columns].addmm_(gradient.T, image[rows])
            if wanted:
                to_scale = (to_image * image).sum().to(scale.dtype).reshape(scale.shape)
                to_bias = bias_gradient.to(bias.dtype).reshape(bias.shape)
                context.save_for_backward(to_image.mul_(scale), to_text.mul_(scale), to_scale, to_bias)
        return total.to(image.dtype)

    @staticmethod
    @once_differentiable
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None, None]:
        """Return the gradients of image, text, scale and bias."""
        to_image, to_text, to_scale, to_bias = context.saved_tensors
        return to_image * upstream, to_text * upstream, to_scale * upstream, to_bias * upstream, None, None
