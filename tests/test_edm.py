"""EDM: scalings, loss and noise levels as in the paper and in diffusers."""

import math

import pytest
import torch
from diffusers import EDMEulerScheduler
from torch import Tensor
from toys.generators import clean_noise_time, uniform_quantiles

from leam_mm.diffusion.edm import Edm
from leam_mm.diffusion.process import expand_time
from leam_mm.diffusion.variance_preserving import VariancePreserving
from leam_mm.errors import UserError


def network(x: Tensor, time: Tensor) -> Tensor:
    return torch.tanh(x) * expand_time(time, x) - 0.1


@pytest.fixture
def parts() -> tuple[Tensor, Tensor, Tensor]:
    return clean_noise_time(9, 0.02, 0.98)


def test_scalings_are_those_of_diffusers(parts: tuple) -> None:
    clean, noise, time = parts
    process, scheduler = Edm(sigma_data=0.5), EDMEulerScheduler(sigma_data=0.5)
    sigma = expand_time(process.noise_level(time), clean)
    state = clean + sigma * noise
    x_t = process.corrupt(clean, noise, time)
    torch.testing.assert_close(x_t, state / (1 + sigma**2).sqrt())
    torch.testing.assert_close(process.network_input(x_t, time), scheduler.precondition_inputs(state, sigma))
    prediction = network(x_t, time)
    theirs = scheduler.precondition_outputs(state, prediction, sigma)
    torch.testing.assert_close(process.to_clean(x_t, prediction, time), theirs)
    # Time is c_noise up to scale and origin.
    condition = scheduler.precondition_noise(process.noise_level(time))
    torch.testing.assert_close(time, (4 * condition - math.log(0.002)) / math.log(80 / 0.002))


def test_loss_is_the_weighted_error_of_the_denoiser(parts: tuple) -> None:
    clean, noise, time = parts
    process = Edm(sigma_data=0.5)
    denoised = process.clean(network)(process.corrupt(clean, noise, time), time)
    sigma = process.noise_level(time)
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2  # lambda of table 1
    expected = weight * (denoised - clean).square().flatten(1).mean(1)
    torch.testing.assert_close(process.loss_at(network, clean, noise, time), expected)


def test_input_and_target_have_unit_variance_at_every_time() -> None:
    process, time = Edm(sigma_data=0.5), torch.linspace(0, 1, 11, dtype=torch.float64)
    one, zero = torch.ones(11, 1, dtype=torch.float64), torch.zeros(11, 1, dtype=torch.float64)
    for part in (
        lambda clean, noise: process.network_input(process.corrupt(clean, noise, time), time),
        lambda clean, noise: process.target(clean, noise, time),
    ):
        torch.testing.assert_close((part(0.5 * one, zero)) ** 2 + part(zero, one) ** 2, one)


def test_edm_of_unit_variance_data_equals_v_prediction(parts: tuple) -> None:
    clean, noise, time = parts
    process, v_prediction = Edm(), VariancePreserving("cosine")
    path = process.path(time)
    angle = torch.atan2(path.sigma, path.signal) / (math.pi / 2)  # where v-prediction has as much noise
    x_t = process.corrupt(clean, noise, time)
    torch.testing.assert_close(x_t, v_prediction.corrupt(clean, noise, angle))
    torch.testing.assert_close(process.network_input(x_t, time), x_t)
    torch.testing.assert_close(process.target(clean, noise, time), -v_prediction.target(clean, noise, angle))
    prediction = network(x_t, time)
    torch.testing.assert_close(process.to_clean(x_t, prediction, time), v_prediction.to_clean(x_t, -prediction, angle))


def test_training_noise_is_lognormal() -> None:
    process = Edm(log_sigma_mean=-1.2, log_sigma_std=1.2, sigma_min=1e-5)
    level = process.noise_level(process.time(uniform_quantiles(100_000))).log()
    assert level.mean().item() == pytest.approx(-1.2, abs=1e-3)
    assert level.std().item() == pytest.approx(1.2, abs=1e-3)


def test_sampling_noise_levels_are_those_of_diffusers() -> None:
    process, scheduler = Edm(), EDMEulerScheduler()
    scheduler.set_timesteps(19)  # diffusers continues from sigma_min to 0, we end there
    torch.testing.assert_close(process.noise_level(process.times(18)).float(), scheduler.sigmas[:-1], rtol=2e-5, atol=0)


def test_sigma_max_below_sigma_min_is_refused() -> None:
    with pytest.raises(UserError, match="above sigma_min"):
        Edm(sigma_max=0.001)
