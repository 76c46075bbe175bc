"""Variance-preserving diffusion: v-prediction (Salimans and Ho, 2202.00512), noise- and clean prediction, min-SNR.

x_t = a(t) clean + s(t) noise with a^2 + s^2 = 1, and v = a noise - s clean. So clean = a x_t - s v and
noise = s x_t + a v: no division, hence no singularity. Each of the two other predictions is singular at one end.
"""

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from leam_mm.diffusion.process import DiffusionProcess, expand_time
from leam_mm.diffusion.samplers import Path
from leam_mm.errors import UserError

TABLE_STEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012  # Stable Diffusion's "scaled linear" schedule


class VariancePreserving(DiffusionProcess):
    """Circular paths from data to noise; the network predicts v.

    Args:
        schedule: `cosine` is a(t) = cos(pi t / 2), exact data at 0 and exact noise at 1 (2202.00512). `sd_linear` is
            the schedule of Stable Diffusion, read at step 1000 t and log-cubic between steps; as the original, it
            keeps a little noise at 0 and a little signal at 1. It can be released.
        min_snr: Gamma of min-SNR weighting (Hang et al. 2303.09556; 5 in the paper); None weights all times equally.
    """

    method = "dpm"
    prediction_type = "v_prediction"  # its name in diffusers' schedulers

    def __init__(self, schedule: Literal["cosine", "sd_linear"] = "cosine", min_snr: float | None = None) -> None:
        """See the class for the arguments."""
        if min_snr is not None and min_snr <= 0:
            raise UserError(f"{type(self).__name__}: min_snr is {min_snr}; give a number above 0, or null for none")
        self.schedule = schedule
        self.min_snr = min_snr
        beta = torch.linspace(BETA_START**0.5, BETA_END**0.5, TABLE_STEPS, dtype=torch.float64) ** 2
        log_signal = torch.log1p(-beta).cumsum(0)  # log a^2 at step i = 1000 t
        # One more point, extrapolated linearly, so that t = 1 (step 1000) lies inside the table.
        self._log_signal = torch.cat([log_signal, 2 * log_signal[-1:] - log_signal[-2:-1]])
        # Cubic between the steps: the table itself at whole steps, and a continuous derivative for the samplers.
        self._derivative = torch.gradient(self._log_signal)[0]

    def path(self, time: Tensor) -> Path:
        """Return a, s and their derivatives."""
        t = time.double()
        if self.schedule == "cosine":
            quarter = math.pi / 2
            signal, sigma = torch.cos(quarter * t), torch.sin(quarter * t)
            return Path(signal, sigma, -quarter * sigma, quarter * signal)
        table, derivative = self._log_signal.to(time.device), self._derivative.to(time.device)
        step = (t * TABLE_STEPS).clamp(0, TABLE_STEPS)
        below = step.floor().long().clamp(max=TABLE_STEPS - 1)
        rise, part = table[below + 1] - table[below], step - below
        start, end = derivative[below], derivative[below + 1]
        square, cube = 3 * rise - 2 * start - end, start + end - 2 * rise
        log_signal = table[below] + part * (start + part * (square + part * cube))
        signal, sigma = torch.exp(log_signal / 2), torch.sqrt(-torch.expm1(log_signal))
        change = (start + part * (2 * square + 3 * part * cube)) * TABLE_STEPS / 2
        return Path(signal, sigma, signal * change, -(signal**2) * change / sigma)

    def time(self, uniform: Tensor, positions: int | None = None) -> Tensor:
        """Return the uniform numbers: all times are trained equally often."""
        return uniform

    def corrupt(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return a clean + s noise."""
        signal, sigma, _, _ = self._along(time, clean)
        return signal * clean + sigma * noise

    def target(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return v = a noise - s clean."""
        signal, sigma, _, _ = self._along(time, clean)
        return signal * noise - sigma * clean

    def to_clean(self, x_t: Tensor, prediction: Tensor, time: Tensor) -> Tensor:
        """Return the clean data that the prediction implies, a x_t - s v."""
        return self._implied(x_t, prediction, self._along(time, x_t))[0]

    def to_velocity(self, x_t: Tensor, prediction: Tensor, time: Tensor) -> Tensor:
        """Return a' clean + s' noise, with the clean data and noise that the prediction implies."""
        path = self._along(time, x_t)
        clean, noise = self._implied(x_t, prediction, path)
        return path.signal_rate * clean + path.sigma_rate * noise

    def times(self, steps: int, positions: int | None = None) -> Tensor:
        """Return steps + 1 evenly spaced times from 1 to 0.

        Those of `sd_linear` are whole steps of the table and start at its last, 0.999, as in diffusers' schedulers.
        """
        if steps < 1:
            raise ValueError(f"a sampler needs at least 1 step, got {steps}")
        if self.schedule == "cosine":
            return torch.linspace(1.0, 0.0, steps + 1)
        return torch.from_numpy(np.linspace(0, TABLE_STEPS - 1, steps + 1).round()[::-1] / TABLE_STEPS).float()

    def weight(self, time: Tensor) -> Tensor:
        """Return the min-SNR weight of this prediction: min(SNR, gamma) / (SNR + 1) = min(a^2, gamma s^2)."""
        if self.min_snr is None:
            return super().weight(time)
        return self._min_snr(self._along(time, time), self.min_snr)

    def _min_snr(self, path: Path, gamma: float) -> Tensor:
        return torch.minimum(path.signal**2, gamma * path.sigma**2)

    def _implied(self, x_t: Tensor, prediction: Tensor, path: Path) -> tuple[Tensor, Tensor]:
        """Return the clean data and noise that the prediction at x_t implies."""
        signal, sigma = path.signal, path.sigma
        return signal * x_t - sigma * prediction, sigma * x_t + signal * prediction

    def _along(self, time: Tensor, like: Tensor) -> Path:
        """Return the path in the type of `like`, shaped to broadcast over it."""
        return Path(*(expand_time(value, like) for value in self.path(time)))


class VariancePreservingNoise(VariancePreserving):
    """The same paths; the network predicts the noise, as DDPM and Stable Diffusion 1 do (2006.11239).

    Args:
        schedule: `sd_linear` only: at t = 1 of `cosine` no data is left, and a prediction of the noise says nothing
            about it (section 3 of 2305.08891).
        min_snr: Gamma of min-SNR weighting; None weights all times equally.
    """

    prediction_type = "epsilon"

    def __init__(self, schedule: Literal["sd_linear"] = "sd_linear", min_snr: float | None = None) -> None:
        """See the class for the arguments."""
        if schedule != "sd_linear":
            raise UserError(
                f"VariancePreservingNoise: schedule {schedule!r} ends in pure noise, where predicted noise does not "
                "determine the data: choose sd_linear, or predict v with VariancePreserving"
            )
        super().__init__(schedule, min_snr)

    def target(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return the noise."""
        return noise

    def _min_snr(self, path: Path, gamma: float) -> Tensor:
        """Return min(SNR, gamma) / SNR."""
        return (gamma * (path.sigma / path.signal) ** 2).clamp(max=1)

    def _implied(self, x_t: Tensor, prediction: Tensor, path: Path) -> tuple[Tensor, Tensor]:
        return (x_t - path.sigma * prediction) / path.signal, prediction


class VariancePreservingClean(VariancePreserving):
    """The same paths; the network predicts the clean data.

    With `cosine` its velocity is undefined at t = 0 exactly, where no sampler here evaluates it.

    Args:
        schedule: See VariancePreserving.
        min_snr: Gamma of min-SNR weighting; None weights all times equally.
    """

    prediction_type = "sample"

    def target(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return the clean data."""
        return clean

    def _min_snr(self, path: Path, gamma: float) -> Tensor:
        """Return min(SNR, gamma)."""
        return ((path.signal / path.sigma) ** 2).clamp(max=gamma)

    def _implied(self, x_t: Tensor, prediction: Tensor, path: Path) -> tuple[Tensor, Tensor]:
        return prediction, (x_t - path.signal * prediction) / path.sigma
