"""The blocks of PRX in a sampler compute what diffusers' blocks compute, at known and unknown times."""

from typing import Any

import pytest
import torch
from toys.generators import packed_inputs, small_prx

from leam_mm.denoisers import denoiser as denoisers
from leam_mm.denoisers.denoiser import Denoiser


def randomised(denoiser: Denoiser) -> Denoiser:
    """No weight is zero, so that shifts, scales, gates and norms all matter."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return denoiser


@pytest.mark.parametrize("lengths", [[2, 7], [5, 5]])
@torch.no_grad()
def test_predictions_are_those_of_the_blocks_of_diffusers(lengths: list[int], monkeypatch: Any) -> None:
    denoiser = randomised(small_prx())
    latent, _, state, mask = packed_inputs(lengths)
    times = torch.tensor([1.0, 0.6, 0.25, 0.0])
    ran: list[int] = []
    asked = [torch.full((2,), value) for value in (1.0, 0.25, 0.3)] + [torch.tensor([0.6, 0.25])]
    expected = [denoiser(latent, time, state, mask) for time in asked]

    def run(*given: Any) -> Any:
        ran.append(given[3].final.shape[0])
        return plain(*given)

    plain = denoisers.run_plain
    monkeypatch.setattr(denoisers, "run_plain", run)
    with denoiser.sampling(times):
        found = [denoiser(latent, time, state, mask) for time in asked]
    assert ran == [1, 1, 2, 2]  # the first two times are known, 0.3 is not, and the last two differ
    for mine, theirs in zip(found, expected, strict=True):
        assert theirs.std() > 0.1
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-5 * float(theirs.abs().max()))


def test_training_autocast_and_hooks_run_the_blocks_of_diffusers(monkeypatch: Any) -> None:
    denoiser = small_prx()
    latent, time, state, mask = packed_inputs([3, 4])
    monkeypatch.setattr(denoisers, "run_plain", None)  # a call would fail
    with denoiser.sampling():
        denoiser(latent, time, state, mask).sum().backward()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), denoiser.sampling():
        denoiser(latent, time, state, mask)
    calls: list[int] = []
    denoiser.model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad(), denoiser.sampling():
        denoiser(latent, time, state, mask)
    assert calls == [1]
