"""Time shift by image size: larger images need noisier times, since their neighbouring positions are more alike.

model:
  init_args:
    process:
      class_path: leam_mm.diffusion.rectified_flow.RectifiedFlow
      init_args:
        shift: {class_path: leam_mm.diffusion.time_shift.ResolutionShift, init_args: {base_positions: 256}}

Each bucket of sizes then trains and samples with its own shift.
"""

import math
from abc import ABC, abstractmethod

from leam_mm.errors import UserError


class TimeShift(ABC):
    """Maps the number of positions h w of a latent to the shift s in t -> s t / (1 + (s - 1) t)."""

    @abstractmethod
    def at(self, positions: int) -> float:
        """Return the shift, above 0, of latents with that many positions."""


class ResolutionShift(TimeShift):
    """Square-root law: latents of all sizes are equally uncertain at equal base times (Eq. 23 of 2403.03206).

    Args:
        base_positions: h w of the latents whose shift is `base_shift`.
        base_shift: Their shift, above 0.
    """

    def __init__(self, base_positions: int, base_shift: float = 1.0) -> None:
        """See the class for the arguments."""
        if base_positions < 1 or base_shift <= 0:
            raise UserError(
                f"ResolutionShift: base_positions {base_positions} and base_shift {base_shift} must both be above 0"
            )
        self.base_positions, self.base_shift = base_positions, base_shift

    def at(self, positions: int) -> float:
        """Return base_shift sqrt(positions / base_positions)."""
        return self.base_shift * math.sqrt(positions / self.base_positions)


class ExponentialShift(TimeShift):
    """Law of Flux (diffusers' `calculate_shift`): the logarithm of the shift is linear in the positions.

    Flux counts tokens of 2 x 2 positions; the defaults here are its numbers times four.

    Args:
        base_positions: h w at which the logarithm is `base_log_shift`.
        other_positions: h w at which it is `other_log_shift`.
        base_log_shift: See base_positions.
        other_log_shift: See other_positions.
    """

    def __init__(
        self,
        base_positions: int = 1024,
        other_positions: int = 16384,
        base_log_shift: float = 0.5,
        other_log_shift: float = 1.15,
    ) -> None:
        """See the class for the arguments."""
        if base_positions == other_positions:
            raise UserError(
                f"ExponentialShift: base_positions and other_positions are both {base_positions}: give two "
                "different numbers"
            )
        self.growth = (other_log_shift - base_log_shift) / (other_positions - base_positions)
        self.start = base_log_shift - self.growth * base_positions

    def at(self, positions: int) -> float:
        """Return the exponential of the line at that many positions."""
        return math.exp(self.start + self.growth * positions)
