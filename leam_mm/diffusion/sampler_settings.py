"""How a generator's images are sampled: one object for evaluators, audits, callbacks and programs.

sampling:
  steps: 20
  guidance: {scale: 3.0, low: 0.2, high: 0.8}
  method: heun
"""

import math
from dataclasses import dataclass
from typing import Any, get_args

from leam_mm.diffusion.guidance import Guidance
from leam_mm.diffusion.samplers import Method
from leam_mm.errors import UserError


@dataclass(frozen=True)
class SamplerSettings:
    """Settings of the sampler; with prompt, number and seed they decide an image.

    Args:
        steps: Number of steps, at least 1.
        guidance: Scale of classifier-free guidance, at least 0 (1 or less is off); or a Guidance.
        method: euler, heun, dpm or sde; None takes that of the generator's process, as a released pipeline does.
    """

    steps: int = 28
    guidance: float | Guidance = 4.0
    method: Method | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.steps < 1:
            raise UserError(f"sampling: steps is {self.steps}; give at least 1")
        scale = self.guidance.scale if isinstance(self.guidance, Guidance) else self.guidance
        if not (math.isfinite(scale) and scale >= 0):
            raise UserError(f"sampling: guidance is {scale}; give a number of at least 0")
        if self.method is not None and self.method not in get_args(Method):
            raise UserError(f"sampling: method is {self.method!r}; give one of {', '.join(get_args(Method))}")

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of a generator's ``sample``; a method that is None is left to the generator."""
        found: dict[str, Any] = {"steps": self.steps, "guidance": self.guidance}
        return found if self.method is None else found | {"method": self.method}

    def __str__(self) -> str:
        """Return the settings in words, for notes beside numbers."""
        method = "" if self.method is None else f", {self.method}"
        return f"{self.steps} steps, guidance {self.guidance}{method}"
