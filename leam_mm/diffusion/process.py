"""Base class of diffusion processes: how data becomes noise, what the network predicts, and how to sample.

Time runs from 0 (data) to 1 (noise) everywhere. Nothing here draws a random number: callers pass noise and uniform
numbers, so that the randomness of the n-th sample can be a pure function of (seed, n).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from leam_mm.diffusion.samplers import (
    Clean,
    Method,
    Path,
    Velocity,
    sample_dpm,
    sample_euler,
    sample_heun,
    sample_sde,
)
from leam_mm.errors import UserError

Denoise = Callable[[Tensor, Tensor], Tensor]
"""Network with its condition bound: (input (B, ...), time (B,)) -> prediction (B, ...)."""


def expand_time(value: Tensor, like: Tensor) -> Tensor:
    """Return the (B,) values shaped (B, 1, ..., 1), so that they broadcast over `like` (B, ...)."""
    return value.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


class DiffusionProcess(ABC):
    """A path from clean data to Gaussian noise; subclasses define it in seven short methods on (B, ...) tensors.

    `positions`, h w of the latents, matters only if times depend on the size of the image.
    """

    method: Method = "euler"
    """Default sampler, which a released pipeline runs."""

    @abstractmethod
    def path(self, time: Tensor) -> Path:
        """Return the coefficients of the path at `time` (B,)."""

    @abstractmethod
    def time(self, uniform: Tensor, positions: int | None = None) -> Tensor:
        """Turn uniform numbers (B,) in (0, 1) into training times (B,) in [0, 1]."""

    @abstractmethod
    def corrupt(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return x_t, the point of the path between `clean` and `noise` at `time` (B,)."""

    @abstractmethod
    def target(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return the target of the network at x_t."""

    @abstractmethod
    def to_clean(self, x_t: Tensor, prediction: Tensor, time: Tensor) -> Tensor:
        """Return the clean data that the prediction implies."""

    @abstractmethod
    def to_velocity(self, x_t: Tensor, prediction: Tensor, time: Tensor) -> Tensor:
        """Return dx/dt of the probability flow, which the samplers integrate from t = 1 down to t = 0."""

    @abstractmethod
    def times(self, steps: int, positions: int | None = None) -> Tensor:
        """Return the falling grid (steps + 1,) from 1 (or nearly) to 0 on which a sampler calls the network."""

    def network_input(self, x_t: Tensor, time: Tensor) -> Tensor:
        """Return the network's input at x_t, which is x_t unless a process overrides this."""
        return x_t

    def weight(self, time: Tensor) -> Tensor:
        """Return the weight (B,) of each sample's error; 1 unless a process overrides this."""
        return time.new_ones(time.shape)

    def errors_at(self, denoise: Denoise, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return the weighted squared error (B, ...) of each element at the given times (B,)."""
        prediction = denoise(self.network_input(self.corrupt(clean, noise, time), time), time)
        error = _wide(prediction) - _wide(self.target(clean, noise, time))
        return expand_time(self.weight(time), error) * error.square()

    def loss_at(self, denoise: Denoise, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return the weighted mean squared error (B,) of each sample at the given times (B,)."""
        return self.errors_at(denoise, clean, noise, time).flatten(1).mean(1)

    def loss(self, denoise: Denoise, clean: Tensor, noise: Tensor, time_uniform: Tensor) -> Tensor:
        """Return the training loss (B,) of each sample; `time_uniform` (B,) in (0, 1) decides its time."""
        return self.loss_at(denoise, clean, noise, self.time(time_uniform, clean[0, 0].numel()))

    def velocity(self, denoise: Denoise) -> Velocity:
        """Bind a network: (x_t, time) -> dx/dt, for the samplers that integrate it."""
        return lambda x_t, time: self.to_velocity(x_t, denoise(self.network_input(x_t, time), time), time)

    def clean(self, denoise: Denoise) -> Clean:
        """Bind a network: (x_t, time) -> expected clean data, for the samplers that use it."""
        return lambda x_t, time: self.to_clean(x_t, denoise(self.network_input(x_t, time), time), time)

    def sample(
        self,
        denoise: Denoise,
        x: Tensor,
        times: Tensor,
        method: Method | None = None,
        fresh_noise: Callable[[int], Tensor] | None = None,
    ) -> Tensor:
        """Sample along the times with one of diffusion/samplers.py.

        Args:
            denoise: The network.
            x: (B, ...), the state at times[0]; noise, if that is 1.
            times: (steps + 1,), falling.
            method: None takes the process's default.
            fresh_noise: Number of a step -> standard normal numbers (B, ...); for `sde` only.
        """
        match method or self.method:
            case "euler":
                return sample_euler(self.velocity(denoise), x, times)
            case "heun":
                return sample_heun(self.velocity(denoise), x, times)
            case "dpm":
                return sample_dpm(self.clean(denoise), x, times, self.path)
            case "sde" if fresh_noise is not None:
                return sample_sde(self.clean(denoise), x, times, self.path, fresh_noise)
        raise UserError(f"there is no sampler {method!r}: use euler, heun, dpm, or sde with fresh_noise")


def _wide(value: Tensor) -> Tensor:
    """Convert half precision to float32, and keep wider types."""
    return value.to(torch.promote_types(value.dtype, torch.float32))
