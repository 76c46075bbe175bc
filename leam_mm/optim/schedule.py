"""Learning-rate schedules: linear warm-up, then a constant rate with an optional cool-down, or half a cosine.

schedule: {warmup_steps: 2000}                                                    # cosine
schedule: {warmup_steps: 2000, kind: constant}
schedule: {warmup_steps: 2000, kind: constant, cooldown: {steps: 500, shape: linear}}
"""

import math
from dataclasses import dataclass
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from leam_mm.errors import UserError


@dataclass(frozen=True)
class Cooldown:
    """Fall at the end of a constant schedule: a long run can be ended or continued at any point before it.

    Args:
        steps: Optimizer steps of the fall.
        shape: After a share x of the fall, ``sqrt`` leaves 1 - sqrt(x) of the rate (2405.18392), ``linear`` 1 - x.
    """

    steps: int
    shape: Literal["sqrt", "linear"] = "sqrt"

    def __post_init__(self) -> None:
        """Check the range."""
        if self.steps < 1:
            raise UserError(f"schedule.cooldown.steps is {self.steps}: give at least 1, or leave cooldown out")


def fallen_share(progress: float, shape: Literal["sqrt", "linear"]) -> float:
    """Return how much of the rate is gone after a share of a cool-down."""
    return math.sqrt(min(1.0, progress)) if shape == "sqrt" else min(1.0, progress)


@dataclass(frozen=True)
class Schedule:
    """Learning rate during a run, as a multiple of the optimizer's own rate.

    Args:
        warmup_steps: Optimizer steps of the linear rise; 0 starts at the full rate.
        kind: What follows the warm-up: the full rate, or half a cosine down to ``final_rate`` at the last step.
        final_rate: Share of the full rate that is left at the end of a cosine or cool-down, in [0, 1].
        cooldown: Fall at the end of a constant schedule; None for no fall.
    """

    warmup_steps: int = 100
    kind: Literal["constant", "cosine"] = "cosine"
    final_rate: float = 0.0
    cooldown: Cooldown | None = None

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        if self.kind != "constant" and self.cooldown is not None:
            raise UserError(
                f"schedule.cooldown follows a constant rate, but schedule.kind is {self.kind}: set constant"
            )

    def factor(self, step: float, total_steps: float) -> float:
        """Multiple of the full rate at an optimizer step, counted from 0.

        Args:
            step: Optimizer step; a fraction if the batch size was changed (rate_plan.py).
            total_steps: Optimizer steps of the whole run; infinite if the run has no planned end.
        """
        if step < self.warmup_steps:
            return min(1.0, (step + 1) / self.warmup_steps)
        if self.kind == "cosine":
            progress = min(1.0, (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps))
            return self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))
        if self.cooldown is None or step < total_steps - self.cooldown.steps:
            return 1.0
        progress = min(1.0, (step - (total_steps - self.cooldown.steps)) / self.cooldown.steps)
        return self.final_rate + (1 - self.final_rate) * (1 - fallen_share(progress, self.cooldown.shape))

    def build(self, optimizer: Optimizer, total_steps: float) -> LambdaLR:
        """Attach the schedule to an optimizer.

        Args:
            optimizer: The current rates of its groups become the full rates.
            total_steps: Optimizer steps of the whole run (``trainer.estimated_stepping_batches``).

        Raises:
            UserError: Warm-up and cool-down are longer than the run.
        """
        if self.cooldown is not None and self.warmup_steps + self.cooldown.steps > total_steps:
            raise UserError(
                f"schedule: {self.warmup_steps} steps of warm-up and {self.cooldown.steps} of cool-down do not fit "
                f"into a run of {total_steps}: shorten them, or raise max_samples"
            )
        return LambdaLR(optimizer, lambda step: self.factor(step, total_steps))
