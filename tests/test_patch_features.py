"""Patch tokens of every kind of encoder, against the encoders' own ways of giving them."""

import json
from pathlib import Path

import pytest
import torch
from toys.recipes import clip_recipe, save_checkpoint
from transformers import Dinov2Config, Dinov2Model, SiglipVisionConfig, SiglipVisionModel

from leam_mm.encoders.dual_encoder import DualEncoder, ImageTower, TextTower
from leam_mm.encoders.patch_features import PatchFeatures, _from_dual_encoder, open_patch_features
from leam_mm.errors import UserError
from leam_mm.files import file_sha256

TEXT = TextTower(context_length=4, vocab_size=10, width=16, heads=2, layers=1)
COLOURS = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}


def random_images(height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


def own(size: int = 16) -> tuple[DualEncoder, PatchFeatures]:
    torch.manual_seed(0)
    vision = ImageTower(image_size=size, patch_size=4, width=32, layers=2, head_width=16)
    encoder = DualEncoder(16, vision, TEXT).eval()
    return encoder, _from_dual_encoder(encoder, "0" * 64)


def normalised(image: torch.Tensor, encoder: DualEncoder) -> torch.Tensor:
    return (image / 2 + 0.5 - encoder.image_mean[:, None, None]) / encoder.image_std[:, None, None]


def test_our_tower_gives_open_clips_own_tokens() -> None:
    encoder, features = own()
    encoder.clip.visual.output_tokens = True
    with torch.no_grad():
        _, expected = encoder.clip.visual(normalised(random_images(), encoder))
    tokens = features.encode(random_images())
    assert tokens.shape == (2, 16, 32) and features.grid(16, 16) == (4, 4)
    torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)


def test_other_shapes_keep_their_ratio_and_about_their_number_of_tokens() -> None:
    _, features = own()
    assert (
        features.grid(512, 512) == (4, 4) and features.grid(256, 1024) == (2, 8) and features.grid(1024, 256) == (8, 2)
    )
    assert features.encode(random_images(8, 32)).shape == (2, 16, 32)
    # A picture of one colour stays one when it is resized, so that only the places differ.
    grey = torch.full((1, 3, 32, 32), 0.25)
    torch.testing.assert_close(features.encode(grey), features.encode(grey[..., :16, :16]), rtol=1e-4, atol=1e-4)


def test_towers_of_timm_give_their_patches_or_say_no() -> None:
    torch.manual_seed(0)
    name = "vit_tiny_patch16_224"
    encoder = DualEncoder(16, ImageTower(image_size=224, timm_model_name=name, timm_pool="token"), TEXT).eval()
    features = _from_dual_encoder(encoder, "")
    image = random_images(224, 224)
    with torch.no_grad():
        expected = encoder.clip.visual.trunk.forward_features(normalised(image, encoder))[:, 1:]
    torch.testing.assert_close(features.encode(image), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="cannot take images of 448 x 112 pixels"):
        features.encode(random_images(16, 64))
    network = DualEncoder(16, ImageTower(image_size=32, timm_model_name="resnet18", timm_pool="avg"), TEXT)
    with pytest.raises(UserError, match="has no patch tokens"):
        _from_dual_encoder(network, "")


@pytest.mark.parametrize("kind", ["dinov2", "siglip"])
def test_folders_of_transformers_by_their_path(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
    if kind == "dinov2":
        model = Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2)).eval()
    else:
        model = SiglipVisionModel(SiglipVisionConfig(**sizes, intermediate_size=48)).eval()
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"not a vision transformer with a preprocessor_config\.json"):
        open_patch_features(str(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(COLOURS))
    features = open_patch_features(str(tmp_path))
    mean, std = (torch.tensor(COLOURS[f"image_{name}"])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        expected = model((random_images() / 2 + 0.5 - mean) / std).last_hidden_state[:, -16:]
    torch.testing.assert_close(features.encode(random_images()), expected, rtol=1e-5, atol=1e-5)
    if kind == "dinov2":
        assert open_patch_features(str(tmp_path), 32).encode(random_images()).shape == (2, 64, 24)
    with pytest.raises(UserError, match="not a multiple of the encoder's patch size of 4"):
        open_patch_features(str(tmp_path), 30)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="has no weights that transformers can load"):
        open_patch_features(str(tmp_path))


def test_a_checkpoint_of_ours_is_opened_with_its_digest(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    recipe = clip_recipe(tmp_path, toy_shards, toy_tokenizer)["model"]
    file = save_checkpoint(tmp_path / "clip.ckpt", recipe)
    features = open_patch_features(str(file))
    assert features.sha256 == file_sha256(file) and features.encode(random_images()).shape == (2, 4, 32)
    assert not features.train().tower.training
