"""Flows on a straight path: velocity prediction as in diffusers, and clean-data prediction with its loss."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_loss_weighting_for_sd3
from torch import Tensor
from toys.generators import clean_noise_time, uniform_quantiles

from leam_mm.diffusion.clean_flow import CleanFlow
from leam_mm.diffusion.rectified_flow import RectifiedFlow
from leam_mm.errors import UserError


def test_ends_of_the_path_and_constant_velocity() -> None:
    clean, noise = torch.randn(2, 2, 3, 4, 4)
    flow = RectifiedFlow()
    assert torch.equal(flow.corrupt(clean, noise, torch.zeros(2)), clean)
    assert torch.equal(flow.corrupt(clean, noise, torch.ones(2)), noise)
    for end in (torch.zeros(2), torch.ones(2)):
        target = flow.target(clean, noise, end)
        assert torch.equal(flow.to_velocity(flow.corrupt(clean, noise, end), target, end), noise - clean)


def test_loss_equals_diffusers_sd3_recipe() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    generator = torch.Generator().manual_seed(1)
    latent, noise = torch.randn(2, 5, 4, 8, 8, generator=generator)
    index = torch.tensor([3, 200, 500, 800, 999])
    sigma = scheduler.sigmas[index]
    noisy = (1.0 - sigma.view(-1, 1, 1, 1)) * latent + sigma.view(-1, 1, 1, 1) * noise
    prediction = torch.tanh(noisy) * 0.5
    weighting = compute_loss_weighting_for_sd3("none", sigma.view(-1, 1, 1, 1))
    theirs = (weighting.float() * (prediction.float() - (noise - latent).float()) ** 2).reshape(5, -1).mean(1)
    # The uniform number that RectifiedFlow turns into sigma: shift and logit-normal undone.
    unshifted = sigma.double() / (3 - 2 * sigma.double())
    uniform = torch.special.ndtr(torch.logit(unshifted))
    flow = RectifiedFlow(shift=3.0)
    ours = flow.loss(lambda x_t, time: torch.tanh(x_t) * 0.5, latent, noise, uniform)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 1.4)])
def test_time_is_logit_normal(mean: float, std: float) -> None:
    logit = torch.logit(RectifiedFlow(time_mean=mean, time_std=std).time(uniform_quantiles(100_000)))
    assert logit.mean().item() == pytest.approx(mean, abs=1e-3)
    assert logit.std().item() == pytest.approx(std, abs=1e-3)


def test_time_stays_in_range_at_extreme_numbers() -> None:
    time = RectifiedFlow(time_std=5.0).time(torch.tensor([0.0, 1e-7, 1 - 1e-7, 1.0]))
    assert ((time >= 0) & (time <= 1)).all()


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [(RectifiedFlow, "time_std", 0.0), (RectifiedFlow, "uniform_share", 1.0), (CleanFlow, "least_time", 0.0)],
)
def test_values_out_of_range_are_refused(kind: type, name: str, value: float) -> None:
    with pytest.raises(UserError, match=name):
        kind(**{name: value})


def test_given_share_of_times_is_uniform() -> None:
    share, uniform = 0.1, uniform_quantiles(100_000)
    mixed, plain = (RectifiedFlow(shift=3.0, uniform_share=part).time(uniform) for part in (share, 0.0))
    for t in torch.linspace(0.02, 0.98, 25, dtype=torch.float64):
        expected = share * t + (1 - share) * (plain < t).double().mean()
        assert (mixed < t).double().mean().item() == pytest.approx(float(expected), abs=1e-4)


def network(x_t: Tensor, time: Tensor) -> Tensor:
    return torch.tanh(x_t) * 0.7


def test_clean_prediction_has_the_loss_of_its_implied_velocity() -> None:
    clean, noise, time = clean_noise_time(9, 0.06, 1)
    flow = CleanFlow()

    def implied(x_t: Tensor, time: Tensor) -> Tensor:
        return flow.to_velocity(x_t, network(x_t, time), time)

    expected = RectifiedFlow().loss_at(implied, clean, noise, time)
    torch.testing.assert_close(flow.loss_at(network, clean, noise, time), expected)


def test_weight_of_clean_prediction_is_constant_below_least_time() -> None:
    weight = CleanFlow(least_time=0.05).weight(torch.tensor([0.0, 0.01, 0.05, 0.5, 1.0]))
    torch.testing.assert_close(weight, torch.tensor([400.0, 400.0, 400.0, 4.0, 1.0]))


def test_last_euler_step_gives_the_clean_prediction() -> None:
    clean, noise, time = clean_noise_time(9, 0.06, 1)
    flow = CleanFlow()
    x_t = flow.corrupt(clean, noise, time)
    last = x_t - time.view(-1, 1, 1, 1) * flow.to_velocity(x_t, network(x_t, time), time)
    torch.testing.assert_close(last, network(x_t, time))
