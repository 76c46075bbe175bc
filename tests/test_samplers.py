import math
from collections.abc import Callable

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from leam_mm.diffusion.clean_flow import CleanFlow
from leam_mm.diffusion.edm import Edm
from leam_mm.diffusion.process import DiffusionProcess
from leam_mm.diffusion.rectified_flow import RectifiedFlow
from leam_mm.diffusion.samplers import Method, flow_times, sample_dpm, sample_euler, sample_heun, sample_sde, shift_time
from leam_mm.diffusion.variance_preserving import (
    VariancePreserving,
    VariancePreservingClean,
    VariancePreservingNoise,
)
from leam_mm.errors import UserError


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


def test_a_method_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="euler, heun, dpm"):
        RectifiedFlow().sample(lambda x, time: x, torch.zeros(1, 1), torch.tensor([1.0, 0.0]), "rk45")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="fresh_noise"):
        RectifiedFlow().sample(lambda x, time: x, torch.zeros(1, 1), torch.tensor([1.0, 0.0]), "sde")


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 step"):
        flow_times(0)


class GaussianData:
    """Data N(mean, deviation^2) in each number: what a perfect network says, and where each noise ends, in closed form.

    At time t they are N(a mean, V), V = a^2 deviation^2 + s^2; the flow carries every quantile along.
    """

    mean, deviation = 0.7, 0.6

    def __init__(self, process: DiffusionProcess) -> None:
        self.process = process

    def marginal(self, time: Tensor) -> tuple[Tensor, Tensor]:
        path = self.process.path(time)
        return path.signal * self.mean, (path.signal * self.deviation) ** 2 + path.sigma**2

    def solve(self, x: Tensor, start: float, end: float) -> Tensor:
        (mean, variance), (end_mean, end_variance) = (self.marginal(torch.tensor(t)) for t in (start, end))
        return end_mean + (end_variance / variance).sqrt() * (x - mean)

    def expected(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        path, (mean, variance) = self.process.path(time), self.marginal(time)
        share = ((x.T - mean) / variance).T
        clean = self.mean + (share.T * path.signal * self.deviation**2).T
        return clean, (share.T * path.sigma).T

    def network(self, given: Tensor, time: Tensor) -> Tensor:
        x = given / self.process.network_input(torch.ones_like(given), time)
        return self.process.target(*self.expected(x, time), time)


class TwoPoints(GaussianData):
    """Data that are -1 in 30 and 1.5 in 70 of 100 cases."""

    places, shares = torch.tensor([-1.0, 1.5], dtype=torch.float64), torch.tensor([0.3, 0.7], dtype=torch.float64)

    def distribution(self, x: Tensor, time: Tensor) -> Tensor:
        path = self.process.path(time)
        normal = (x[..., None] - path.signal[..., None] * self.places) / path.sigma[..., None]
        return (self.shares * torch.special.ndtr(normal)).sum(-1)

    def solve(self, x: Tensor, start: float, end: float) -> Tensor:
        """Find the same quantile at the other time by bisection."""
        wanted = self.distribution(x, torch.full_like(x, start))
        low, high = torch.full_like(x, -9.0), torch.full_like(x, 9.0)
        for _ in range(80):
            middle = (low + high) / 2
            below = self.distribution(middle, torch.full_like(x, end)) < wanted
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def expected(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        path = self.process.path(time[:, None, None])
        away = (x[..., None] - path.signal * self.places) / path.sigma
        clean = ((self.shares.log() - away**2 / 2).softmax(-1) * self.places).sum(-1)
        return clean, (x - path.signal[..., 0] * clean) / path.sigma[..., 0]


def run(method: Method, flow: GaussianData, x: Tensor, times: Tensor) -> Tensor:
    """All methods under one call, with a perfect network."""
    return flow.process.sample(flow.network, x, times, method)


def gaussian_error(flow: GaussianData, method: Method, steps: int, begin: float, end: float) -> float:
    """Largest error at the end, from a few starting points."""
    start = torch.tensor([[-2.0], [-0.3], [1.4]], dtype=torch.float64)
    found = run(method, flow, start, torch.linspace(begin, end, steps + 1, dtype=torch.float64))
    return float((found - flow.solve(start, begin, end)).abs().max())


PROCESSES = [
    RectifiedFlow(),
    CleanFlow(),
    VariancePreserving("cosine"),
    VariancePreserving("sd_linear"),
    VariancePreservingNoise(),
    VariancePreservingClean("cosine"),
    Edm(),
    Edm(sigma_data=0.5),
]
ORDERS = [("euler", 1), ("heun", 2), ("dpm", 2)]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
@pytest.mark.parametrize(("method", "order"), ORDERS)
def test_order_of_convergence_from_noise_to_gaussian_data(
    process: DiffusionProcess, method: Method, order: int
) -> None:
    flow = GaussianData(process)
    # DPM-Solver++ counts in the logarithm of the signal-to-noise ratio, which has infinite ends: see the next test.
    ends = (0.95, 0.05) if method == "dpm" else (1.0, 0.0)
    coarse, fine = (gaussian_error(flow, method, steps, *ends) for steps in (96, 192))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)
    assert fine < 0.03


@pytest.mark.parametrize("process", PROCESSES[:4], ids=lambda process: type(process).__name__)
def test_dpm_loses_no_more_than_a_logarithm_at_the_ends(process: DiffusionProcess) -> None:
    coarse, fine = (gaussian_error(GaussianData(process), "dpm", steps, 1.0, 0.0) for steps in (96, 192))
    assert 3 < coarse / fine < 4.2  # h^2 log(1 / h) would be 3.4
    assert fine < 0.01


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
@pytest.mark.parametrize(("method", "order"), ORDERS)
def test_order_of_convergence_in_a_mixture_of_two_points(process: DiffusionProcess, method: Method, order: int) -> None:
    flow = TwoPoints(process)
    start = torch.tensor([[-2.0], [-0.6], [0.0], [1.4]], dtype=torch.float64)
    exact = flow.solve(start, 0.9, 0.4)

    def error(steps: int) -> float:
        return float(
            (run(method, flow, start, torch.linspace(0.9, 0.4, steps + 1, dtype=torch.float64)) - exact).abs().max()
        )

    assert math.log2(error(64) / error(128)) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_samples_of_two_points_end_at_them_in_their_shares(process: DiffusionProcess) -> None:
    flow = TwoPoints(process)
    quantiles = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    start = torch.special.ndtri(quantiles)[:, None]
    # The table's sigma grows with the root of time: even times are too coarse at its end for all but DPM-Solver++.
    for method in ("dpm",) if getattr(process, "schedule", "") == "sd_linear" else ("euler", "heun", "dpm"):
        found = run(method, flow, start, process.times(60).double())
        near = [((found - place).abs() < 0.12).double().mean().item() for place in flow.places]
        assert near == pytest.approx(flow.shares.tolist(), abs=0.02)


@pytest.mark.parametrize("method", ["euler", "heun", "dpm"])
def test_one_step_from_pure_noise_gives_the_expected_data(method: Method) -> None:
    flow = GaussianData(RectifiedFlow())
    found = run(method, flow, torch.tensor([[0.3]], dtype=torch.float64), torch.tensor([1.0, 0.0]).double())
    torch.testing.assert_close(found, torch.tensor([[flow.mean]], dtype=torch.float64))


def law_of_sde(flow: GaussianData, steps: int, strength: float) -> list[float]:
    """Mean and variance of what sample_sde draws, exactly: with Gaussian data it is linear in all its normal numbers.

    Row 0 has all of them zero, each other row has one of them at one.
    """
    unit = torch.eye(steps + 2, dtype=torch.float64).roll(-1, 1)[:, :, None]
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    mean, variance = flow.marginal(times[0])
    start, process = mean + variance.sqrt() * unit[:, 0], flow.process
    found = sample_sde(
        process.clean(flow.network), start, times, process.path, lambda number: unit[:, 1 + number], strength
    )
    return [float(found[0]), float((found[1:] - found[0]).square().sum())]


@pytest.mark.parametrize(
    "process", [*PROCESSES[:1], *PROCESSES[2:4], PROCESSES[-1]], ids=lambda process: type(process).__name__
)
@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_weak_order_of_the_stochastic_sampler_is_one(process: DiffusionProcess, strength: float) -> None:
    flow = GaussianData(process)
    exact = [float(value) for value in flow.marginal(torch.zeros((), dtype=torch.float64))]
    coarse, fine = (
        torch.tensor([abs(value - true) for value, true in zip(law_of_sde(flow, steps, strength), exact, strict=True)])
        for steps in (128, 256)
    )
    wrong = fine > 1e-12  # the straight path's mean is right at every number of steps
    assert wrong[1] and max(fine) < 0.05
    assert (coarse / fine)[wrong].tolist() == pytest.approx([2] * int(wrong.sum()), abs=0.15)


def test_stochastic_samples_have_the_right_mean_and_variance() -> None:
    flow = TwoPoints(RectifiedFlow())
    count, generator = 20_000, torch.Generator().manual_seed(3)

    def normal(number: int = 0) -> Tensor:
        return torch.randn(count, 1, generator=generator, dtype=torch.float64)

    found = sample_sde(
        flow.process.clean(flow.network),
        normal(),
        torch.linspace(1, 0, 201, dtype=torch.float64),
        flow.process.path,
        normal,
    )
    mean = float(flow.shares @ flow.places)
    variance = float(flow.shares @ flow.places**2) - mean**2
    assert found.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / count))
    spread = float(((found - mean) ** 2).std()) / math.sqrt(count)
    assert found.var().item() == pytest.approx(variance, abs=4 * spread)


def test_the_stochastic_sampler_without_strength_is_eulers() -> None:
    flow = TwoPoints(VariancePreserving())
    start, times = torch.randn(9, 2, dtype=torch.float64), torch.linspace(1, 0, 12, dtype=torch.float64)

    def none(number: int) -> Tensor:
        raise AssertionError("no noise is needed")

    found = sample_sde(flow.process.clean(flow.network), start, times, flow.process.path, none, strength=0)
    torch.testing.assert_close(found, run("euler", flow, start, times), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("steps", [1, 2, 8, 25])
def test_dpm_takes_the_steps_of_diffusers_along_a_flow(steps: int) -> None:
    scheduler = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=2.0)
    scheduler.set_timesteps(steps)
    flow = RectifiedFlow()
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def network(x: Tensor, time: Tensor) -> Tensor:
        return torch.sin(2 * x) - time.view(-1, 1, 1, 1)

    theirs = noise
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        theirs = scheduler.step(network(theirs, sigma.expand(3)), timestep, theirs).prev_sample
    ours = sample_dpm(flow.clean(network), noise, scheduler.sigmas, flow.path)
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


def test_the_stochastic_sampler_forgets_the_way_so_far() -> None:
    flow, generator = TwoPoints(RectifiedFlow()), torch.Generator().manual_seed(0)
    noise = torch.randn(11, 6, 2, generator=generator, dtype=torch.float64)
    times, clean, path = (
        torch.linspace(1, 0, 11, dtype=torch.float64),
        flow.process.clean(flow.network),
        flow.process.path,
    )
    whole = sample_sde(clean, noise[-1], times, path, lambda number: noise[number])
    half = sample_sde(clean, noise[-1], times[:5], path, lambda number: noise[number])
    torch.testing.assert_close(sample_sde(clean, half, times[4:], path, lambda number: noise[4 + number]), whole)
