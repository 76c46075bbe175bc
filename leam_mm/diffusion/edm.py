"""The preconditioned diffusion of Karras et al. (EDM, 2206.00364), on our time.

The paper writes x = clean + sigma noise. Here sigma = sigma_min^(1-t) sigma_max^t, so that our time is the paper's
condition c_noise = ln(sigma) / 4 up to scale and origin; and the state is x_t = x / sqrt(1 + sigma^2), which at t = 1
is standard normal noise (up to 1 / sigma_max of data) as in all other processes. With sigma_data 1 the network
predicts -v of VariancePreserving from x_t itself.
"""

import math

import torch
from torch import Tensor

from leam_mm.diffusion.process import DiffusionProcess, expand_time
from leam_mm.diffusion.samplers import Path
from leam_mm.errors import UserError


class Edm(DiffusionProcess):
    """Scales input, output and loss so that network input and target have unit variance at all times.

    Noise of sigma_min is left at t = 0: the paper's last step, from there to 0, is left out.

    Args:
        sigma_data: Standard deviation of the data: 1 for our normalised latents (the paper's pixels have 0.5).
        log_sigma_mean: Mean of ln(sigma) in training. The paper's -1.2 for sigma_data 0.5 becomes -0.5 for data
            twice as wide.
        log_sigma_std: Its standard deviation, above 0 (1.2 in the paper's table 1).
        sigma_min: Noise at t = 0, above 0.
        sigma_max: Noise at t = 1.
        rho: Bends the grid of sampling times towards small noise (Eq. 5).
    """

    method = "heun"

    def __init__(
        self,
        sigma_data: float = 1.0,
        log_sigma_mean: float = -0.5,
        log_sigma_std: float = 1.2,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
    ) -> None:
        """See the class for the arguments."""
        if min(sigma_data, log_sigma_std, sigma_min, rho) <= 0 or sigma_max <= sigma_min:
            raise UserError(
                f"Edm: sigma_data {sigma_data}, log_sigma_std {log_sigma_std}, sigma_min {sigma_min} and rho {rho} "
                f"must be above 0, and sigma_max {sigma_max} above sigma_min"
            )
        self.sigma_data, self.log_sigma_mean, self.log_sigma_std = sigma_data, log_sigma_mean, log_sigma_std
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho
        self._log_range = math.log(sigma_max / sigma_min)

    def path(self, time: Tensor) -> Path:
        """Return 1 / sqrt(1 + sigma^2), sigma / sqrt(1 + sigma^2) and their derivatives."""
        sigma = self.noise_level(time)
        signal = (1 + sigma**2).rsqrt()
        rate = self._log_range * signal**3
        return Path(signal, sigma * signal, -(sigma**2) * rate, sigma * rate)

    def noise_level(self, time: Tensor) -> Tensor:
        """Return the paper's sigma (B,) at our times (B,), in double precision."""
        return self.sigma_min * torch.exp(self._log_range * time.double())

    def time(self, uniform: Tensor, positions: int | None = None) -> Tensor:
        """Return times (B,) whose ln(sigma) is normal (table 1), clamped to [0, 1]."""
        return self._time_of(self.log_sigma_mean + self.log_sigma_std * torch.special.ndtri(uniform)).clamp(0, 1)

    def _time_of(self, log_sigma: Tensor) -> Tensor:
        return (log_sigma - math.log(self.sigma_min)) / self._log_range

    def corrupt(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return (clean + sigma noise) / sqrt(1 + sigma^2)."""
        path = self.path(time)
        return expand_time(path.signal, clean) * clean + expand_time(path.sigma, clean) * noise

    def network_input(self, x_t: Tensor, time: Tensor) -> Tensor:
        """Return c_in x, of unit variance (table 1)."""
        sigma = self.noise_level(time)
        return expand_time(((1 + sigma**2) / (sigma**2 + self.sigma_data**2)).sqrt(), x_t) * x_t

    def target(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return (clean - c_skip x) / c_out, the effective target of Eq. 8.

        In clean and noise it is (sigma clean - sigma_data^2 noise) / (sigma_data sqrt(sigma^2 + sigma_data^2)). Its
        plain squared error is the paper's loss: the weight (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 of the
        denoiser's error is 1 / c_out^2.
        """
        sigma = self.noise_level(time)
        scale = self.sigma_data * (sigma**2 + self.sigma_data**2).sqrt()
        return expand_time(sigma / scale, clean) * clean - expand_time(self.sigma_data**2 / scale, clean) * noise

    def to_clean(self, x_t: Tensor, prediction: Tensor, time: Tensor) -> Tensor:
        """Return D = c_skip x + c_out F (Eq. 7)."""
        sigma = self.noise_level(time)
        total = sigma**2 + self.sigma_data**2
        skip = self.sigma_data**2 / total * (1 + sigma**2).sqrt()  # of x_t, which is x over the root
        return expand_time(skip, x_t) * x_t + expand_time(sigma * self.sigma_data / total.sqrt(), x_t) * prediction

    def to_velocity(self, x_t: Tensor, prediction: Tensor, time: Tensor) -> Tensor:
        """Return dx_t/dt = ln(sigma_max / sigma_min) (a^2 x_t - a D), a = 1 / sqrt(1 + sigma^2).

        It is dx/dsigma = (x - D) / sigma (Eqs. 1 and 3) through the product rule; nothing is divided by sigma.
        """
        signal = self.path(time).signal
        clean = self.to_clean(x_t, prediction, time)
        return self._log_range * (expand_time(signal**2, x_t) * x_t - expand_time(signal, x_t) * clean)

    def times(self, steps: int, positions: int | None = None) -> Tensor:
        """Return the times of steps + 1 noise levels whose rho-th roots are evenly spaced (Eq. 5)."""
        if steps < 1:
            raise ValueError(f"a sampler needs at least 1 step, got {steps}")
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        root = torch.linspace(high, low, steps + 1, dtype=torch.float64)
        time = self._time_of(self.rho * root.log())
        time[0], time[-1] = 1, 0  # exact in spite of rounding
        return time.float()
