from typing import Any

import pytest
import torch
from open_clip.model import CLIP
from toys.encoders import TEXT_LENGTH, VOCABULARY, random_texts

from leam_mm.encoders.dual_encoder import DualEncoder, ImageTower, TextTower
from leam_mm.errors import UserError


def encoder(seed: int = 0, **settings: Any) -> DualEncoder:
    torch.manual_seed(seed)
    made = DualEncoder(
        16,
        settings.pop("vision", ImageTower(image_size=16, patch_size=8, width=32, layers=2, head_width=16)),
        TextTower(context_length=TEXT_LENGTH, vocab_size=VOCABULARY, width=24, heads=2, layers=2),
        **settings,
    )
    with torch.no_grad():
        made.clip.positional_embedding.normal_()  # so that a wrong place would show
    return made.eval()


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(2, 5, 12, 9), (2, 3, 4, 3)])
def test_text_embeddings_are_those_of_open_clip(lengths: tuple[int, ...]) -> None:
    model, (text, length) = encoder(), random_texts(lengths)
    theirs = model.clip.encode_text(text, normalize=True)
    torch.testing.assert_close(model.encode_text(text, length), theirs, rtol=0, atol=1e-6)
    assert model.encode_text(text, length).norm(dim=-1).sub(1).abs().max() < 1e-6


@torch.no_grad()
def test_image_embeddings_are_those_of_open_clip() -> None:
    model = encoder()
    image = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(model.encode_image(image), model.clip.encode_image(image, normalize=True))
    assert model.encode_image(image).shape == (3, 16)


@torch.no_grad()
def test_config_rebuilds_the_towers_in_open_clip() -> None:
    model = encoder(init_scale=10.0, init_bias=-10.0)
    config: dict[str, Any] = model.config()
    theirs = CLIP(**config).eval()
    theirs.load_state_dict(model.clip.state_dict())
    text, length = random_texts()
    torch.testing.assert_close(
        theirs.encode_text(text, normalize=True), model.encode_text(text, length), rtol=0, atol=1e-6
    )
    assert config["init_logit_bias"] == -10.0 and float(model.scale) == pytest.approx(10.0)
    assert encoder().bias is None


@torch.no_grad()
def test_text_states_do_not_depend_on_what_follows() -> None:
    model, (text, _) = encoder(), random_texts((6, 6, 6, 6))
    states = model.text_states(text)
    assert states.shape == (4, TEXT_LENGTH, 24)
    torch.testing.assert_close(model.text_states(text[:, :6]), states[:, :6], rtol=0, atol=1e-6)
    changed = text.clone()
    changed[:, 8] = 7
    torch.testing.assert_close(model.text_states(changed)[:, :8], states[:, :8], rtol=0, atol=1e-6)
    assert not torch.allclose(model.text_states(changed)[:, 8:], states[:, 8:])
    assert states.mean(dim=-1).abs().max() < 1e-5  # after the final layer norm, at its initial scale


def test_normalise_is_the_affine_map_of_each_channel() -> None:
    model = encoder(image_mean=(0.1, 0.2, 0.3), image_std=(0.5, 0.25, 0.2))
    image = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    normalised = model.normalise(image)
    for channel, (mean, std) in enumerate(((0.1, 0.5), (0.2, 0.25), (0.3, 0.2))):
        torch.testing.assert_close(normalised[:, channel], (image[:, channel] / 255 - mean) / std)


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 3, 16, 8)])
def test_other_image_size_is_refused_with_the_key_to_set(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"16.*image_size"):
        encoder().normalise(torch.zeros(shape, dtype=torch.uint8))


def test_timm_tower_builds_and_embeds() -> None:
    tower = ImageTower(image_size=32, timm_model_name="resnet10t", timm_pool="", timm_proj="linear")
    model = encoder(vision=tower)
    image = model.normalise(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert model.encode_image(image).shape == (2, 16)


def test_every_weight_gets_a_gradient() -> None:
    model, (text, length) = encoder(), random_texts()
    image = torch.randn(4, 3, 16, 16)
    logits = model.scale * model.encode_image(image) @ model.encode_text(text, length).T
    torch.nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    assert not [name for name, value in model.named_parameters() if value.grad is None]


def test_buffers_are_not_weights() -> None:
    assert not [name for name in encoder().state_dict() if not name.startswith("clip.")]
