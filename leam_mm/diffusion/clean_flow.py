"""Rectified flow whose network predicts the clean data (Li and He, 2511.13720): x-prediction with the loss on v."""

from torch import Tensor

from leam_mm.diffusion.process import expand_time
from leam_mm.diffusion.rectified_flow import RectifiedFlow
from leam_mm.diffusion.time_shift import TimeShift
from leam_mm.errors import UserError


class CleanFlow(RectifiedFlow):
    """Straight paths; the network predicts the clean data, and the loss is the error of the implied velocity.

    v = (x_t - clean) / t, so the error of v is that of the clean data over t, and the loss weighs it by 1 / t^2. Clean
    data lies near a manifold of few dimensions, while noise and velocity fill the space: a narrow network can learn
    the first only. The velocity is undefined at t = 0 exactly, where no sampler here evaluates it.

    Args:
        time_mean: See RectifiedFlow. The paper's -0.8, counted from noise to data, is 0.8 here, with time_std 0.8.
        time_std: See RectifiedFlow.
        shift: See RectifiedFlow.
        uniform_share: See RectifiedFlow.
        least_time: Times below it get its weight; above 0 (the paper's code and PRX clip at 0.05).
    """

    def __init__(
        self,
        time_mean: float = 0.8,
        time_std: float = 0.8,
        shift: float | TimeShift = 1.0,
        uniform_share: float = 0.0,
        least_time: float = 0.05,
    ) -> None:
        """See the class for the arguments."""
        super().__init__(time_mean, time_std, shift, uniform_share)
        if not 0 < least_time <= 1:
            raise UserError(f"CleanFlow: least_time is {least_time}: give a time in (0, 1]")
        self.least_time = least_time

    def target(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return the clean data."""
        return clean

    def to_clean(self, x_t: Tensor, prediction: Tensor, time: Tensor) -> Tensor:
        """Return the prediction, which is the clean data."""
        return prediction

    def to_velocity(self, x_t: Tensor, prediction: Tensor, time: Tensor) -> Tensor:
        """Return (x_t - prediction) / t."""
        return (x_t - prediction) / expand_time(time, x_t)

    def weight(self, time: Tensor) -> Tensor:
        """Return 1 / max(t, least_time)^2, which makes it the error of the velocity (v-loss in table 1)."""
        return time.clamp(min=self.least_time) ** -2
