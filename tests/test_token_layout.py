"""A last block that computes only the class token gives open_clip's values and gradients, and fewer operations."""

import copy
from typing import Any

import pytest
import torch
from open_clip.model import CLIP, _build_vision_tower
from open_clip.transformer import VisionTransformer
from toys.encoders import three_layer_encoder

from leam_mm.encoders.token_layout import ImageTokens, LayoutAttention, PooledBlock, TokenLayout, enable_layouts
from leam_mm.encoders.vision_transformer import image_features, image_tokens, skip_unread_tokens
from leam_mm.planning.counted_flops import count

LAYERS, WIDTH, TOKENS = 3, 32, 17


def tower(quick_gelu: bool = False, **settings: Any) -> VisionTransformer:
    torch.manual_seed(0)
    config = {"image_size": 32, "patch_size": 8, "width": WIDTH, "layers": LAYERS, "head_width": 16, **settings}
    made = _build_vision_tower(12, config, quick_gelu)
    assert isinstance(made, VisionTransformer)
    for name, weight in made.named_parameters():
        if name.endswith(("bias", "gamma")):
            torch.nn.init.normal_(weight, std=0.3)  # so that none stays at zero
    return made.double()


def pooling(plain: VisionTransformer) -> VisionTransformer:
    made = copy.deepcopy(plain)
    skip_unread_tokens(made)
    return made


@pytest.mark.parametrize(
    "settings",
    [{}, {"quick_gelu": True}, {"ls_init_value": 0.3, "mlp_ratio": 2.0}, {"final_ln_after_pool": True}, {"layers": 1}],
)
@pytest.mark.parametrize("size", [32, 48])
def test_values_and_gradients_are_those_of_whole_blocks(settings: dict[str, Any], size: int) -> None:
    whole = tower(**settings)
    ours, image, index = pooling(whole), torch.randn(5, 3, size, size).double(), torch.arange(5)
    assert list(ours.state_dict()) == list(whole.state_dict())
    features = [image_features(each, image, index, 0.25) for each in (ours, whole)]
    torch.testing.assert_close(*features, rtol=0, atol=1e-13)
    weight = torch.randn_like(features[0])
    for each in features:
        (each * weight).sum().backward()
    for (name, mine), other in zip(ours.named_parameters(), whole.parameters(), strict=True):
        assert mine.grad is not None and other.grad is not None
        scale = float(other.grad.abs().max())
        torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=1e-12 * scale, msg=name)


def test_the_other_tokens_of_the_last_block_cost_nothing() -> None:
    whole, image = tower().float(), torch.zeros(2, 3, 32, 32)
    ours = pooling(whole)
    spared = count(lambda: whole(image)) - count(lambda: image_features(ours, image, None, 0.0))
    unread = 2 * (TOKENS - 1)  # of two images
    matrices = 2 * unread * (WIDTH**2 + 8 * WIDTH**2)  # output of the attention, MLP
    assert spared == matrices + unread * 4 * TOKENS * WIDTH


def test_readers_of_all_tokens_still_get_them() -> None:
    whole, image = tower(), torch.randn(2, 3, 32, 32).double()
    ours = pooling(whole)
    tokens = image_tokens(ours, image, None, 0.0)
    assert ours.transformer(tokens, attn_mask=ImageTokens()).shape == (2, 1, WIDTH)
    torch.testing.assert_close(ours.transformer(tokens), whole.transformer(tokens), rtol=0, atol=0)
    assert torch.equal(ours(image), whole(image))


@pytest.mark.parametrize(
    "settings", [{"pool_type": "avg"}, {"attentional_pool": True, "attn_pooler_heads": 2}, {"qk_norm": True}]
)
def test_towers_that_read_all_tokens_or_have_other_blocks_are_left_whole(settings: dict[str, Any]) -> None:
    whole, image = tower(**settings), torch.randn(2, 3, 32, 32).double()
    ours = pooling(whole)
    assert not any(isinstance(layer, PooledBlock | LayoutAttention) for layer in ours.modules())
    if "attentional_pool" not in settings:  # its output is projected by open_clip's forward only
        assert torch.equal(image_features(ours, image, None, 0.0), whole(image))


def test_encoders_skip_and_copies_keep_it() -> None:
    encoder = three_layer_encoder()
    for each in (encoder, copy.deepcopy(encoder)):
        blocks: Any = each.clip.visual.transformer.resblocks
        assert [isinstance(block, PooledBlock) for block in blocks] == [False, False, True]
    assert not any(isinstance(block, PooledBlock) for block in encoder.clip.transformer.resblocks)


def test_other_blocks_are_refused_by_name() -> None:
    def text_model(**text: Any) -> Any:
        vision = {"image_size": 8, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
        size = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 2}
        return CLIP(16, vision, {**size, **text})  # type: ignore[arg-type]

    refused = enable_layouts(text_model(qk_norm=True).transformer, pooled=True)
    assert refused == "CustomResidualAttentionBlock with Attention"
    changed = text_model()
    changed.transformer.resblocks[1].attn = torch.nn.Identity()
    assert enable_layouts(changed.transformer, pooled=True) == "ResidualAttentionBlock with Identity"
    assert not any(isinstance(layer, PooledBlock | LayoutAttention) for layer in changed.modules())


def test_a_layout_must_say_what_attends() -> None:
    with pytest.raises(TypeError, match="attend"):
        TokenLayout()  # type: ignore[abstract]


def test_checkpointed_blocks_give_the_same_gradients() -> None:
    gradients = []
    for kept in (True, False):
        model, image = pooling(tower()), torch.ones(2, 3, 32, 32).double()
        model.transformer.grad_checkpointing = not kept
        image_features(model, image, None, 0.0)[:, 0].sum().backward()
        gradients.append(model.transformer.resblocks[-1].mlp.c_fc.weight.grad)  # type: ignore[union-attr]
    assert torch.equal(*gradients)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiled_blocks_compute_the_same() -> None:
    plain = pooling(tower().float())
    compiled = copy.deepcopy(plain)
    for block in compiled.transformer.resblocks:
        block.compile(dynamic=True)
    for size in (32, 48):
        image = torch.randn(3, 3, size, size)
        answers = []
        for model in (plain, compiled):
            model.zero_grad()
            answers.append(image_features(model, image, None, 0.0))
            answers[-1].sum().backward()
        torch.testing.assert_close(*answers, rtol=0, atol=1e-5)
        for mine, other in zip(compiled.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-4)
