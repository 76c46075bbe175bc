"""LatentDiffusionModule.sample with every sampler, process and guidance; test_diffusion_module.py has the rest."""

from typing import Any

import pytest
import torch
from toys.generators import SignLatents, generator_module, randomise_generator

from leam_mm.data.batch import collate_samples
from leam_mm.diffusion.clean_flow import CleanFlow
from leam_mm.diffusion.edm import Edm
from leam_mm.diffusion.guidance import Guidance
from leam_mm.diffusion.rectified_flow import RectifiedFlow
from leam_mm.diffusion.time_shift import ResolutionShift
from leam_mm.diffusion.variance_preserving import VariancePreservingNoise


def test_every_sampler_draws_by_the_number_alone() -> None:
    module = randomise_generator(generator_module())
    module.codec.decode = lambda latent: latent[:, :3] / 100  # type: ignore[method-assign]  # nothing is clamped
    prompts = ["ein Kreis", "zwei rote Kreise", "κύκλος"]
    drawn = {}
    for method in ("euler", "heun", "dpm", "sde"):
        drawn[method] = module.sample(prompts, seed=3, steps=5, method=method)
        last = module.sample(prompts[2:], seed=3, steps=5, method=method, first_index=2)
        torch.testing.assert_close(last, drawn[method][2:])
    pairs = [(one, other) for one in drawn for other in drawn if one < other]
    assert all(not torch.allclose(drawn[one], drawn[other], atol=1e-5) for one, other in pairs)
    assert torch.equal(module.sample(prompts, seed=3, steps=5), drawn["euler"])  # RectifiedFlow's own


@pytest.mark.parametrize("process", [CleanFlow(), Edm(sigma_data=0.5), VariancePreservingNoise()])
def test_every_process_draws(process: Any) -> None:
    module = randomise_generator(generator_module(process=process))
    for method in ("euler", "heun", "dpm", "sde", None):
        assert module.sample(["ein Kreis"], seed=3, steps=3, method=method).isfinite().all()


def test_guidance_in_an_interval_saves_calls() -> None:
    module = randomise_generator(generator_module())
    rows: list[int] = []
    module.ema_denoiser().register_forward_hook(lambda network, given, found: rows.append(len(given[0])))
    whole = module.sample(["a b", "c"], seed=3, steps=8, guidance=Guidance(3.0))
    assert torch.equal(whole, module.sample(["a b", "c"], seed=3, steps=8, guidance=3.0))
    assert rows == [4] * 16
    rows.clear()
    part = module.sample(["a b", "c"], seed=3, steps=8, guidance=Guidance(3.0, low=0.2, high=0.8))
    times = module.process.times(8)[:-1]
    assert rows == [4 if 0.2 < time < 0.8 else 2 for time in times.tolist()] and set(rows) == {2, 4}
    assert not torch.allclose(part, whole)


def test_a_shift_by_size_follows_the_size_of_the_latents() -> None:
    module = randomise_generator(generator_module(process=RectifiedFlow(shift=ResolutionShift(16))))
    fixed = randomise_generator(generator_module(process=RectifiedFlow(shift=2.0)))
    for one in (module, fixed):
        one.codec.decode = lambda latent: latent[:, :3] / 100  # type: ignore[method-assign]
    large = module.sample(["a"], seed=3, steps=4, size=(8, 8))
    assert large.shape == (1, 3, 8, 8)
    torch.testing.assert_close(large, fixed.sample(["a"], seed=3, steps=4, size=(8, 8)))
    assert not torch.allclose(
        large, randomise_generator(generator_module()).sample(["a"], seed=3, steps=4, size=(8, 8)), atol=1e-5
    )
    sample = {**SignLatents(1)[0], "latent": torch.randn(4, 8, 8)}
    with torch.no_grad():
        ours, theirs = (one.sample_losses(collate_samples([sample])) for one in (module, fixed))
    torch.testing.assert_close(ours, theirs)
