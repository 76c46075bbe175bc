"""Rectified flow: straight paths from data to noise (Liu et al. 2209.03003), logit-normal times (2403.03206)."""

import torch
from torch import Tensor

from leam_mm.diffusion.process import DiffusionProcess, expand_time
from leam_mm.diffusion.samplers import flow_times, shift_time


class RectifiedFlow(DiffusionProcess):
    """Straight paths x_t = (1 - t) clean + t noise; the network predicts their velocity, noise - clean.

    Args:
        time_mean: Mean of the normal whose sigmoid is the training time. 0 spends most samples around t = 0.5.
        time_std: Its standard deviation, above 0. Larger spreads the samples to both ends.
        shift: Moves training and sampling times towards noise, t -> s t / (1 + (s - 1) t); 1 leaves them. Large
            pictures need more (3 at 1024 pixels, section 5.3.2 of 2403.03206).
    """

    def __init__(self, time_mean: float = 0.0, time_std: float = 1.0, shift: float = 1.0) -> None:
        """See the class for the arguments."""
        if time_std <= 0 or shift <= 0:
            raise ValueError(f"RectifiedFlow needs time_std and shift above 0, got {time_std} and {shift}")
        self.time_mean = time_mean
        self.time_std = time_std
        self.shift = shift

    def time(self, uniform: Tensor) -> Tensor:
        """Return logit-normal times (B,): sigmoid of a normal, drawn through the inverse normal distribution."""
        normal = torch.special.ndtri(uniform)
        return shift_time(torch.sigmoid(self.time_mean + self.time_std * normal), self.shift)

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

    def times(self, steps: int) -> Tensor:
        """Return the grid that diffusers' FlowMatchEulerDiscreteScheduler takes with this shift."""
        return flow_times(steps, self.shift)
