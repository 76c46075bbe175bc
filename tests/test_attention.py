import logging
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from toys.generators import torch_kernel, torch_packed_kernel

from leam_mm.denoisers.attention import (
    _deviation,
    _masked,
    _packed,
    choose_attention,
    head_sizes,
    probe_packed,
    probe_xformers,
)
from leam_mm.denoisers.denoiser import PRXDenoiser, UNetDenoiser
from leam_mm.denoisers.sd3_denoiser import SD3Denoiser
from leam_mm.errors import UserError


def careless_kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_bias: Any) -> torch.Tensor:
    """A kernel that forgets the mask."""
    return torch_kernel(query, key, value)


def misplaced_kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any) -> torch.Tensor:
    """A kernel that lets the samples see each other."""
    return torch_kernel(query[None], key[None], value[None])[0]


@pytest.fixture
def prx() -> Any:
    torch.manual_seed(0)
    model = PRXDenoiser(4, 12, hidden_size=32, depth=2, num_heads=2).model
    for value in model.parameters():
        if not value.any():
            torch.nn.init.normal_(value, std=0.1)
    return model


def test_deviation_is_small_for_a_right_kernel_and_large_for_one_that_forgets_the_mask() -> None:
    device = torch.device("cpu")
    assert _deviation(_masked(torch_kernel), device, torch.float32, 16) < 1e-5
    assert _deviation(_masked(careless_kernel), device, torch.float32, 16) > 0.2
    assert _deviation(_packed(torch_packed_kernel), device, torch.float32, 16) < 1e-5
    assert _deviation(_packed(misplaced_kernel), device, torch.float32, 16) > 0.2


@pytest.mark.parametrize("wanted", ["auto", "sdpa"])
def test_a_cpu_runs_sdpa_and_one_line_says_so(prx: Any, wanted: Any, caplog: pytest.LogCaptureFixture) -> None:
    unet = UNetDenoiser(4, 12, block_channels=[32, 32]).model
    joint = SD3Denoiser(4, 12, hidden_size=32, depth=1, num_heads=2).model
    before = _AttentionBackendRegistry.get_active_backend()
    for model in (prx, unet, joint):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="leam_mm.denoisers.attention"):
            assert choose_attention(model, torch.device("cpu"), torch.float32, wanted) == "sdpa"
        lines = [record.getMessage() for record in caplog.records if record.name == "leam_mm.denoisers.attention"]
        assert len(lines) == 1
        assert "sdpa" in lines[0] and ("cpu" in lines[0]) and type(model).__name__ in lines[0]
        name = type(next(iter(model.attn_processors.values()))).__name__
        assert name in ("PRXAttnProcessor2_0", "AttnProcessor2_0", "JointProcessor")
    assert _AttentionBackendRegistry.get_active_backend() == before


def test_wanted_xformers_that_does_not_work_is_an_error_with_a_cure(prx: Any) -> None:
    with pytest.raises(UserError, match=r"does not work on cpu .* no kernels for a cpu.*auto or sdpa"):
        choose_attention(prx, torch.device("cpu"), torch.float32, "xformers")
    with pytest.raises(UserError, match=r"packed does not work on cpu .* no kernel of packed rows for a cpu"):
        choose_attention(prx, torch.device("cpu"), torch.bfloat16, "packed")
    unet = UNetDenoiser(4, 12, block_channels=[32, 32]).model
    with pytest.raises(UserError, match="PRXTransformer2DModel only, not for a UNet2DConditionModel"):
        choose_attention(unet, torch.device("cpu"), torch.bfloat16, "packed")


def test_head_sizes(prx: Any) -> None:
    assert head_sizes(prx) == {16}
    assert head_sizes(UNetDenoiser(4, 12, block_channels=[32, 64], num_heads=4).model) == {8, 16}


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "dtype"), [("xformers", torch.float32), ("xformers", torch.bfloat16), ("packed", torch.bfloat16)]
)
def test_kernels_agree_with_sdpa_on_a_gpu(name: Any, dtype: torch.dtype) -> None:
    device = torch.device("cuda")
    reason = {"xformers": probe_xformers, "packed": probe_packed}[name](device, dtype, {16, 64})
    if reason:
        pytest.skip(reason)
    torch.manual_seed(0)
    denoiser = PRXDenoiser(4, 12, hidden_size=32, depth=2, num_heads=2).to(device)
    for value in denoiser.parameters():
        torch.nn.init.normal_(value, std=0.1)
    latent, state = torch.randn(2, 4, 8, 8, device=device), torch.randn(2, 7, 12, device=device)
    mask = torch.arange(7, device=device) < torch.tensor([[2], [7]], device=device)
    time = torch.tensor([0.2, 0.9], device=device)
    answers = []
    for wanted in ("sdpa", name):
        assert choose_attention(denoiser.model, device, dtype, wanted) == wanted  # type: ignore[arg-type]
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            answers.append(denoiser(latent, time, state, mask).float())
    torch.testing.assert_close(*answers, rtol=0.05, atol=0.05)
