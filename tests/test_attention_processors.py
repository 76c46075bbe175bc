from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from leam_mm.denoisers.attention_processors import (
    JointProcessor,
    MemoryEfficientProcessor,
    PackedProcessor,
    mask_to_bias,
)
from leam_mm.denoisers.denoiser import Denoiser, PRXDenoiser
from leam_mm.denoisers.sd3_denoiser import SD3Denoiser


def torch_kernel(query: Tensor, key: Tensor, value: Tensor, attn_bias: Any = None) -> Tensor:
    """What xformers' kernel computes, from torch."""
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_bias).transpose(1, 2)


def torch_packed_kernel(
    query: Tensor, key: Tensor, value: Tensor, query_starts: Tensor, key_starts: Tensor, *longest: int
) -> Tensor:
    """What torch's kernel of packed rows computes, sample by sample."""
    found = []
    for sample in range(len(query_starts) - 1):
        mine = slice(int(query_starts[sample]), int(query_starts[sample + 1]))
        keys = slice(int(key_starts[sample]), int(key_starts[sample + 1]))
        assert mine.stop - mine.start <= longest[0] and keys.stop - keys.start <= longest[1]
        found.append(torch_kernel(query[None, mine], key[None, keys], value[None, keys])[0])
    return torch.cat(found)


def wake(denoiser: Denoiser) -> Denoiser:
    torch.manual_seed(1)
    for value in denoiser.parameters():
        if not value.any():
            torch.nn.init.normal_(value, std=0.1)
    return denoiser


def prx() -> Denoiser:
    torch.manual_seed(0)
    return wake(PRXDenoiser(4, 12, hidden_size=32, depth=2, num_heads=2))


def parts(lengths: list[int], columns: int = 7) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    count = len(lengths)
    latent = torch.randn(count, 4, 8, 8, generator=generator)
    state = torch.randn(count, columns, 12, generator=generator)
    return latent, torch.linspace(0.2, 0.9, count), state, torch.arange(columns) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("masked", [True, False])
def test_memory_efficient_processor_equals_diffusers_own(masked: bool) -> None:
    model = prx().model
    latent, time, state, mask = parts([2, 7])
    arguments = {"timestep": time, "encoder_hidden_states": state, "attention_mask": mask if masked else None}
    theirs = model(latent, **arguments).sample
    for processor in (MemoryEfficientProcessor(torch_kernel), PackedProcessor(torch_packed_kernel)):
        model.set_attn_processor(processor)
        torch.testing.assert_close(model(latent, **arguments).sample, theirs)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.isfinite(model(latent, **arguments).sample).all()


@pytest.mark.parametrize("lengths", [[2, 7, 4], [1, 1, 7], [0, 3, 5]])
def test_packed_captions_are_the_masked_ones(lengths: list[int]) -> None:
    masked, packed = prx(), prx()
    packed.model.set_attn_processor(PackedProcessor(torch_packed_kernel, dtypes=(torch.float32,)))
    answers = []
    for denoiser in (masked, packed):
        answer = denoiser(*parts(lengths))
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

    denoiser = prx()
    denoiser.model.set_attn_processor(PackedProcessor(spy, dtypes=(torch.float32,)))
    with torch.no_grad():
        denoiser(*parts([5, 5, 5]))  # cut to five tokens
        assert calls == []
        denoiser(*parts([5, 2, 7]))
        assert calls == [5 + 2 + 7 + 3 * 16] * 2
        denoiser.model.set_attn_processor(PackedProcessor(spy))
        denoiser(*parts([5, 2, 7]))  # in full precision torch's own runs
        assert len(calls) == 2


@pytest.mark.parametrize("lengths", [[2, 7, 4], [7, 7, 7]])
def test_joint_processor_computes_alike_through_either_kernel(lengths: list[int]) -> None:
    torch.manual_seed(0)
    denoiser = wake(SD3Denoiser(4, 12, hidden_size=32, depth=2, num_heads=2))
    answers = []
    for processor in (JointProcessor(), JointProcessor(torch_kernel)):
        denoiser.model.set_attn_processor(processor)
        answers.append(denoiser(*parts(lengths)))
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
    packed, masked = prx(), prx()
    kernel = torch.compiler.disable(torch_packed_kernel)
    packed.model.set_attn_processor(PackedProcessor(kernel, dtypes=(torch.float32,)))
    for block in packed.model.blocks:
        block.compile(backend="eager", dynamic=True)
    with torch.no_grad():
        packed(*parts([3, 6, 5]))
        packed(*parts([2, 5, 7]))
        with torch._dynamo.config.patch(error_on_recompile=True):
            for lengths in ([4, 6, 2], [7, 3, 5], [2, 3, 4]):
                torch.testing.assert_close(packed(*parts(lengths)), masked(*parts(lengths)))
    torch._dynamo.reset()
