import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from leam_mm.errors import UserError
from leam_mm.models.attention import (
    MemoryEfficientProcessor,
    _deviation,
    choose_attention,
    head_sizes,
    mask_to_bias,
    probe_xformers,
)
from leam_mm.models.denoiser import PRXDenoiser, UNetDenoiser


def torch_kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_bias: Any = None) -> torch.Tensor:
    """What xformers' kernel computes, from torch."""
    swapped = [part.transpose(1, 2) for part in (query, key, value)]
    return F.scaled_dot_product_attention(*swapped, attn_mask=attn_bias).transpose(1, 2)


def careless_kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_bias: Any) -> torch.Tensor:
    """A kernel that forgets the mask."""
    return torch_kernel(query, key, value)


@pytest.fixture
def prx() -> Any:
    torch.manual_seed(0)
    model = PRXDenoiser(4, 12, hidden_size=32, depth=2, num_heads=2).model
    for value in model.parameters():
        if not value.any():
            torch.nn.init.normal_(value, std=0.1)
    return model


@pytest.mark.parametrize("masked", [True, False])
def test_memory_efficient_processor_equals_diffusers_own(prx: Any, masked: bool) -> None:
    latent, state, time = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 12), torch.tensor([0.2, 0.9])
    mask = torch.arange(7) < torch.tensor([[2], [7]]) if masked else None
    arguments = {"timestep": time, "encoder_hidden_states": state, "attention_mask": mask}
    theirs = prx(latent, **arguments).sample
    prx.set_attn_processor(MemoryEfficientProcessor(torch_kernel))
    ours = prx(latent, **arguments).sample
    torch.testing.assert_close(ours, theirs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(prx(latent, **arguments).sample).all()


def test_bias_is_aligned_and_shared() -> None:
    bias = mask_to_bias(torch.tensor([[True, False, True]]), torch.zeros(1, 5, 2, 8), keys=9)
    assert bias.shape == (1, 2, 5, 9)
    assert all(stride % 8 == 0 for stride in bias.stride()[:-1])
    assert bias.isinf().sum() == 2 * 5 and bias[0, 0, 0, 1] == float("-inf")


def test_deviation_is_small_for_a_right_kernel_and_large_for_one_that_forgets_the_mask() -> None:
    device = torch.device("cpu")
    assert _deviation(torch_kernel, device, torch.float32, 16) < 1e-5
    assert _deviation(careless_kernel, device, torch.float32, 16) > 0.2


@pytest.mark.parametrize("wanted", ["auto", "sdpa"])
def test_a_cpu_runs_sdpa_and_one_line_says_so(prx: Any, wanted: Any, caplog: pytest.LogCaptureFixture) -> None:
    unet = UNetDenoiser(4, 12, block_channels=[32, 32]).model
    before = _AttentionBackendRegistry.get_active_backend()
    for model in (prx, unet):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="leam_mm.models.attention"):
            assert choose_attention(model, torch.device("cpu"), torch.float32, wanted) == "sdpa"
        lines = [record.getMessage() for record in caplog.records if record.name == "leam_mm.models.attention"]
        assert len(lines) == 1
        assert "sdpa" in lines[0] and ("cpu" in lines[0]) and type(model).__name__ in lines[0]
        name = type(next(iter(model.attn_processors.values()))).__name__
        assert name in ("PRXAttnProcessor2_0", "AttnProcessor2_0")
    assert _AttentionBackendRegistry.get_active_backend() == before


def test_wanted_xformers_that_does_not_work_is_an_error_with_a_cure(prx: Any) -> None:
    with pytest.raises(UserError, match=r"does not work on cpu .* no kernels for a cpu.*auto or sdpa"):
        choose_attention(prx, torch.device("cpu"), torch.float32, "xformers")


def test_head_sizes(prx: Any) -> None:
    assert head_sizes(prx) == {16}
    assert head_sizes(UNetDenoiser(4, 12, block_channels=[32, 64], num_heads=4).model) == {8, 16}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_xformers_agrees_with_sdpa_on_a_gpu(prx: Any, dtype: torch.dtype) -> None:
    device = torch.device("cuda")
    reason = probe_xformers(device, dtype, {16, 64})
    if reason:
        pytest.skip(reason)
    latent, state = torch.randn(2, 4, 8, 8, device=device), torch.randn(2, 7, 12, device=device)
    mask = torch.arange(7, device=device) < torch.tensor([[2], [7]], device=device)
    time = torch.tensor([0.2, 0.9], device=device)
    prx.to(device)
    answers = []
    for wanted in ("sdpa", "xformers"):
        assert choose_attention(prx, device, dtype, wanted) == wanted  # type: ignore[arg-type]
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            answers.append(prx(latent, timestep=time, encoder_hidden_states=state, attention_mask=mask).sample.float())
    torch.testing.assert_close(*answers, rtol=0.05, atol=0.05)
