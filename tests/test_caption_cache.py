from typing import Any

import pytest
import torch
from torch import Tensor
from toys.generators import packed_inputs, small_prx, torch_kernel, torch_packed_kernel

from leam_mm.denoisers.attention_processors import MemoryEfficientProcessor, PackedProcessor
from leam_mm.denoisers.caption_cache import CaptionKeysValues, caption_key_value
from leam_mm.denoisers.denoiser import PRXDenoiser


def projections(denoiser: Any) -> list[int]:
    """Counts, from now on, how often each block makes keys of captions."""
    counts = [0] * denoiser.depth
    for number, block in enumerate(denoiser.model.blocks):

        def count(*_: object, number: int = number) -> None:
            counts[number] += 1

        block.attention.txt_kv_proj.register_forward_hook(count)
    return counts


@pytest.mark.parametrize("lengths", [[2, 7], [5, 5]])
@pytest.mark.parametrize(
    "processor",
    [
        None,
        MemoryEfficientProcessor(torch_kernel),
        PackedProcessor(torch_packed_kernel),
        PackedProcessor(torch_packed_kernel, dtypes=(torch.float32,)),
    ],
)
@torch.no_grad()
def test_kept_keys_are_the_ones_made_anew(processor: Any, lengths: list[int]) -> None:
    denoiser = small_prx()
    if processor is not None:
        denoiser.model.set_attn_processor(processor)
    before = dict(denoiser.model.attn_processors)
    latent, time, state, mask = packed_inputs(lengths)
    times = [time, time * 0.7, time * 0.4]
    anew = [denoiser(latent, moment, state, mask) for moment in times]
    counts = projections(denoiser)
    with denoiser.sampling():
        kept = [denoiser(latent, moment, state, mask) for moment in times]
        assert counts == [1, 1]
        other = denoiser(latent, time, state.flip(0), mask.flip(0))
        denoiser(latent, time, state, mask)
        assert counts == [2, 2]  # another tensor is another caption, and the first is still known
    for mine, theirs in zip(kept, anew, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-6)
    torch.testing.assert_close(other, denoiser(latent, time, state.flip(0), mask.flip(0)), rtol=0, atol=2e-6)
    assert denoiser.model.attn_processors == before


@torch.no_grad()
def test_nothing_is_remembered_afterwards() -> None:
    denoiser = small_prx()
    latent, time, state, mask = packed_inputs([3, 4])
    with denoiser.sampling():
        first = denoiser(latent, time, state, mask)
    state += 1
    second = denoiser(latent, time, state, mask)
    assert not torch.allclose(first, second)
    with denoiser.sampling():
        torch.testing.assert_close(denoiser(latent, time, state, mask), second, rtol=0, atol=2e-6)
    with pytest.raises(RuntimeError, match="half way"), denoiser.sampling():
        raise RuntimeError("half way")
    assert denoiser._cache is None  # type: ignore[attr-defined]


@torch.no_grad()
def test_compiled_blocks_get_plain_captions() -> None:
    denoiser = small_prx()
    latent, time, state, mask = packed_inputs([3, 4])
    kinds: set[type] = set()

    def look(_: object, __: object, given: dict[str, Any]) -> None:
        kinds.add(type(given["encoder_hidden_states"]))

    for block in denoiser.model.blocks:  # type: ignore[union-attr]
        block.register_forward_pre_hook(look, with_kwargs=True)
    with denoiser.sampling():
        denoiser(latent, time, state, mask)
    assert kinds == {CaptionKeysValues}
    kinds.clear()
    for block in denoiser.model.blocks:  # type: ignore[union-attr]
        block._compiled_call_impl = block._call_impl
    with denoiser.sampling():
        denoiser(latent, time, state, mask)
    assert kinds == {Tensor}


@torch.no_grad()
def test_what_is_kept_has_a_limit() -> None:
    denoiser = small_prx()
    assert isinstance(denoiser, PRXDenoiser)
    layers = [block.attention for block in denoiser.model.blocks]
    text = torch.randn(2, 5, 32)
    heads = CaptionKeysValues(text, max_bytes=2 * 2 * 5 * 32 * 4)  # one layer's keys and values
    for layer in layers:
        for mine, direct in zip(heads.of(layer), caption_key_value(layer, text), strict=True):
            assert torch.equal(mine, direct)
    assert heads.of(layers[0])[0] is heads.of(layers[0])[0]
    assert heads.of(layers[1])[0] is not heads.of(layers[1])[0]
