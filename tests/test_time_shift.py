"""Time shifts that depend on the number of latent positions."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from jsonargparse import ArgumentParser

from leam_mm.diffusion.process import DiffusionProcess
from leam_mm.diffusion.rectified_flow import RectifiedFlow
from leam_mm.diffusion.time_shift import ExponentialShift, ResolutionShift
from leam_mm.errors import UserError


def test_square_root_law_keeps_the_uncertainty_of_a_constant_image() -> None:
    """Eq. 22 of 2403.03206: n equal positions determine their value up to (t / (1 - t)) / sqrt(n)."""
    law = ResolutionShift(64, base_shift=1.5)
    time = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)

    def uncertainty(positions: int) -> torch.Tensor:
        shift = law.at(positions)
        shifted = shift * time / (1 + (shift - 1) * time)
        return shifted / (1 - shifted) / math.sqrt(positions)

    torch.testing.assert_close(uncertainty(1024), uncertainty(64))
    assert law.at(64) == 1.5 and law.at(256) == pytest.approx(3.0)


@pytest.mark.parametrize("tokens", [256, 1000, 4096])
def test_exponential_law_equals_diffusers(tokens: int) -> None:
    assert math.log(ExponentialShift().at(4 * tokens)) == pytest.approx(calculate_shift(tokens), abs=1e-12)


@pytest.mark.parametrize("positions", [256, 1024, 4096])
def test_sampling_times_equal_the_dynamic_shifting_of_diffusers(positions: int) -> None:
    law = ExponentialShift(256, 4096)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    grid = torch.linspace(1.0, 1 / 20, 20).double().numpy()
    scheduler.set_timesteps(sigmas=grid, mu=math.log(law.at(positions)))
    shift = RectifiedFlow(shift=law).shift_at(positions)
    ours = shift * torch.from_numpy(grid) / (1 + (shift - 1) * torch.from_numpy(grid))
    torch.testing.assert_close(ours.float(), scheduler.sigmas[:-1], rtol=1e-6, atol=1e-6)


def test_each_size_trains_and_samples_with_its_own_shift() -> None:
    flow, uniform = RectifiedFlow(shift=ResolutionShift(16)), torch.tensor([0.2, 0.5, 0.8])
    for positions, shift in ((16, 1.0), (64, 2.0), (256, 4.0)):
        fixed = RectifiedFlow(shift=shift)
        assert torch.equal(flow.time(uniform, positions), fixed.time(uniform))
        assert torch.equal(flow.times(9, positions), fixed.times(9))
    for side in (4, 8):
        clean, noise = torch.randn(2, 3, 3, side, side)
        ours, theirs = (
            one.loss(lambda x, time: x, clean, noise, uniform) for one in (flow, RectifiedFlow(shift=side / 4))
        )
        assert torch.equal(ours, theirs)


def test_missing_positions_and_invalid_laws_are_refused() -> None:
    with pytest.raises(ValueError, match="number of latent positions"):
        RectifiedFlow(shift=ResolutionShift(16)).times(4)
    with pytest.raises(UserError, match="above 0"):
        ResolutionShift(0)
    with pytest.raises(UserError, match="two different numbers"):
        ExponentialShift(7, 7)


def test_yaml_gives_a_law_or_a_number() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DiffusionProcess, "process")
    law = {"class_path": f"{ResolutionShift.__module__}.ResolutionShift", "init_args": {"base_positions": 16}}
    for shift, expected in ((law, 2.0), (3.0, 3.0)):
        section = {"class_path": f"{RectifiedFlow.__module__}.RectifiedFlow", "init_args": {"shift": shift}}
        flow = parser.instantiate_classes(parser.parse_object({"process": section})).process
        assert flow.shift_at(64) == expected
