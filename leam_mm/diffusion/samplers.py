"""Samplers: plain functions that integrate a velocity from noise (t = 1) to data (t = 0) along a grid of times."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x (B, ...), time (B,)) -> dx/dt (B, ...)."""

TRAINING_STEPS = 1000  # num_train_timesteps of the scheduler that goes into released pipelines


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

    Unlike there the last step is corrected too: our velocities are finite at t = 0.

    Args:
        velocity: dx/dt at (x, time).
        x: (B, ...), the state at times[0]; noise, if that is 1.
        times: (steps + 1,), monotone.
    """
    for now, then in pairwise(times.to(x.device)):
        slope = velocity(x, now.expand(len(x)))
        guess = x + (then - now) * slope
        x = x + (then - now) * (slope + velocity(guess, then.expand(len(x)))) / 2
    return x


def shift_time(time: Tensor, shift: float) -> Tensor:
    """Move times towards noise, t -> s t / (1 + (s - 1) t) (section 5.3.2 of 2403.03206); 0 and 1 stay."""
    return shift * time / (1 + (shift - 1) * time)


def flow_times(steps: int, shift: float = 1.0) -> Tensor:
    """Return the times (steps + 1,) float32 that diffusers' FlowMatchEulerDiscreteScheduler(shift=shift) visits.

    Equal to its `set_timesteps(steps)` sigmas bit for bit, so that our pictures are those of the released pipeline. Its
    peculiarity is kept: the last time before 0 is the shifted 1 / 1000, and is shifted once more.
    """
    if steps < 1:
        raise ValueError(f"a sampler needs at least 1 step, got {steps}")
    first, last = shift_time(torch.tensor([1.0, 1.0 / TRAINING_STEPS]), shift).tolist()
    time = np.linspace(first * TRAINING_STEPS, last * TRAINING_STEPS, steps) / TRAINING_STEPS
    time = shift * time / (1 + (shift - 1) * time)
    return torch.cat([torch.from_numpy(time).float(), torch.zeros(1)])
