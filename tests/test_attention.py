"""Attention kernels: each equals the reference, and the one that fits the device is chosen."""

import logging
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch import Tensor
from toys.generators import (
    build_denoiser,
    fill_zero_weights,
    packed_inputs,
    small_prx,
    torch_kernel,
    torch_packed_kernel,
)

from leam_mm.denoisers.attention import (
    _deviation,
    _masked,
    _packed,
    choose_attention,
    head_sizes,
    probe_packed,
    probe_xformers,
)
from leam_mm.denoisers.attention_processors import (
    JointProcessor,
    MemoryEfficientProcessor,
    PackedProcessor,
    mask_to_bias,
)
from leam_mm.denoisers.denoiser import UNetDenoiser
from leam_mm.errors import UserError

CPU = torch.device("cpu")


def unmasked_kernel(query: Tensor, key: Tensor, value: Tensor, attn_bias: Any) -> Tensor:
    """A wrong kernel that ignores the mask."""
    return torch_kernel(query, key, value)


def unpacked_kernel(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
    """A wrong kernel in which samples attend to each other."""
    return torch_kernel(query[None], key[None], value[None])[0]


@pytest.fixture
def prx() -> Any:
    return small_prx().model


@pytest.mark.parametrize(
    ("right", "wrong"),
    [(_masked(torch_kernel), _masked(unmasked_kernel)), (_packed(torch_packed_kernel), _packed(unpacked_kernel))],
)
def test_deviation_separates_correct_kernels_from_wrong_ones(right: Any, wrong: Any) -> None:
    assert _deviation(right, CPU, torch.float32, 16) < 1e-5
    assert _deviation(wrong, CPU, torch.float32, 16) > 0.2


@pytest.mark.parametrize("wanted", ["auto", "sdpa"])
def test_cpu_uses_sdpa_and_logs_one_line(prx: Any, wanted: Any, caplog: pytest.LogCaptureFixture) -> None:
    unet = UNetDenoiser(4, 12, block_channels=[32, 32]).model
    before = _AttentionBackendRegistry.get_active_backend()
    for model in (prx, unet, build_denoiser("sd3").model):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="leam_mm.denoisers.attention"):
            assert choose_attention(model, CPU, torch.float32, wanted) == "sdpa"
        (line,) = [record.getMessage() for record in caplog.records if record.name == "leam_mm.denoisers.attention"]
        assert "sdpa" in line and "cpu" in line and type(model).__name__ in line
        name = type(next(iter(model.attn_processors.values()))).__name__
        assert name in ("PRXAttnProcessor2_0", "AttnProcessor2_0", "JointProcessor")
    assert _AttentionBackendRegistry.get_active_backend() == before


def test_kernel_that_does_not_work_here_is_refused_with_advice(prx: Any) -> None:
    unet = UNetDenoiser(4, 12, block_channels=[32, 32]).model
    for model, dtype, wanted, reason in (
        (prx, torch.float32, "xformers", r"does not work on cpu .* no kernels for a cpu.*auto or sdpa"),
        (prx, torch.bfloat16, "packed", r"packed does not work on cpu .* no kernel of packed rows for a cpu"),
        (unet, torch.bfloat16, "packed", "PRXTransformer2DModel only, not for a UNet2DConditionModel"),
    ):
        with pytest.raises(UserError, match=reason):
            choose_attention(model, CPU, dtype, wanted)  # type: ignore[arg-type]


def test_head_sizes(prx: Any) -> None:
    assert head_sizes(prx) == {16}
    assert head_sizes(UNetDenoiser(4, 12, block_channels=[32, 64], num_heads=4).model) == {8, 16}


@pytest.mark.parametrize("masked", [True, False])
def test_processors_equal_that_of_diffusers(masked: bool) -> None:
    model = small_prx().model
    latent, time, state, mask = packed_inputs([2, 7])
    arguments = {"timestep": time, "encoder_hidden_states": state, "attention_mask": mask if masked else None}
    theirs = model(latent, **arguments).sample
    for processor in (MemoryEfficientProcessor(torch_kernel), PackedProcessor(torch_packed_kernel)):
        model.set_attn_processor(processor)
        torch.testing.assert_close(model(latent, **arguments).sample, theirs)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.isfinite(model(latent, **arguments).sample).all()


@pytest.mark.parametrize("lengths", [[2, 7, 4], [1, 1, 7], [0, 3, 5]])
def test_packed_captions_give_the_outputs_and_gradients_of_masked_ones(lengths: list[int]) -> None:
    masked, packed = small_prx(), small_prx()
    packed.model.set_attn_processor(PackedProcessor(torch_packed_kernel, dtypes=(torch.float32,)))
    answers = []
    for denoiser in (masked, packed):
        answer = denoiser(*packed_inputs(lengths))
        answer.square().sum().backward()
        answers.append(answer)
    torch.testing.assert_close(*answers)
    for one, other in zip(masked.parameters(), packed.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-5)


def test_packed_kernel_runs_only_for_captions_of_different_lengths() -> None:
    calls = []

    def spy(*arguments: Any) -> Tensor:
        calls.append(len(arguments[1]))
        return torch_packed_kernel(*arguments)

    denoiser = small_prx()
    denoiser.model.set_attn_processor(PackedProcessor(spy, dtypes=(torch.float32,)))
    with torch.no_grad():
        denoiser(*packed_inputs([5, 5, 5]))  # cut to five tokens
        assert calls == []
        denoiser(*packed_inputs([5, 2, 7]))
        assert calls == [5 + 2 + 7 + 3 * 16] * 2
        denoiser.model.set_attn_processor(PackedProcessor(spy))
        denoiser(*packed_inputs([5, 2, 7]))  # in full precision torch's own kernel runs
        assert len(calls) == 2


@pytest.mark.parametrize("lengths", [[2, 7, 4], [7, 7, 7]])
def test_joint_processor_gives_the_same_through_both_kernels(lengths: list[int]) -> None:
    denoiser = fill_zero_weights(build_denoiser("sd3"), seed=1)
    answers = []
    for processor in (JointProcessor(), JointProcessor(torch_kernel)):
        denoiser.model.set_attn_processor(processor)
        answers.append(denoiser(*packed_inputs(lengths)))
    torch.testing.assert_close(*answers)


def test_bias_is_aligned_and_shared() -> None:
    mask, query = torch.tensor([[True, False, True]]), torch.zeros(1, 5, 2, 8)
    bias = mask_to_bias(mask, query, keys=9)
    assert bias.shape == (1, 2, 5, 9)
    assert all(stride % 8 == 0 for stride in bias.stride()[:-1])
    assert bias.isinf().sum() == 2 * 5 and bias[0, 0, 0, 1] == float("-inf")
    behind = mask_to_bias(mask, query, keys=9, first=6)
    assert behind.isinf().sum() == 2 * 5 and behind[0, 0, 0, 7] == float("-inf")


@pytest.mark.slow
def test_compiled_packed_blocks_accept_captions_of_any_lengths() -> None:
    torch._dynamo.reset()
    packed, masked = small_prx(), small_prx()
    kernel = torch.compiler.disable(torch_packed_kernel)
    packed.model.set_attn_processor(PackedProcessor(kernel, dtypes=(torch.float32,)))
    for block in packed.model.blocks:
        block.compile(backend="eager", dynamic=True)
    with torch.no_grad():
        packed(*packed_inputs([3, 6, 5]))
        packed(*packed_inputs([2, 5, 7]))
        with torch._dynamo.config.patch(error_on_recompile=True):
            for lengths in ([4, 6, 2], [7, 3, 5], [2, 3, 4]):
                torch.testing.assert_close(packed(*packed_inputs(lengths)), masked(*packed_inputs(lengths)))
    torch._dynamo.reset()


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
    denoiser = build_denoiser("prx").to(device)
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
