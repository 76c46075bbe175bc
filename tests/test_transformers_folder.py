"""CLIPModel of transformers gives open_clip's embeddings, in transformers 5 and 4."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from toys.encoders import tiny_clip
from toys.release_inputs import OTHER, answer, write_inputs
from toys.runs import run_without_us
from transformers import AutoTokenizer, CLIPImageProcessor

from leam_mm.data.tokenizer import Tokenizer
from leam_mm.encoders.dual_encoder import DualEncoder, ImageTower, TextTower
from leam_mm.encoders.low_rank import LowRank
from leam_mm.encoders.pretrained_encoder import PretrainedEncoder
from leam_mm.release.encoder_folder import write_encoder
from leam_mm.release.transformers_folder import CONFIG, PROCESSOR, WEIGHTS, why_not

EMBED = """
import json, numpy, open_clip, torch, transformers
from PIL import Image
from torch.nn.functional import normalize
model, loading = transformers.CLIPModel.from_pretrained(".", output_loading_info=True)
assert not any(loading.values()), loading
model.eval()
towers, _, preprocess = open_clip.create_model_and_transforms("local-dir:.")
towers.eval()
captions, images = json.load(open("captions.json")), [Image.open(f"{number}.png") for number in range(3)]
text = transformers.AutoTokenizer.from_pretrained(".")(captions, padding=True, truncation=True, return_tensors="pt")
five = transformers.__version__ >= "5"
processor = transformers.CLIPProcessor.from_pretrained(".", **({"backend": "pil"} if five else {"use_fast": False}))
pixels = processor(images=images, return_tensors="pt").pixel_values
theirs = torch.stack([preprocess(image) for image in images])
assert torch.equal(pixels, theirs), (pixels - theirs).abs().max()
with torch.no_grad():
    both = model(**text, pixel_values=pixels)
    expected = towers.encode_text(open_clip.get_tokenizer("local-dir:.")(captions), normalize=True)
    words = (both.text_embeds - expected).abs().max().item()
    expected = towers.encode_image(theirs, normalize=True)
    pictures = (both.image_embeds - expected).abs().max().item()
    logits = (both.logits_per_image - towers.get_logits(theirs, open_clip.get_tokenizer("local-dir:.")(captions))[0])
    features = model.get_text_features(**text)
    features = getattr(features, "pooler_output", features)
    assert torch.allclose(normalize(features, dim=-1), both.text_embeds, atol=1e-6)
print("ANSWER", transformers.__version__, words, pictures, logits.abs().max().item())
"""


@pytest.fixture(scope="module")
def folder(toy_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released encoder with inputs beside it."""
    folder = tmp_path_factory.mktemp("release")
    formats = write_encoder(tiny_clip(toy_tokenizer), folder, "lab/model")  # type: ignore[arg-type]
    assert formats.folders.keys() == {"open_clip", "transformers", "sentence_transformers"} and not formats.left_out
    write_inputs(folder)
    return folder


def test_transformers_gives_the_embeddings_of_open_clip_without_us(folder: Path) -> None:
    version, (words, pictures, logits) = answer(run_without_us(EMBED, folder))
    assert version >= "5" and words < 1e-5 and pictures < 1e-5 and logits < 1e-4


def test_another_version_of_transformers_does_too(folder: Path) -> None:
    if not (other := os.environ.get(OTHER)):
        pytest.skip(f"{OTHER} names no folder with another version of transformers: make test-transformers4")
    version, (words, pictures, logits) = answer(run_without_us(EMBED, folder, other))
    assert version.startswith("4.") and words < 1e-5 and pictures < 1e-5 and logits < 1e-4


def test_the_files_are_plain(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    assert config["architectures"] == ["CLIPModel"] and config["text_config"]["hidden_act"] == "gelu"
    assert (
        config["vision_config"]["num_attention_heads"] == 2 and config["text_config"]["max_position_embeddings"] == 12
    )
    assert config["text_config"]["eos_token_id"] == Tokenizer(folder, 12).end
    assert {value.dtype for value in load_file(folder / WEIGHTS).values()} == {torch.float32}
    assert json.loads((folder / PROCESSOR).read_text())["image_mean"] == [0.5, 0.4, 0.3]
    assert AutoTokenizer.from_pretrained(folder).model_max_length == 12


def test_the_default_processor_of_transformers_5_differs_by_its_rounding(folder: Path) -> None:
    """torchvision resizes bytes with fixed-point weights; Pillow, and so open_clip, with others."""
    processor: Any = CLIPImageProcessor.from_pretrained(folder)
    preprocess: Any = open_clip.create_model_and_transforms(f"local-dir:{folder}")[2]
    image = Image.fromarray(np.linspace(0, 255, 64 * 45 * 3).reshape(45, 64, 3).astype(np.uint8))
    difference = (processor(images=image, return_tensors="pt").pixel_values[0] - preprocess(image)).abs().max()
    assert difference < 1.01 / 255 / 0.2  # one of 256 levels, over the smallest standard deviation


def test_a_logit_bias_that_clip_model_lacks_is_stated(
    toy_tokenizer: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_encoder(tiny_clip(toy_tokenizer, init_bias=-10.0), tmp_path, "lab/model")  # type: ignore[arg-type]
    assert json.loads((tmp_path / CONFIG).read_text())["logit_bias"] == pytest.approx(-10.0, abs=0.1)
    assert any("CLIPModel adds no logit bias: add -" in record.getMessage() for record in caplog.records)


def release(encoder: DualEncoder, tokenizer: Tokenizer, folder: Path) -> Any:
    module: Any = SimpleNamespace(ema_encoder=lambda: encoder, tokenizer=tokenizer)
    return write_encoder(module, folder, "model")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vision": ImageTower(image_size=32, timm_model_name="test_vit", timm_pool="")}, "image tower is a TimmModel"),
        ({"vision": ImageTower(32, 8, 32, 1, 16, pool_type="avg")}, "image tower has pool_type = 'avg'"),
    ],
)
def test_other_architectures_are_left_out_with_a_reason(
    toy_tokenizer: Path, tmp_path: Path, changes: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    opened = Tokenizer(toy_tokenizer, context_length=12)
    parts = {"vision": ImageTower(32, 8, 32, 1, 16), "text": TextTower(12, opened.vocabulary, 32, 2, 1)} | changes
    formats = release(DualEncoder(16, **parts).eval(), opened, tmp_path)
    assert formats.folders == {"open_clip": "."} and reason in formats.left_out["transformers"]
    assert not (tmp_path / CONFIG).exists() and not (tmp_path / "modules.json").exists()
    assert [record.getMessage() for record in caplog.records if reason in record.getMessage()]


def test_further_settings_of_open_clip_are_seen(toy_tokenizer: Path) -> None:
    opened = Tokenizer(toy_tokenizer, context_length=12)
    encoder = tiny_clip(toy_tokenizer).ema_encoder()
    assert why_not(encoder, opened) is None
    for tower, key, value in (
        ("vision_cfg", "no_ln_pre", True),
        ("vision_cfg", "attentional_pool", True),
        ("text_cfg", "no_causal_mask", True),
        ("text_cfg", "pool_type", "last"),
        ("text_cfg", "tokenizer_kwargs", {"clean": "canonicalize"}),
    ):
        before = encoder._config[tower].get(key)
        encoder._config[tower][key] = value
        assert key in str(why_not(encoder, opened))
        encoder._config[tower].pop(key) if before is None else encoder._config[tower].update({key: before})
    assert "English vocabulary" in str(why_not(encoder, Tokenizer("open_clip", 77)))


def test_quick_gelu_low_rank_additions_and_a_separate_text_tower_are_carried_over(
    toy_tokenizer: Path, tmp_path: Path
) -> None:
    """From weights in open_clip's layout with custom_text and quick_gelu, trained on with additions."""
    opened = Tokenizer(toy_tokenizer, context_length=12)
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
    text = {"context_length": 12, "vocab_size": opened.vocabulary, "width": 32, "heads": 2, "layers": 1}
    text |= {"pool_type": "eos", "eos_id": opened.end}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, "custom_text": True, "quick_gelu": True}
    torch.manual_seed(0)
    shape = {key: value for key, value in config.items() if key != "custom_text"}
    (tmp_path / "base").mkdir()
    torch.save(open_clip.CustomTextCLIP(**shape).state_dict(), tmp_path / "base" / "model.pt")  # type: ignore[arg-type]
    (tmp_path / "base" / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    encoder = PretrainedEncoder(str(tmp_path / "base"), low_rank=LowRank(rank=2)).eval()
    for name, weight in encoder.named_parameters():
        if "low_rank" in name:
            torch.nn.init.normal_(weight, std=0.1)
    assert not release(encoder, opened, tmp_path / "release").left_out
    assert json.loads((tmp_path / "release" / CONFIG).read_text())["vision_config"]["hidden_act"] == "quick_gelu"
    write_inputs(tmp_path / "release")
    _, (words, pictures, _) = answer(run_without_us(EMBED, tmp_path / "release"))
    assert words < 1e-5 and pictures < 1e-5
