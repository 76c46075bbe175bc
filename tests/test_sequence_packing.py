import copy
import itertools
import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import nn
from toys.encoders import PACKED_LENGTH, PACKED_LENGTHS, VOCABULARY, packed_texts

from leam_mm.encoders import sequence_packing
from leam_mm.encoders.sequence_packing import (
    Packing,
    _blocks,
    _deviation,
    group_lengths,
    packed_states,
    probe_block_diagonal,
)
from leam_mm.encoders.token_layout import enable_layouts

CPU = torch.device("cpu")


def clip(seed: int = 0, dtype: torch.dtype = torch.float64, quick_gelu: bool = False, **text: Any) -> Any:
    """open_clip's own model, with places that matter."""
    torch.manual_seed(seed)
    vision = {"image_size": 8, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
    settings = {"context_length": PACKED_LENGTH, "vocab_size": VOCABULARY, "width": 24, "heads": 2, "layers": 3}
    made = CLIP(16, vision, {**settings, **text}, quick_gelu=quick_gelu)  # type: ignore[arg-type]
    nn.init.normal_(made.positional_embedding)
    for name, weight in made.named_parameters():
        if name.endswith(("bias", "gamma")):
            nn.init.normal_(weight, std=0.3)  # so that none stays at zero
    return made.to(dtype)


def embed(model: Any, text: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    states, packing = packed_states(model, text, length)
    return F.normalize(states[packing.last] @ model.text_projection, dim=-1)


def materialised(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_bias: Any) -> torch.Tensor:
    """What xformers' kernel computes, from torch and the mask that xformers makes."""
    mask = attn_bias.materialize((query.shape[1], key.shape[1])).to(query)
    swapped = [part.transpose(1, 2) for part in (query, key, value)]
    return F.scaled_dot_product_attention(*swapped, attn_mask=mask).transpose(1, 2)


def forgetful(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_bias: Any) -> torch.Tensor:
    """A kernel that lets captions see each other."""
    swapped = [part.transpose(1, 2) for part in (query, key, value)]
    return F.scaled_dot_product_attention(*swapped, is_causal=True).transpose(1, 2)


@pytest.mark.parametrize("settings", [{}, {"quick_gelu": True}, {"ls_init_value": 0.3, "mlp_ratio": 2.0}])
@pytest.mark.parametrize("kernel", ["groups", "blocks"])
def test_embeddings_and_gradients_are_those_of_open_clip(
    settings: dict[str, Any], kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel == "blocks":  # the way of a GPU, with the kernel's meaning spelt out
        ops = pytest.importorskip("xformers.ops")
        monkeypatch.setattr(ops, "memory_efficient_attention", materialised)
        monkeypatch.setattr(sequence_packing, "_blocks", lambda *_: True)
    theirs, (text, length) = clip(**settings), packed_texts()
    ours = copy.deepcopy(theirs)
    names = list(ours.state_dict())
    assert enable_layouts(ours.transformer, pooled=False) == ""
    assert list(ours.state_dict()) == names
    answers = embed(ours, text, length), theirs.encode_text(text, normalize=True)
    torch.testing.assert_close(*answers, rtol=0, atol=1e-12)
    weight = torch.randn_like(answers[0])
    for answer in answers:
        (answer * weight).sum().backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None), name
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-11, atol=1e-11, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("lengths", [PACKED_LENGTHS, (7,), (2,) * 5, tuple(range(2, 21))])
def test_embeddings_in_single_and_half_precision(lengths: tuple[int, ...]) -> None:
    model, (text, length) = clip(dtype=torch.float32).eval(), packed_texts(lengths)
    theirs = model.encode_text(text, normalize=True)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.encode_text(text, normalize=True)
    enable_layouts(model.transformer, pooled=False)
    torch.testing.assert_close(model.encode_text(text, normalize=True), theirs, rtol=0, atol=1e-6)  # masks still work
    torch.testing.assert_close(embed(model, text, length), theirs, rtol=0, atol=1e-5)
    columns = text[:, : int(length.max())]
    torch.testing.assert_close(embed(model, columns, length), theirs, rtol=0, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        packed = embed(model, text, length)
    assert (packed.float() - theirs).abs().max() < 2 * (rough.float() - theirs).abs().max() + 1e-3


@pytest.mark.parametrize("blocks", [False, True])
def test_each_token_lies_once_at_its_place(blocks: bool) -> None:
    if blocks:
        pytest.importorskip("xformers.ops")
    text, length = packed_texts()
    packing = Packing(length, PACKED_LENGTH, CPU, blocks)
    real = {(row, place) for row, count in enumerate(PACKED_LENGTHS) for place in range(count)}
    lying = list(zip((packing.token // PACKED_LENGTH).tolist(), packing.place.tolist(), strict=True))
    assert all(token % PACKED_LENGTH == place for token, (_, place) in zip(packing.token.tolist(), lying, strict=True))
    assert real <= set(lying) and len(lying) == len(set(lying))
    assert text.flatten()[packing.token[packing.last]].tolist() == [VOCABULARY - 1] * len(PACKED_LENGTHS)
    assert (packing.token[packing.last] // PACKED_LENGTH).tolist() == list(range(len(PACKED_LENGTHS)))
    if blocks:
        assert len(lying) == sum(PACKED_LENGTHS)
    else:
        assert len(lying) == sum(count * width for count, width in packing.groups)


@pytest.mark.parametrize("lengths", [(0, 3), (3, PACKED_LENGTH + 1)])
def test_lengths_that_do_not_fit_the_text_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="tokens do not fit in 20 columns"):
        Packing(torch.tensor(lengths), PACKED_LENGTH, CPU)


def test_groups_are_the_cheapest_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    for filling in (0, 1, 7, 40, 10_000):
        for _ in range(20):
            lengths = sorted(torch.randint(2, 30, (9,), generator=generator).tolist())
            found = group_lengths(lengths, filling)
            assert sum(count for count, _ in found) == 9
            cost = sum(count * width for count, width in found) + filling * len(found)
            cheapest = min(
                sum((b - a) * lengths[b - 1] + filling for a, b in itertools.pairwise((0, *cuts, 9)))
                for number in range(9)
                for cuts in itertools.combinations(range(1, 9), number)
            )
            assert cost == cheapest, (lengths, filling, found)
    assert group_lengths([3, 3, 5], 0) == [(2, 3), (1, 5)]
    assert group_lengths([3, 3, 5], 100) == [(3, 5)]
    assert group_lengths([]) == []


def test_checkpointed_blocks_give_the_same_gradients() -> None:
    text, length = packed_texts()
    gradients = []
    for kept in (True, False):
        model = clip()
        enable_layouts(model.transformer, pooled=False)
        model.transformer.grad_checkpointing = not kept
        embed(model, text, length)[:, 0].sum().backward()
        gradients.append(model.transformer.resblocks[0].attn.in_proj_weight.grad)
    assert torch.equal(*gradients)


def test_a_cpu_runs_groups_and_one_line_says_so(caplog: pytest.LogCaptureFixture) -> None:
    _blocks.cache_clear()
    with caplog.at_level(logging.INFO, logger="leam_mm.encoders.sequence_packing"):
        assert not any(_blocks(CPU, torch.float32, 8) for _ in range(3))
    assert (
        len(caplog.records) == 1 and "groups of similar length" in caplog.text and "no kernels for cpu" in caplog.text
    )


def test_the_probe_knows_a_kernel_that_forgets_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    ops = pytest.importorskip("xformers.ops")
    monkeypatch.setattr(ops, "memory_efficient_attention", materialised)
    assert _deviation(CPU, torch.float32, 8) < 1e-5
    monkeypatch.setattr(ops, "memory_efficient_attention", forgetful)
    assert _deviation(CPU, torch.float32, 8) > 0.2


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiled_blocks_compute_the_same_at_any_length() -> None:
    plain = clip(dtype=torch.float32)
    enable_layouts(plain.transformer, pooled=False)
    compiled = copy.deepcopy(plain)
    for block in compiled.transformer.resblocks:
        block.compile(dynamic=True)
    torch._dynamo.utils.counters.clear()
    for round_ in range(12):  # other groups each time: more than torch.compile would make kernels for
        text, length = packed_texts(tuple(2 + (round_ * k) % 17 for k in range(3 + round_)))
        answers = []
        for model in (plain, compiled):
            model.zero_grad()
            answers.append(embed(model, text, length))
            answers[-1].sum().backward()
        torch.testing.assert_close(*answers, rtol=0, atol=1e-5)
        for mine, other in zip(compiled.parameters(), plain.parameters(), strict=True):
            if other.grad is not None:
                torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 12
    assert not torch._dynamo.utils.counters["unimplemented"].get("recompile_limit")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_captions_on_a_gpu_agree_and_never_make_it_wait(dtype: torch.dtype) -> None:
    device = torch.device("cuda")
    model, (text, length) = clip(dtype=torch.float32, width=64).to(device), packed_texts()
    text = text.to(device)
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        theirs = model.encode_text(text, normalize=True).float()
        enable_layouts(model.transformer, pooled=False)
        first = embed(model, text, length).float()  # probes, which waits
        torch.cuda.set_sync_debug_mode("error")
        try:
            again = embed(model, text, length)
            again.float().sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    limit = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(first, theirs, rtol=0, atol=limit)
    torch.testing.assert_close(again.float(), first, rtol=0, atol=limit)
    reason = probe_block_diagonal(device, dtype, 32)
    if reason:
        pytest.skip(reason)
