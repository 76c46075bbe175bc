"""Captions in the denoiser: trimmed and packed per batch, and their keys kept during sampling."""

from typing import Any

import pytest
import torch
from torch import Tensor
from toys.generators import packed_inputs, small_prx, torch_kernel, torch_packed_kernel

from leam_mm.denoisers.attention_processors import MemoryEfficientProcessor, PackedProcessor
from leam_mm.denoisers.caption_cache import CaptionKeysValues, caption_key_value
from leam_mm.denoisers.caption_packing import TrimmedCaptions, pack_keys
from leam_mm.denoisers.denoiser import PRXDenoiser


def count_projections(denoiser: Any) -> list[int]:
    """Count from now on how often each block computes keys of captions."""
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
def test_cached_keys_give_the_predictions_of_computed_ones(processor: Any, lengths: list[int]) -> None:
    denoiser = small_prx()
    if processor is not None:
        denoiser.model.set_attn_processor(processor)
    before = dict(denoiser.model.attn_processors)
    latent, time, state, mask = packed_inputs(lengths)
    times = [time, time * 0.7, time * 0.4]
    computed = [denoiser(latent, t, state, mask) for t in times]
    counts = count_projections(denoiser)
    with denoiser.sampling():
        cached = [denoiser(latent, t, state, mask) for t in times]
        assert counts == [1, 1]
        other = denoiser(latent, time, state.flip(0), mask.flip(0))
        denoiser(latent, time, state, mask)
        assert counts == [2, 2]  # another tensor is another caption, and the first stays cached
    for mine, theirs in zip(cached, computed, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-6)
    torch.testing.assert_close(other, denoiser(latent, time, state.flip(0), mask.flip(0)), rtol=0, atol=2e-6)
    assert denoiser.model.attn_processors == before


@torch.no_grad()
def test_cache_is_empty_after_sampling() -> None:
    denoiser = small_prx()
    latent, time, state, mask = packed_inputs([3, 4])
    with denoiser.sampling():
        first = denoiser(latent, time, state, mask)
    state += 1
    second = denoiser(latent, time, state, mask)
    assert not torch.allclose(first, second)
    with denoiser.sampling():
        torch.testing.assert_close(denoiser(latent, time, state, mask), second, rtol=0, atol=2e-6)
    with pytest.raises(RuntimeError, match="stopped"), denoiser.sampling():
        raise RuntimeError("stopped")
    assert denoiser._cache is None  # type: ignore[attr-defined]


@torch.no_grad()
def test_compiled_blocks_receive_plain_captions() -> None:
    denoiser = small_prx()
    latent, time, state, mask = packed_inputs([3, 4])
    kinds: set[type] = set()

    def record(_: object, __: object, arguments: dict[str, Any]) -> None:
        kinds.add(type(arguments["encoder_hidden_states"]))

    for block in denoiser.model.blocks:  # type: ignore[union-attr]
        block.register_forward_pre_hook(record, with_kwargs=True)
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
def test_cache_size_has_a_limit() -> None:
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


def captions(rows: list[list[int]]) -> TrimmedCaptions:
    mask = torch.tensor(rows, dtype=torch.bool)
    return TrimmedCaptions(torch.arange(mask.numel()).reshape(*mask.shape, 1).float(), mask)


def test_common_padding_is_cut_and_equal_lengths_need_no_mask() -> None:
    same = captions([[1, 1, 0, 0], [1, 1, 0, 0]])
    assert same.mask is None and same.state.shape == (2, 2, 1) and same.packed(5) is None
    uneven = captions([[1, 0, 0, 0], [1, 1, 1, 0]])
    assert uneven.mask is not None and uneven.mask.tolist() == [[True, False, False], [True, True, True]]
    assert uneven.state.shape == (2, 3, 1)


def test_holes_and_empty_captions_stay_masked() -> None:
    holes = captions([[1, 0, 1], [1, 0, 1]])
    assert holes.mask is not None and holes.mask.tolist() == [[True, False, True]] * 2
    nothing = captions([[0, 0], [0, 0]])
    assert nothing.mask is not None and nothing.mask.tolist() == [[False]] * 2


@pytest.mark.parametrize("tokens", [1, 4])
def test_packed_keys_are_the_unmasked_ones_in_order(tokens: int) -> None:
    mask = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1]], dtype=torch.bool)
    keys = pack_keys(mask, mask.sum(1), tokens)
    rows = [
        row * (3 + tokens) + column
        for row in range(3)
        for column in range(3 + tokens)
        if column >= 3 or mask[row, column]
    ]
    assert keys.real.tolist() == rows
    assert keys.key_starts.tolist() == [0, 2 + tokens, 2 + 2 * tokens, 5 + 3 * tokens]
    assert keys.query_starts.tolist() == [0, tokens, 2 * tokens, 3 * tokens]
    assert keys.longest_query == tokens and keys.longest_key == 3 + tokens
    assert keys.key_starts.dtype == keys.query_starts.dtype == torch.int32


def test_packing_is_cached_per_number_of_tokens() -> None:
    uneven = captions([[1, 0], [1, 1]])
    assert uneven.packed(4) is uneven.packed(4) and uneven.packed(4) is not uneven.packed(2)
