"""Variance-preserving processes: schedules and min-SNR weights as in diffusers."""

import math
from collections.abc import Callable

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from leam_mm.diffusion.variance_preserving import (
    VariancePreserving,
    VariancePreservingClean,
    VariancePreservingNoise,
)
from leam_mm.errors import UserError


@pytest.fixture
def scheduler() -> DDPMScheduler:
    return DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction"
    )


def test_sd_linear_equals_diffusers_at_its_steps(scheduler: DDPMScheduler) -> None:
    process = VariancePreserving("sd_linear")
    # 2e-6: their table of a^2 is a float32 product of up to a thousand factors, ours is float64.
    step = torch.tensor([0, 1, 17, 500, 998, 999])
    clean, noise = torch.randn(2, 6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    time = step.double() / 1000
    velocity = scheduler.get_velocity(clean, noise, step)
    torch.testing.assert_close(process.target(clean, noise, time), velocity, rtol=1e-6, atol=2e-6)
    noisy = scheduler.add_noise(clean, noise, step)
    torch.testing.assert_close(process.corrupt(clean, noise, time), noisy, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("kind", "divisor"),
    [
        (VariancePreserving, lambda snr: snr + 1),
        (VariancePreservingNoise, lambda snr: snr),
        (VariancePreservingClean, lambda snr: 1),
    ],
)
def test_min_snr_equals_diffusers_formula(
    scheduler: DDPMScheduler, kind: type[VariancePreserving], divisor: Callable
) -> None:
    step = torch.tensor([1, 100, 300, 600, 900])
    snr = compute_snr(scheduler, step)
    theirs = torch.minimum(snr, torch.full_like(snr, 5.0)) / divisor(snr)
    ours = kind("sd_linear", min_snr=5.0).weight(step.double() / 1000)
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-4, atol=1e-6)


def test_min_snr_loss_is_the_same_for_every_kind_of_prediction() -> None:
    clean, noise = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64)
    time, guess = torch.linspace(0.1, 0.9, 5, dtype=torch.float64), torch.randn_like(clean)

    def predict(process: VariancePreserving) -> Callable:
        """The prediction that corresponds to the guess of the clean data."""
        a, s = (value[:, None, None, None] for value in process.path(time)[:2])
        implied = (process.corrupt(clean, noise, time) - a * guess) / s
        return lambda x_t, time: process.target(guess, implied, time)

    kinds = (VariancePreserving, VariancePreservingNoise, VariancePreservingClean)
    processes = [kind("sd_linear", 5.0) for kind in kinds]
    first, *others = (process.loss_at(predict(process), clean, noise, time) for process in processes)
    for other in others:
        torch.testing.assert_close(other, first)


def test_weights_are_finite_at_both_ends() -> None:
    ends = torch.tensor([0.0, 1.0])
    assert VariancePreserving("cosine", 5.0).weight(ends).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert VariancePreservingClean("cosine", 5.0).weight(ends).tolist() == pytest.approx([5.0, 0.0], abs=1e-6)
    assert VariancePreservingNoise(min_snr=5.0).weight(ends).isfinite().all()


def test_noise_prediction_on_cosine_and_min_snr_of_zero_are_refused() -> None:
    with pytest.raises(UserError, match="sd_linear"):
        VariancePreservingNoise("cosine")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="min_snr is 0"):
        VariancePreserving(min_snr=0.0)


def test_cosine_runs_from_data_to_noise_at_constant_speed() -> None:
    process = VariancePreserving("cosine")
    clean, noise = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    start, end = torch.zeros(2), torch.ones(2)
    torch.testing.assert_close(process.corrupt(clean, noise, start), clean)
    torch.testing.assert_close(process.corrupt(clean, noise, end), noise)
    for time, velocity in ((start, noise), (end, -clean)):
        target = process.target(clean, noise, time)
        flow = process.to_velocity(process.corrupt(clean, noise, time), target, time)
        torch.testing.assert_close(flow, math.pi / 2 * velocity)


@pytest.mark.parametrize("schedule", ["cosine", "sd_linear"])
def test_variance_is_preserved(schedule: str) -> None:
    process = VariancePreserving(schedule)  # type: ignore[arg-type]
    time = torch.linspace(0, 1, 101)
    one, zero = torch.ones(101, 1, dtype=torch.float64), torch.zeros(101, 1, dtype=torch.float64)
    signal, sigma = process.corrupt(one, zero, time), process.corrupt(zero, one, time)
    torch.testing.assert_close(signal**2 + sigma**2, one)
    assert (signal.diff(dim=0) < 0).all()
