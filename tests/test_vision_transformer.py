"""The vision transformer at any size and with tokens left out is open_clip's own, and a sample's tokens are its own."""

import pytest
import torch
from open_clip.model import _build_vision_tower, resize_pos_embed
from open_clip.transformer import PatchDropout, VisionTransformer

from leam_mm.encoders.vision_transformer import check_size, image_features, image_tokens, kept_tokens, resize_positions
from leam_mm.errors import UserError


def tower(size: int = 32, pool: str = "tok", dropout: float = 0.0) -> VisionTransformer:
    torch.manual_seed(0)
    config = {"image_size": size, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16, "pool_type": pool}
    made = _build_vision_tower(12, {**config, "patch_dropout": dropout})
    assert isinstance(made, VisionTransformer)
    return made


@pytest.mark.parametrize("pool", ["tok", "avg"])
def test_whole_images_of_the_stored_size_are_open_clips(pool: str) -> None:
    model, image = tower(pool=pool), torch.randn(3, 3, 32, 32)
    assert torch.equal(image_features(model, image, torch.arange(3), 0.0), model(image))


@pytest.mark.parametrize("size", [16, 24, 48])
def test_another_size_is_open_clip_with_its_table_resized(size: int) -> None:
    model, other = tower(), tower(size)
    weights = {f"visual.{name}": value for name, value in model.state_dict().items()}
    resize_pos_embed(weights, torch.nn.ModuleDict({"visual": other}))
    other.load_state_dict({name.removeprefix("visual."): value for name, value in weights.items()})
    image = torch.randn(3, 3, size, size)
    torch.testing.assert_close(image_features(model, image, None, 0.0), other(image), rtol=1e-5, atol=1e-6)


def test_positions_of_the_stored_grid_are_the_table_itself_and_others_have_gradients() -> None:
    table = torch.randn(17, 8, requires_grad=True)
    assert resize_positions(table, (4, 4), (4, 4)) is table
    constant = torch.ones(17, 8)
    torch.testing.assert_close(resize_positions(constant, (4, 4), (7, 2)), torch.ones(15, 8))
    resize_positions(table, (4, 4), (2, 2)).square().sum().backward()
    assert table.grad is not None and bool((table.grad.abs().sum(dim=1) > 0).all())


def test_tokens_are_those_of_open_clips_dropout_in_number_and_belong_to_the_sample() -> None:
    model, image = tower(dropout=0.3), torch.randn(5, 3, 32, 32)
    index = torch.tensor([7, 8, 9, 1 << 40, 3])
    theirs = model.patch_dropout(torch.zeros(5, 17, 4))
    assert isinstance(model.patch_dropout, PatchDropout)
    tokens = image_tokens(model, image, index, 0.3)
    assert tokens.shape == (5, theirs.shape[1], 32)
    whole = model.eval()._embeds(image)
    for row, kept in enumerate(kept_tokens(index, 16, 0.3)):
        torch.testing.assert_close(tokens[row], whole[row, torch.cat([torch.zeros(1, dtype=torch.int64), kept + 1])])
    parts = torch.cat([image_tokens(model, image[rows], index[rows], 0.3) for rows in ([0, 1], [2, 3, 4])])
    torch.testing.assert_close(parts, tokens)
    torch.manual_seed(3)
    drawn = [image_tokens(model, image, None, 0.3) for _ in range(2)]
    assert drawn[0].shape == tokens.shape and not torch.equal(*drawn)
    torch.manual_seed(3)
    assert torch.equal(image_tokens(model, image, None, 0.3), drawn[0])


def test_tokens_are_kept_evenly_and_independently() -> None:
    kept = kept_tokens(torch.arange(4000), 49, 0.5)
    assert kept.shape == (4000, 24) and torch.equal(kept, kept.sort(dim=1).values)
    assert all(len(set(row)) == 24 for row in kept[:50].tolist())
    mask = torch.zeros(4000, 49).scatter_(1, kept, 1.0)
    # Each token's count is hypergeometric over samples: mean 24/49, deviation below 0.5 / sqrt(4000).
    assert (mask.mean(dim=0) - 24 / 49).abs().max() < 5 * 0.5 / 4000**0.5
    centred = mask - mask.mean(dim=0)
    together = centred.T @ centred / 4000  # of two tokens of a sample: -p (1 - p) / 48
    off = together - torch.diag(together.diagonal())
    assert (off + 0.25 / 48 * (1 - torch.eye(49))).abs().max() < 5 * 0.25 / 4000**0.5
    following = (centred[1:] * centred[:-1]).mean(dim=0)  # the next sample's choice says nothing of this one's
    assert following.abs().max() < 5 * 0.25 / 4000**0.5
    assert kept_tokens(torch.tensor([3]), 5, 0.99).shape == (1, 1)


def test_a_size_that_does_not_fit_is_told() -> None:
    with pytest.raises(UserError, match="20 x 20 pixels are not a multiple of the patch size 8"):
        check_size(tower(), 20)
    check_size(tower(), 40)
    net = _build_vision_tower(12, {"image_size": 32, "timm_model_name": "test_resnet", "timm_pool": ""}).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    check_size(net, 48)  # convolutions take any
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(layer.training for layer in net.modules())
    with pytest.raises(UserError, match="cannot take images of 40 x 40"):
        check_size(_build_vision_tower(12, {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": ""}), 40)
