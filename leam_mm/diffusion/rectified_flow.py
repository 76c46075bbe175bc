"""Rectified flow: straight paths from data to noise (Liu et al. 2209.03003), logit-normal times (2403.03206)."""

import torch
from torch import Tensor

from leam_mm.diffusion.process import DiffusionProcess, expand_time
from leam_mm.diffusion.samplers import Path, flow_times, shift_time
from leam_mm.diffusion.time_shift import TimeShift
from leam_mm.errors import UserError


class RectifiedFlow(DiffusionProcess):
    """Straight paths x_t = (1 - t) clean + t noise; the network predicts their velocity, noise - clean.

    Args:
        time_mean: Mean of the normal whose sigmoid is the training time. 0 spends most samples around t = 0.5.
        time_std: Its standard deviation, above 0. Larger spreads the samples to both ends.
        shift: Moves training and sampling times towards noise, t -> s t / (1 + (s - 1) t); 1 keeps them. Large images
            need more (3 at 1024 pixels, section 5.3.2 of 2403.03206). A TimeShift depends on the size of the image.
        uniform_share: Share of samples, in [0, 1), with uniform, unshifted times, so that both ends are trained too;
            0.1 in PRX.
    """

    def __init__(
        self,
        time_mean: float = 0.0,
        time_std: float = 1.0,
        shift: float | TimeShift = 1.0,
        uniform_share: float = 0.0,
    ) -> None:
        """See the class for the arguments."""
        name = type(self).__name__
        if time_std <= 0 or (not isinstance(shift, TimeShift) and shift <= 0):
            raise UserError(f"{name}: time_std is {time_std} and shift {shift}; both must be above 0")
        if not 0 <= uniform_share < 1:
            raise UserError(f"{name}: uniform_share is {uniform_share}, but a share lies in [0, 1)")
        self.time_mean, self.time_std = time_mean, time_std
        self.shift, self.uniform_share = shift, uniform_share

    def path(self, time: Tensor) -> Path:
        """Return 1 - t and t, whose derivatives are -1 and 1."""
        t = time.double()
        return Path(1 - t, t, -torch.ones_like(t), torch.ones_like(t))

    def shift_at(self, positions: int | None) -> float:
        """Return the shift of latents with that many positions; None is enough if all sizes have the same shift."""
        if not isinstance(self.shift, TimeShift):
            return self.shift
        if positions is None:
            raise ValueError(f"the shift is a {type(self.shift).__name__}: it needs the number of latent positions")
        return self.shift.at(positions)

    def time(self, uniform: Tensor, positions: int | None = None) -> Tensor:
        """Return logit-normal times (B,): the sigmoid of normal numbers, from the inverse of their distribution.

        With a uniform share, the lowest of the uniform numbers are stretched to [0, 1] as uniform times, and the
        others to (0, 1) for the logit-normal ones: one number decides both the kind and the time.
        """
        share = self.uniform_share
        rest = ((uniform - share) / (1 - share)).clamp(0, 1) if share else uniform
        normal = torch.special.ndtri(rest)
        time = shift_time(torch.sigmoid(self.time_mean + self.time_std * normal), self.shift_at(positions))
        return torch.where(uniform < share, uniform / share, time) if share else time

    def corrupt(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return (1 - t) clean + t noise."""
        t = expand_time(time, clean)
        return (1 - t) * clean + t * noise

    def target(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return the velocity noise - clean, the same at every time."""
        return noise - clean

    def to_clean(self, x_t: Tensor, prediction: Tensor, time: Tensor) -> Tensor:
        """Return x_t - t v."""
        return x_t - expand_time(time, x_t) * prediction

    def to_velocity(self, x_t: Tensor, prediction: Tensor, time: Tensor) -> Tensor:
        """Return the prediction, which is the velocity."""
        return prediction

    def times(self, steps: int, positions: int | None = None) -> Tensor:
        """Return the grid of diffusers' FlowMatchEulerDiscreteScheduler with this shift."""
        return flow_times(steps, self.shift_at(positions))
