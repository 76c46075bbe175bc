"""Distillation from stored embeddings of larger encoders (MobileCLIP, 2311.17049).

The teacher's rows of similarities within the batch, as a distribution over texts (and columns, over images), are the
target of the student's: L = 1/2 mean_i KL(T_i || P_i) + 1/2 mean_j KL(T'_j || P'_j), averaged over the teachers. The
teachers' embeddings are stored with the samples, so no step runs a teacher.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from leam_mm.errors import UserError
from leam_mm.losses.contrastive import ContrastiveLoss
from leam_mm.losses.logit_tiles import parts


class DistillationTiles(torch.autograd.Function):
    """Divergence of the student's rows and columns from one teacher's, without storing the matrix of logits.

    The first pass over the tiles computes the softmaxes' denominators, the second value and gradient together. The
    gradient of a logit is ((P - T) + (P' - T')) / 2B.
    """

    @staticmethod
    def forward(
        context: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        teacher_image: Tensor,
        teacher_text: Tensor,
        teacher_scale: float,
        tile: int,
    ) -> Tensor:
        """Return the divergence in nats, averaged over the batch and both directions."""
        count, wanted = len(image), any(context.needs_input_grad)
        to_image, to_text = (torch.zeros_like(side) if wanted else side for side in (image, text))
        total = torch.zeros((), dtype=torch.float64, device=image.device)
        with torch.autocast(image.device.type, enabled=False):
            row, column = _denominators(image, text, scale, tile)
            teacher_row, teacher_column = _denominators(teacher_image, teacher_text, teacher_scale, tile)
            for rows in parts(count, tile):
                scaled, teacher_scaled = scale * image[rows], teacher_scale * teacher_image[rows]
                for columns in parts(count, tile):
                    logits, teacher = scaled @ text[columns].T, teacher_scaled @ teacher_text[columns].T
                    gradient = torch.zeros_like(logits) if wanted else logits
                    for mine, theirs in (
                        (logits - row[rows, None], teacher - teacher_row[rows, None]),
                        (logits - column[columns], teacher - teacher_column[columns]),
                    ):
                        target = theirs.exp()
                        total += (target * (theirs - mine)).sum()
                        if wanted:
                            gradient.add_(mine.exp_()).sub_(target)
                    if wanted:
                        to_image[rows].addmm_(gradient, text[columns])
                        to_text[columns].addmm_(gradient.T, image[rows])
            if wanted:
                to_scale = ((to_image * image).sum() / (2 * count)).to(scale.dtype).reshape(scale.shape)
                factor = scale / (2 * count)
                context.save_for_backward(to_image.mul_(factor), to_text.mul_(factor), to_scale)
        return (total / (2 * count)).to(image.dtype)

    @staticmethod
    @once_differentiable
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of image, text and scale."""
        to_image, to_text, to_scale = context.saved_tensors
        return to_image * upstream, to_text * upstream, to_scale * upstream, None, None, None, None


def _denominators(image: Tensor, text: Tensor, scale: Tensor | float, tile: int) -> tuple[Tensor, Tensor]:
    """Return the log-sum-exp of each row and each column of the logits, (B,) each."""
    row, column = (torch.full((len(image),), -torch.inf, dtype=image.dtype, device=image.device) for _ in range(2))
    for rows in parts(len(image), tile):
        scaled = scale * image[rows]
        for columns in parts(len(image), tile):
            logits = scaled @ text[columns].T
            row[rows] = torch.logaddexp(row[rows], logits.logsumexp(dim=1))
            column[columns] = torch.logaddexp(column[columns], logits.logsumexp(dim=0))
    return row, column


@dataclass(frozen=True)
class Teacher:
    """One encoder whose embeddings are stored with the samples.

    Args:
        size: D', dimension of its embeddings.
        scale: Inverse temperature of its similarities (100 for most CLIP models).
    """

    size: int
    scale: float = 100.0


class Distillation(ContrastiveLoss):
    """Weighted sum of a contrastive loss and the divergence from teachers (2311.17049).

    Args:
        loss: The contrastive part; its own ``needs`` must be empty.
        teachers: In the order in which their embeddings are concatenated in the batch.
        weight: Lambda, the weight of the divergence, in [0, 1]; the contrastive part has 1 - lambda.
        tile: Side of the squares in which logits are computed and discarded.
    """

    needs = ("teacher_image", "teacher_text")

    def __init__(self, loss: ContrastiveLoss, teachers: list[Teacher], weight: float = 0.5, tile: int = 1024) -> None:
        """See the class for the arguments."""
        super().__init__()
        if not teachers or any(teacher.size < 1 or teacher.scale <= 0 for teacher in teachers):
            raise UserError("Distillation: name at least one teacher, with a size of at least 1 and a scale above 0")
        if not 0 <= weight <= 1 or tile < 1:
            raise UserError(f"Distillation: weight {weight} must lie in [0, 1] and tile {tile} must be at least 1")
        if loss.needs:
            raise UserError(
                f"Distillation: the inner loss {type(loss).__name__} needs {', '.join(loss.needs)}: use another"
            )
        self.loss, self.teachers, self.weight, self.tile = loss, teachers, weight, tile

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        teacher_image: Tensor | None = None,
        teacher_text: Tensor | None = None,
    ) -> Tensor:
        """See ContrastiveLoss.

        Args:
            image: (B, D), unit length.
            text: (B, D), unit length.
            scale: Inverse temperature of the student.
            bias: Bias of the contrastive part; it cancels in the divergence.
            teacher_image: (B, sum of D'), not necessarily of unit length.
            teacher_text: (B, sum of D'), of the same captions. If both are None, as in validation, the result is the
                contrastive part alone.
        """
        contrastive = self.loss(image, text, scale, bias)
        if teacher_image is None or teacher_text is None:
            return contrastive
        sizes = [teacher.size for teacher in self.teachers]
        for name, stored in (("teacher_image", teacher_image), ("teacher_text", teacher_text)):
            if stored.shape[-1] != sum(sizes):
                raise UserError(
                    f"the batch's {name} has {stored.shape[-1]} values per sample, but the teachers of the loss have "
                    f"{sizes}: configure the teachers that the shards were written with"
                )
        sides = (
            [F.normalize(part.to(image), dim=-1) for part in stored.split(sizes, dim=-1)]
            for stored in (teacher_image, teacher_text)
        )
        found = [
            DistillationTiles.apply(image, text, scale, first, second, teacher.scale, self.tile)
            for teacher, first, second in zip(self.teachers, *sides, strict=True)
        ]
        return (1 - self.weight) * contrastive + self.weight * torch.stack(found).mean()
