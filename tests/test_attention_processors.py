from typing import Any

import pytest
import torch
from torch import Tensor
from toys.generators import fill_zero_weights, packed_inputs, small_prx, torch_kernel, torch_packed_kernel

from leam_mm.denoisers.attention_processors import (
    JointProcessor,
    MemoryEfficientProcessor,
    PackedProcessor,
    mask_to_bias,
)
from leam_mm.denoisers.sd3_denoiser import SD3Denoiser


@pytest.mark.parametrize("masked", [True, False])
def test_memory_efficient_processor_equals_diffusers_own(masked: bool) -> None:
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
def test_packed_captions_are_the_masked_ones(lengths: list[int]) -> None:
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


def test_the_packed_kernel_is_asked_where_something_is_masked_alone() -> None:
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
        denoiser(*packed_inputs([5, 2, 7]))  # in full precision torch's own runs
        assert len(calls) == 2


@pytest.mark.parametrize("lengths", [[2, 7, 4], [7, 7, 7]])
def test_joint_processor_computes_alike_through_either_kernel(lengths: list[int]) -> None:
    torch.manual_seed(0)
    denoiser = fill_zero_weights(SD3Denoiser(4, 12, hidden_size=32, depth=2, num_heads=2), seed=1)
    answers = []
    for processor in (JointProcessor(), JointProcessor(torch_kernel)):
        denoiser.model.set_attn_processor(processor)
        answers.append(denoiser(*packed_inputs(lengths)))
    torch.testing.assert_close(*answers)


def test_bias_is_aligned_and_shared() -> None:
    bias = mask_to_bias(torch.tensor([[True, False, True]]), torch.zeros(1, 5, 2, 8), keys=9)
    assert bias.shape == (1, 2, 5, 9)
    assert all(stride % 8 == 0 for stride in bias.stride()[:-1])
    assert bias.isinf().sum() == 2 * 5 and bias[0, 0, 0, 1] == float("-inf")
    behind = mask_to_bias(torch.tensor([[True, False, True]]), torch.zeros(1, 5, 2, 8), keys=9, first=6)
    assert behind.isinf().sum() == 2 * 5 and behind[0, 0, 0, 7] == float("-inf")


@pytest.mark.slow
def test_packed_blocks_compiled_once_take_captions_of_any_lengths() -> None:
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
