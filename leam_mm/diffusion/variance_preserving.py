"""Variance-preserving diffusion with v-prediction (Salimans and Ho, 2202.00512), optionally min-SNR weighted.

x_t = a(t) clean + s(t) noise with a^2 + s^2 = 1, and v = a noise - s clean. So clean = a x_t - s v and
noise = s x_t + a v: no division, hence no singular end.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from leam_mm.diffusion.process import DiffusionProcess, expand_time

TABLE_STEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012  # Stable Diffusion's "scaled linear" schedule


class VariancePreserving(DiffusionProcess):
    """Circular paths from data to noise; the network predicts v.

    Args:
        schedule: `cosine` is a(t) = cos(pi t / 2), exact data at 0 and exact noise at 1 (2202.00512). `sd_linear` is
            the schedule of Stable Diffusion, read at step 1000 t and log-linear between steps; it keeps a little
            noise at 0 and a little signal at 1, as the original does.
        min_snr: Gamma of min-SNR weighting (Hang et al. 2303.09556; 5 is the paper's value); None weights v evenly.
    """

    def __init__(self, schedule: Literal["cosine", "sd_linear"] = "cosine", min_snr: float | None = None) -> None:
        """See the class for the arguments."""
        self.schedule = schedule
        self.min_snr = min_snr
        beta = torch.linspace(BETA_START**0.5, BETA_END**0.5, TABLE_STEPS, dtype=torch.float64) ** 2
        log_signal = torch.log1p(-beta).cumsum(0)  # log a^2 at step i = 1000 t
        # One more point, so that t = 1 (step 1000) lies inside the table: the last slope goes on.
        self._log_signal = torch.cat([log_signal, 2 * log_signal[-1:] - log_signal[-2:-1]])

    def time(self, uniform: Tensor) -> Tensor:
        """Return the uniform numbers: every time is trained equally often."""
        return uniform

    def corrupt(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return a clean + s noise."""
        signal, sigma, _, _ = self._coefficients(time, clean)
        return signal * clean + sigma * noise

    def target(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return v = a noise - s clean."""
        signal, sigma, _, _ = self._coefficients(time, clean)
        return signal * noise - sigma * clean

    def to_clean(self, x_t: Tensor, prediction: Tensor, time: Tensor) -> Tensor:
        """Return a x_t - s v."""
        signal, sigma, _, _ = self._coefficients(time, x_t)
        return signal * x_t - sigma * prediction

    def to_velocity(self, x_t: Tensor, prediction: Tensor, time: Tensor) -> Tensor:
        """Return a' clean + s' noise with both as the prediction implies them."""
        signal, sigma, signal_slope, sigma_slope = self._coefficients(time, x_t)
        clean = signal * x_t - sigma * prediction
        noise = sigma * x_t + signal * prediction
        return signal_slope * clean + sigma_slope * noise

    def times(self, steps: int) -> Tensor:
        """Return steps + 1 evenly spaced times from 1 to 0."""
        return torch.linspace(1.0, 0.0, steps + 1)

    def weight(self, time: Tensor) -> Tensor:
        """Return min(SNR, gamma) / (SNR + 1), min-SNR for v-prediction, which is min(a^2, gamma s^2)."""
        if self.min_snr is None:
            return super().weight(time)
        signal, sigma, _, _ = self._coefficients(time, time)
        return torch.minimum(signal**2, self.min_snr * sigma**2)

    def _coefficients(self, time: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return a, s, da/dt, ds/dt in double precision's accuracy, shaped to broadcast over `like`."""
        t = time.double()
        if self.schedule == "cosine":
            quarter = math.pi / 2
            signal, sigma = torch.cos(quarter * t), torch.sin(quarter * t)
            slopes = (-quarter * sigma, quarter * signal)
        else:
            table = self._log_signal.to(time.device)
            step = (t * TABLE_STEPS).clamp(0, TABLE_STEPS)
            below = step.floor().long().clamp(max=TABLE_STEPS - 1)
            slope = table[below + 1] - table[below]
            log_signal = table[below] + (step - below) * slope
            signal, sigma = torch.exp(log_signal / 2), torch.sqrt(-torch.expm1(log_signal))
            change = slope * TABLE_STEPS / 2
            slopes = (signal * change, -(signal**2) * change / sigma)
        return tuple(expand_time(value, like) for value in (signal, sigma, *slopes))  # type: ignore[return-value]
