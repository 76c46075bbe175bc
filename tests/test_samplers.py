import math
from collections.abc import Callable

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from leam_mm.diffusion.samplers import flow_times, sample_euler, sample_heun, shift_time


@pytest.mark.parametrize("shift", [0.5, 1.0, 1.7, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 20, 28, 50, 999])
def test_flow_times_are_those_of_diffusers(steps: int, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    assert torch.equal(flow_times(steps, shift), scheduler.sigmas)


def test_euler_takes_the_steps_of_diffusers() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    scheduler.set_timesteps(12)
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = noise
    for timestep in scheduler.timesteps:
        theirs = scheduler.step(torch.sin(theirs) - timestep / 1000, timestep, theirs).prev_sample
    ours = sample_euler(lambda x, time: torch.sin(x) - time.view(-1, 1, 1, 1), noise, flow_times(12, 2.0))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("sampler", "order"), [(sample_euler, 1), (sample_heun, 2)])
def test_order_of_convergence_on_a_linear_equation(sampler: Callable, order: int) -> None:
    start = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    exact = start * math.exp(-1.5)  # dx/dt = 1.5 x from t = 1 to 0

    def error(steps: int) -> float:
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        return float((sampler(lambda x, time: 1.5 * x, start, times) - exact).abs().max())

    assert math.log2(error(64) / error(128)) == pytest.approx(order, abs=0.05)


def test_shift_keeps_the_ends_and_inverts() -> None:
    time = torch.linspace(0, 1, 11, dtype=torch.float64)
    shifted = shift_time(time, 3.0)
    assert shifted[0] == 0 and shifted[-1] == 1 and (shifted[1:-1] > time[1:-1]).all()
    torch.testing.assert_close(shift_time(shifted, 1 / 3), time)


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 step"):
        flow_times(0)
