"""Contrastive loss over the whole data set, from small batches: SogCLR (2202.12387) and FastCLIP (2407.01445).

With x_ij the logit of image i and text j of a data set of n pairs, the softmax loss of all pairs at once is

    1/2n sum_i [log(epsilon + g_i) + log(epsilon + h_i)] + log(n - 1),
    g_i = mean over j != i of exp(x_ij - x_ii),  h_i = mean over j != i of exp(x_ji - x_ii),  epsilon = 1 / (n - 1).

A batch gives unbiased estimates of g_i and h_i, but not of their logarithms: gradients of small batches are biased.
Each sample therefore keeps running estimates u of its g and h over the batches it was in (2202.12387, algorithm 1),

    u <- (1 - gamma) u + gamma g(batch),  gradient = 1/(epsilon + u) grad g(batch),

and if u is exact, the mean gradient of small batches is that of the whole data set. The logarithms of u are stored,
since exp(x_ij - x_ii) overflows float32 at usual temperatures; every number below stays bounded.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from leam_mm.errors import UserError
from leam_mm.losses.contrastive import ContrastiveLoss
from leam_mm.losses.logit_tiles import own_logits, parts


def log_means(image: Tensor, text: Tensor, scale: Tensor, tile: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits of the matching pairs, log g and log h of a batch; (B,) each."""
    count = len(image)
    own = own_logits(image, text, scale, tile)
    row, column = torch.full_like(own, -torch.inf), torch.full_like(own, -torch.inf)
    for rows in parts(count, tile):
        scaled = scale * image[rows]
        for columns in parts(count, tile):
            logits = scaled @ text[columns].T
            if rows == columns:
                logits.fill_diagonal_(-torch.inf)
            row[rows] = torch.logaddexp(row[rows], (logits - own[rows, None]).logsumexp(dim=1))
            column[columns] = torch.logaddexp(column[columns], logits.sub_(own[columns]).logsumexp(dim=0))
    return own, row - math.log(count - 1), column - math.log(count - 1)


class GlobalTiles(torch.autograd.Function):
    """Mean of log(epsilon + u) over both sides, with the gradient of algorithm 1, tile by tile."""

    @staticmethod
    def forward(
        context: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        own: Tensor,
        means: tuple[Tensor, Tensor],
        outer: tuple[Tensor, Tensor],
        tile: int,
    ) -> Tensor:
        """Return the scalar mean; own and means are those of `log_means`, outer holds log(epsilon + u), (B,) each."""
        context.save_for_backward(image, text, scale, own, *means, *outer)
        context.tile = tile
        return (outer[0].mean() + outer[1].mean()) / 2

    @staticmethod
    @once_differentiable
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of image, text and scale."""
        image, text, scale, own, row, column, row_outer, column_outer = context.saved_tensors
        count = len(image)
        to_image, to_text = torch.zeros_like(image), torch.zeros_like(text)
        with torch.autocast(image.device.type, enabled=False):
            # The gradient of each logit x_ij is exp(x_ij - x_ii - log(B - 1)) / (epsilon + u_i), likewise for columns.
            below, aside = (own + math.log(count - 1) + outer for outer in (row_outer, column_outer))
            for rows in parts(count, context.tile):
                scaled = scale * image[rows]
                for columns in parts(count, context.tile):
                    logits = scaled @ text[columns].T
                    if rows == columns:
                        logits.fill_diagonal_(-torch.inf)
                    gradient = (logits - aside[columns]).exp_().add_(logits.sub_(below[rows, None]).exp_())
                    to_image[rows].addmm_(gradient, text[columns])
                    to_text[columns].addmm_(gradient.T, image[rows])
            # That of x_ii is minus the sum over its row and its column.
            taken = ((row - row_outer).exp() + (column - column_outer).exp())[:, None]
            to_image.sub_(taken * text)
            to_text.sub_(taken * image)
            to_scale = (to_image * image).sum() * (upstream / (2 * count))
            factor = scale * upstream / (2 * count)
        to_scale = to_scale.to(scale.dtype).reshape(scale.shape)
        return to_image.mul_(factor), to_text.mul_(factor), to_scale, None, None, None, None


class GlobalContrastive(ContrastiveLoss):
    """Softmax over the whole data set, from batches of any size.

    The estimates are stored per sample of the data set, in the checkpoint too: 8 bytes a sample. A sample's first visit
    sets them to the value of its batch. With K captions per image, each caption counts as a visit.

    Args:
        samples: n, number of pairs in the data set (all folders of ``data.train`` together).
        gamma: Weight of a new batch in the running estimates, in (0, 1].
        decay_epochs: Passes over the data in which gamma falls from 1 by half a cosine, one step per pass (the cosine
            schedule of 2407.01445); 0 uses ``gamma`` from the start.
        epsilon: Added to the estimates; None is 1 / (n - 1), for which the loss is InfoNCE of the whole data set.
        rho: None learns the temperature as InfoNCE does. A number selects the robust loss with one temperature of
            2407.01445 (v3, RGCL-g): everything times 1 / scale, plus rho / scale.
        tile: Side of the squares in which logits are computed and discarded.
    """

    needs = ("sample_row",)
    image_estimate: Tensor
    text_estimate: Tensor
    visits: Tensor

    def __init__(
        self,
        samples: int,
        gamma: float = 0.2,
        decay_epochs: int = 0,
        epsilon: float | None = None,
        rho: float | None = None,
        tile: int = 1024,
    ) -> None:
        """See the class for the arguments."""
        super().__init__()
        if samples < 2 or tile < 1 or decay_epochs < 0:
            raise UserError(
                f"GlobalContrastive: samples {samples}, tile {tile}, decay_epochs {decay_epochs}: "
                "give at least 2 samples, a tile of at least 1 and no negative number of epochs"
            )
        if not 0 < gamma <= 1 or (epsilon is not None and epsilon <= 0) or (rho is not None and rho < 0):
            raise UserError(
                f"GlobalContrastive: gamma {gamma} must lie in (0, 1], epsilon {epsilon} above 0, rho {rho} not below 0"
            )
        self.samples, self.gamma, self.decay_epochs, self.rho, self.tile = samples, gamma, decay_epochs, rho, tile
        self.log_epsilon = -math.log(samples - 1) if epsilon is None else math.log(epsilon)
        # Logarithms, minus infinity before the first visit.
        self.register_buffer("image_estimate", torch.full((samples,), -torch.inf))
        self.register_buffer("text_estimate", torch.full((samples,), -torch.inf))
        self.register_buffer("visits", torch.zeros((), dtype=torch.int64))

    def forward(
        self, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None, sample_row: Tensor | None = None
    ) -> Tensor:
        """See ContrastiveLoss; a bias cancels and is ignored.

        Args:
            image: (B, D), unit length.
            text: (B, D), unit length.
            scale: Inverse temperature.
            bias: Ignored.
            sample_row: (B,) int64 in [0, n), indices of the samples in the data set. None, as in validation, uses the
                batch's values as estimates and updates nothing.
        """
        if len(image) < 2:
            raise UserError("GlobalContrastive needs at least two samples in a batch: raise data.init_args.batch_size")
        with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            own, row, column = log_means(image, text, scale, self.tile)
            estimates = (row, column) if sample_row is None else self._update(sample_row, row, column)
            floor = torch.full_like(row, self.log_epsilon)
            outer = tuple(torch.logaddexp(floor, estimate.to(row)) for estimate in estimates)
        loss = GlobalTiles.apply(image, text, scale, own, (row, column), outer, self.tile)
        if self.rho is None:
            return loss + math.log(self.samples - 1)  # InfoNCE of all n if the estimates are exact
        return (loss + self.rho) / scale

    def log_gamma(self) -> tuple[Tensor, Tensor]:
        """Return the logarithms of gamma and 1 - gamma for this batch, without synchronising the device."""
        passes = torch.div(self.visits, self.samples, rounding_mode="floor").double()
        share = (passes / self.decay_epochs).clamp(max=1.0) if self.decay_epochs else torch.ones_like(passes)
        gamma = self.gamma + (1 - self.gamma) * 0.5 * (1 + torch.cos(math.pi * share))
        return gamma.log(), (-gamma).log1p()

    def _update(self, sample_row: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """Update the batch's estimates and return them, (B,) each."""
        new, old = (part.to(self.image_estimate.dtype) for part in self.log_gamma())
        # A sample that occurs twice in the batch keeps the value of its last occurrence, on every rank and device.
        order = sample_row.argsort(stable=True)
        last = order[torch.searchsorted(sample_row[order], sample_row, right=True) - 1]
        found = []
        for estimate, value in ((self.image_estimate, row), (self.text_estimate, column)):
            value = value.to(estimate)
            before = estimate[sample_row]
            moved = torch.where(before.isneginf(), value, torch.logaddexp(before + old, value + new))
            estimate[sample_row] = moved[last]
            found.append(moved)
        self.visits += len(sample_row)
        return found[0], found[1]
