"""Contrastive flow matching: predictions are pulled to their own target and pushed away from another sample's.

model:
  init_args:
    techniques:
    - {class_path: leam_mm.techniques.contrastive_flow.ContrastiveFlow}

Stoica et al. 2506.05350: |v - u|^2 - weight |v - u'|^2, where u' is the target of another sample of the batch.
"""

import torch
from torch import Tensor

from leam_mm.diffusion.process import expand_time
from leam_mm.errors import UserError
from leam_mm.techniques.technique import Technique, TrainingStep


class ContrastiveFlow(Technique):
    """Subtracts weight times the error against a partner's target from each sample's error.

    The partner of sample n is n xor 1, a function of the number alone: ranks and micro-batches do not change it as
    long as each holds whole pairs. Only with this technique the loss of a sample depends on another one. Partners are
    neighbours in a shuffled order, hence independent.

    The minimum is not the flow's velocity u* but (u* - weight E[u']) / (1 - weight), longer by 1 / (1 - weight) and
    shifted: with an independent partner the expected loss is (1 - weight) |v - that|^2 plus a constant. The paper's
    section on guidance subtracts the difference again; the samplers here and the released pipeline do not.

    List it before techniques that mask errors, so that both terms are masked.

    Args:
        weight: lambda, in [0, 1).
    """

    def __init__(self, weight: float = 0.05) -> None:
        """See the class for the arguments."""
        super().__init__()
        if not 0 <= weight < 1:
            raise UserError(
                f"ContrastiveFlow: weight is {weight}, but from 1 on the loss has no minimum: choose one in [0, 1)"
            )
        self.weight = weight

    def weigh(self, errors: Tensor, step: TrainingStep) -> Tensor:
        """Subtract the weighted errors (B, C, h, w) against the partners' targets at the same times."""
        assert step.prediction is not None
        other = partners(step.index)
        target = step.process.target(step.clean[other], step.noise[other], step.time).to(errors)
        repelled = expand_time(step.process.weight(step.time), errors) * (step.prediction.to(errors) - target).square()
        return errors - self.weight * repelled


def partners(index: Tensor) -> Tensor:
    """Return the row of each sample's partner, number n xor 1: (B,) int64 -> (B,) int64."""
    order = index.argsort(stable=True)
    if len(index) % 2 or not torch.equal(index[order[1::2]], index[order[::2]] ^ 1):
        raise UserError(
            f"ContrastiveFlow: the {len(index)} samples that a rank sees at a time must be whole pairs: make "
            "batch_size a multiple of 2 x ranks x accumulated batches"
        )
    row = torch.empty_like(order)
    row[order] = order.unflatten(0, (-1, 2)).flip(1).flatten()
    return row
