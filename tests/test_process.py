"""Identities that hold for every diffusion process."""

from typing import Any

import pytest
import torch
from torch import Tensor
from toys.generators import clean_noise_time

from leam_mm.diffusion.clean_flow import CleanFlow
from leam_mm.diffusion.edm import Edm
from leam_mm.diffusion.process import DiffusionProcess, expand_time
from leam_mm.diffusion.rectified_flow import RectifiedFlow
from leam_mm.diffusion.time_shift import ResolutionShift
from leam_mm.diffusion.variance_preserving import (
    VariancePreserving,
    VariancePreservingClean,
    VariancePreservingNoise,
)

PROCESSES = [
    RectifiedFlow(),
    RectifiedFlow(shift=3.0, uniform_share=0.1),
    RectifiedFlow(shift=ResolutionShift(4)),
    CleanFlow(),
    VariancePreserving("cosine"),
    VariancePreserving("sd_linear"),
    VariancePreserving("cosine", min_snr=5.0),
    VariancePreservingNoise(min_snr=5.0),
    VariancePreservingClean("cosine"),
    VariancePreservingClean("sd_linear", min_snr=5.0),
    Edm(),
    Edm(sigma_data=0.5, log_sigma_mean=-1.2),
]
POSITIONS = 16


@pytest.fixture
def pair() -> tuple[Tensor, Tensor, Tensor]:
    return clean_noise_time(64, 0.01, 0.98)


@pytest.mark.parametrize("process", PROCESSES)
def test_exact_prediction_gives_the_clean_data_and_the_derivative_of_the_path(
    process: DiffusionProcess, pair: tuple
) -> None:
    clean, noise, time = pair
    inputs: list[Tensor] = []

    def oracle(network_input: Tensor, time: Tensor) -> Tensor:
        inputs.append(network_input)
        return process.target(clean, noise, time)

    x_t, derivative = torch.func.jvp(lambda t: process.corrupt(clean, noise, t), (time,), (torch.ones_like(time),))
    prediction = process.target(clean, noise, time)
    for found in (process.to_clean(x_t, prediction, time), process.clean(oracle)(x_t, time)):
        torch.testing.assert_close(found, clean, rtol=1e-9, atol=1e-9)
    for found in (process.to_velocity(x_t, prediction, time), process.velocity(oracle)(x_t, time)):
        torch.testing.assert_close(found, derivative, rtol=1e-9, atol=1e-9)
    assert len(inputs) == 2 and all(torch.equal(given, process.network_input(x_t, time)) for given in inputs)


@pytest.mark.parametrize("process", PROCESSES)
def test_path_equals_corrupt_and_has_its_derivatives(process: DiffusionProcess, pair: tuple) -> None:
    clean, noise, time = pair
    found = process.path(time)
    ones = torch.ones_like(time)
    signal, sigma = (expand_time(value, clean) for value in found[:2])
    torch.testing.assert_close(process.corrupt(clean, noise, time), signal * clean + sigma * noise)
    for value, rate in ((0, found.signal_rate), (1, found.sigma_rate)):
        derived = torch.func.jvp(lambda t, value=value: process.path(t)[value], (time,), (ones,))[1]
        torch.testing.assert_close(rate, derived, rtol=1e-9, atol=1e-9)
    rising = process.path(torch.linspace(0, 1, 1001, dtype=torch.float64))
    assert ((rising.sigma / rising.signal).diff() > 0).all()  # the share of noise grows steadily


@pytest.mark.parametrize("process", PROCESSES)
def test_velocity_and_clean_data_of_any_prediction_agree(process: DiffusionProcess, pair: tuple) -> None:
    x_t, prediction, time = pair
    path = [expand_time(value, x_t) for value in process.path(time)]
    clean = process.to_clean(x_t, prediction, time)
    implied = (x_t - path[0] * clean) / path[1]
    velocity = process.to_velocity(x_t, prediction, time)
    torch.testing.assert_close(velocity, path[2] * clean + path[3] * implied, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("process", PROCESSES)
def test_loss_is_zero_for_the_exact_prediction_and_computed_per_sample(process: DiffusionProcess, pair: tuple) -> None:
    clean, noise, uniform = pair

    def guess(x_t: Tensor, time: Tensor) -> Tensor:
        return 0.3 * x_t * expand_time(time, x_t)

    time = process.time(uniform, POSITIONS)
    exact = process.loss(lambda x_t, time: process.target(clean, noise, time), clean, noise, uniform)
    torch.testing.assert_close(exact, torch.zeros_like(uniform))
    together = process.loss(guess, clean, noise, uniform)
    alone = [process.loss(guess, *(part[i : i + 1] for part in pair)) for i in range(64)]
    assert together.shape == (64,)
    torch.testing.assert_close(together, torch.cat(alone))
    torch.testing.assert_close(together, process.loss_at(guess, clean, noise, time))
    elements = process.errors_at(guess, clean, noise, time)
    assert elements.shape == clean.shape
    torch.testing.assert_close(elements.flatten(1).mean(1), together)


@pytest.mark.parametrize("process", PROCESSES)
def test_training_times_rise_with_the_uniform_number_and_stay_in_range(process: DiffusionProcess) -> None:
    uniform = torch.tensor([1e-7, 0.11, 0.3, 0.5, 0.7, 0.9, 1 - 1e-7])
    time = process.time(uniform, POSITIONS)
    assert time.shape == (7,) and ((time >= 0) & (time <= 1)).all()
    assert (time[1:].diff() > 0).all()


@pytest.mark.parametrize("process", PROCESSES)
def test_sampling_times_fall_from_noise_to_data(process: DiffusionProcess) -> None:
    times = process.times(7, POSITIONS)
    assert times.shape == (8,) and times[0] >= 0.999 and times[-1] == 0
    assert (times.diff() < 0).all()
    assert process.path(times[:1]).sigma > 0.99


def test_double_precision_is_kept() -> None:
    clean, noise = torch.randn(2, 3, 2, dtype=torch.float64)
    arguments: dict[str, Any] = {"clean": clean, "noise": noise, "time": torch.full((3,), 0.5, dtype=torch.float64)}
    assert RectifiedFlow().loss_at(lambda x_t, time: x_t, **arguments).dtype == torch.float64
