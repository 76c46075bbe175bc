import pytest
import torch
from torch import Tensor

from leam_mm.diffusion.clean_flow import CleanFlow
from leam_mm.diffusion.rectified_flow import RectifiedFlow
from leam_mm.errors import UserError


def network(x_t: Tensor, time: Tensor) -> Tensor:
    return torch.tanh(x_t) * 0.7


@pytest.fixture
def parts() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 9, 3, 4, 4, generator=generator, dtype=torch.float64)
    return clean, noise, torch.linspace(0.06, 1, 9, dtype=torch.float64)


def test_the_loss_is_that_of_the_velocity_it_implies(parts: tuple) -> None:
    clean, noise, time = parts
    flow = CleanFlow()

    def implied(x_t: Tensor, time: Tensor) -> Tensor:
        return flow.to_velocity(x_t, network(x_t, time), time)

    expected = RectifiedFlow().loss_at(implied, clean, noise, time)
    torch.testing.assert_close(flow.loss_at(network, clean, noise, time), expected)


def test_the_weight_stays_finite_below_the_least_time() -> None:
    weight = CleanFlow(least_time=0.05).weight(torch.tensor([0.0, 0.01, 0.05, 0.5, 1.0]))
    torch.testing.assert_close(weight, torch.tensor([400.0, 400.0, 400.0, 4.0, 1.0]))


def test_the_last_step_of_euler_is_the_prediction(parts: tuple) -> None:
    clean, noise, time = parts
    flow = CleanFlow()
    x_t = flow.corrupt(clean, noise, time)
    last = x_t - time.view(-1, 1, 1, 1) * flow.to_velocity(x_t, network(x_t, time), time)
    torch.testing.assert_close(last, network(x_t, time))


def test_a_least_time_of_zero_is_refused() -> None:
    with pytest.raises(UserError, match="least_time"):
        CleanFlow(least_time=0.0)
