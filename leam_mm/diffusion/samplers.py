"""Samplers: plain functions that go from noise (t = 1) to data (t = 0) along a grid of times.

Euler and Heun integrate the velocity of the probability flow; DPM and SDE use the coefficients of the path and the
clean data that the network predicts. The caller passes random numbers.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

TRAINING_STEPS = 1000  # num_train_timesteps of the scheduler that goes into released pipelines
Method = Literal["euler", "heun", "dpm", "sde"]
Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x (B, ...), time (B,)) -> dx/dt (B, ...)."""
Clean = Callable[[Tensor, Tensor], Tensor]
"""(x (B, ...), time (B,)) -> the expected clean data (B, ...)."""


class Path(NamedTuple):
    """Coefficients of x_t = signal clean + sigma noise at some times, and their derivatives by the time.

    Each is (B,), in double precision.
    """

    signal: Tensor
    sigma: Tensor
    signal_rate: Tensor
    sigma_rate: Tensor


def sample_euler(velocity: Velocity, x: Tensor, times: Tensor) -> Tensor:
    """Integrate by Euler's method, one evaluation a step, first order.

    Args:
        velocity: dx/dt at (x, time).
        x: (B, ...), the state at times[0]; noise, if that is 1.
        times: (steps + 1,), monotone.
    """
    for now, then in pairwise(times.to(x.device)):
        x = x + (then - now) * velocity(x, now.expand(len(x)))
    return x


def sample_heun(velocity: Velocity, x: Tensor, times: Tensor) -> Tensor:
    """Integrate by Heun's method, two evaluations a step, second order (algorithm 1 of 2206.00364 without churn).

    As in the paper, a last step to t = 0 is not corrected, since some velocities are undefined there. One step of first
    order does not change the order of the method.

    Args:
        velocity: dx/dt at (x, time).
        x: (B, ...), the state at times[0]; noise, if that is 1.
        times: (steps + 1,), monotone.
    """
    ends_at_data = len(times) - 2 if float(times[-1]) == 0 else None
    for step, (now, then) in enumerate(pairwise(times.to(x.device))):
        first = velocity(x, now.expand(len(x)))
        guess = x + (then - now) * first
        if step == ends_at_data:
            return guess
        x = x + (then - now) * (first + velocity(guess, then.expand(len(x)))) / 2
    return x


def sample_dpm(clean: Clean, x: Tensor, times: Tensor, path: Callable[[Tensor], Path]) -> Tensor:
    """Integrate by DPM-Solver++ (2M), algorithm 2 of 2211.01095: one evaluation a step, second order.

    The equation is solved exactly up to the clean data, which is extrapolated linearly in half the logarithm of the
    signal-to-noise ratio. The ratio is infinite at pure noise and at clean data: steps at these ends are of first
    order, as in DDIM, and so is the first step.

    Args:
        clean: Clean data expected at (x, time).
        x: (B, ...), the state at times[0]; noise, if that is 1.
        times: (steps + 1,), falling.
        path: Coefficients of the process at given times.
    """
    coefficients = path(times.double().cpu())
    signal, sigma = coefficients.signal.tolist(), coefficients.sigma.tolist()
    steps = (coefficients.signal.log() - coefficients.sigma.log()).diff().tolist()  # h of the paper
    previous: Tensor | None = None
    for number, now in enumerate(times[:-1].to(x.device)):
        current = clean(x, now.expand(len(x)))
        extrapolated = current
        if previous is not None and math.isfinite(steps[number]) and math.isfinite(steps[number - 1]):
            extrapolated = current + steps[number] / (2 * steps[number - 1]) * (current - previous)
        kept = sigma[number + 1] / sigma[number]
        x = kept * x + (signal[number + 1] - kept * signal[number]) * extrapolated
        previous = current
    return x


def sample_sde(
    clean: Clean,
    x: Tensor,
    times: Tensor,
    path: Callable[[Tensor], Path],
    fresh_noise: Callable[[int], Tensor],
    strength: float = 1.0,
) -> Tensor:
    """Integrate the reverse stochastic equation with the same marginals by Euler-Maruyama, weak order one.

    dx = (v + w noise / (2 sigma)) dt + sqrt(w) dW backwards in time, with v the velocity of the probability flow,
    -noise / sigma the score and w = strength sigma: any w >= 0 keeps the marginals, this one is finite everywhere
    (SiT, 2401.08740). A step to t = 0 is the flow's own and adds no noise.

    Args:
        clean: Clean data expected at (x, time).
        x: (B, ...), the state at times[0]; noise, if that is 1.
        times: (steps + 1,), falling.
        path: Coefficients of the process at given times.
        fresh_noise: Number of the step -> standard normal numbers (B, ...), independent between steps.
        strength: 0 is the probability flow; a larger one removes more of earlier errors, and needs more steps.
    """
    coefficients = zip(*(part.tolist() for part in path(times.double().cpu())), strict=True)
    for number, ((now, then), (signal, sigma, signal_rate, sigma_rate)) in enumerate(
        zip(pairwise(times.tolist()), coefficients, strict=False)
    ):
        expected = clean(x, times[number].to(x.device).expand(len(x)))
        noise = (x - signal * expected) / sigma
        step = now - then
        x = x - step * (signal_rate * expected + sigma_rate * noise)
        if then > 0 and strength > 0:
            spread = strength * sigma
            x = x - step * strength / 2 * noise + math.sqrt(spread * step) * fresh_noise(number)
    return x


def shift_time(time: Tensor, shift: float) -> Tensor:
    """Move times towards noise, t -> s t / (1 + (s - 1) t) (section 5.3.2 of 2403.03206); 0 and 1 stay."""
    return shift * time / (1 + (shift - 1) * time)


def flow_times(steps: int, shift: float = 1.0) -> Tensor:
    """Return the times (steps + 1,) float32 that diffusers' FlowMatchEulerDiscreteScheduler(shift=shift) visits.

    They equal the sigmas of its `set_timesteps(steps)` bit for bit, so that our images are those of the released
    pipeline. As there, the last time before 0 is the shifted 1 / 1000, shifted once more.
    """
    if steps < 1:
        raise ValueError(f"a sampler needs at least 1 step, got {steps}")
    first, last = shift_time(torch.tensor([1.0, 1.0 / TRAINING_STEPS]), shift).tolist()
    time = np.linspace(first * TRAINING_STEPS, last * TRAINING_STEPS, steps) / TRAINING_STEPS
    time = shift * time / (1 + (shift - 1) * time)
    return torch.cat([torch.from_numpy(time).float(), torch.zeros(1)])
