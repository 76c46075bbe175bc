import pytest
import torch

from leam_mm.diffusion.process import DiffusionProcess, expand_time
from leam_mm.diffusion.rectified_flow import RectifiedFlow
from leam_mm.diffusion.variance_preserving import VariancePreserving

PROCESSES = [
    RectifiedFlow(),
    RectifiedFlow(shift=3.0),
    VariancePreserving("cosine"),
    VariancePreserving("sd_linear"),
    VariancePreserving("cosine", min_snr=5.0),
]


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 64, 3, 4, 4, generator=generator, dtype=torch.float64)
    return clean, noise, torch.linspace(0.01, 0.98, 64, dtype=torch.float64)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_exact_prediction_returns_the_clean_data(process: DiffusionProcess, pair: tuple) -> None:
    clean, noise, time = pair
    x_t = process.corrupt(clean, noise, time)
    restored = process.to_clean(x_t, process.target(clean, noise, time), time)
    torch.testing.assert_close(restored, clean)


@pytest.mark.parametrize("process", PROCESSES)
def test_velocity_is_the_derivative_of_the_path(process: DiffusionProcess, pair: tuple) -> None:
    clean, noise, time = pair
    time = time.floor_divide(0.001) * 0.001 + 0.0005  # between the steps of the table
    step = 1e-6
    ahead, behind = (process.corrupt(clean, noise, time + sign * step) for sign in (1, -1))
    velocity = process.to_velocity(process.corrupt(clean, noise, time), process.target(clean, noise, time), time)
    torch.testing.assert_close(velocity, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("process", PROCESSES)
def test_loss_is_zero_for_the_oracle_and_per_sample_otherwise(process: DiffusionProcess, pair: tuple) -> None:
    clean, noise, uniform = pair
    oracle = process.loss(lambda x_t, time: process.target(clean, noise, time), clean, noise, uniform)
    torch.testing.assert_close(oracle, torch.zeros_like(oracle))
    together = process.loss(lambda x_t, time: 0.3 * x_t * expand_time(time, x_t), clean, noise, uniform)
    alone = [
        process.loss(lambda x_t, time: 0.3 * x_t * expand_time(time, x_t), *(part[i : i + 1] for part in pair))
        for i in range(64)
    ]
    assert together.shape == (64,)
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("process", PROCESSES)
def test_times_fall_from_noise_to_data(process: DiffusionProcess) -> None:
    times = process.times(7)
    assert times.shape == (8,) and times[0] == 1 and times[-1] == 0
    assert (times.diff() < 0).all()
