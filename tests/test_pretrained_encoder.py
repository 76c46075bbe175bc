"""Towers from files of weights: open_clip's embeddings, hostile files refused, a whole way from weights to release."""

import json
import os
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
import yaml
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file
from toys.encoders import write_text_model
from toys.recipes import clip_recipe
from toys.runs import run_without_us

from leam_mm.checkpoint import EVIDENCE, load_module, read_checkpoint
from leam_mm.cli import main
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.data.tokenizer import Tokenizer
from leam_mm.encoders.pretrained_encoder import CONFIG, PretrainedEncoder, cached_file
from leam_mm.errors import UserError
from leam_mm.files import file_sha256
from leam_mm.release.open_clip_folder import write_open_clip_folder

VISION: dict[str, Any] = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
TEXT: dict[str, Any] = {"context_length": 12, "vocab_size": 301, "width": 32, "heads": 2, "layers": 1}


def write_weights(folder: Path, file: str = "open_clip_model.safetensors", **changes: Any) -> tuple[Path, Any]:
    """A folder as open_clip's hub has it, and the model inside."""
    torch.manual_seed(0)
    config = {"embed_dim": 16, "vision_cfg": dict(VISION), "text_cfg": dict(TEXT)}
    text = changes.pop("text_cfg", {})
    config |= changes
    config["text_cfg"] = {**TEXT, **text}  # type: ignore[dict-item]
    arguments = json.loads(json.dumps(config))
    custom = arguments.pop("custom_text", False) or "hf_model_name" in text
    model = (CustomTextCLIP if custom else CLIP)(**arguments).eval()
    for weight in model.parameters():
        weight.data.add_(0.02 * torch.randn_like(weight))
    folder.mkdir(parents=True, exist_ok=True)
    picture = {"size": 16, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}
    (folder / CONFIG).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": picture}))
    state = {name: value.clone().contiguous() for name, value in model.state_dict().items()}
    if file.endswith("safetensors"):
        save_file(state, str(folder / file))
    else:
        torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, folder / file)
    return folder, model


@torch.no_grad()
def same_embeddings(encoder: PretrainedEncoder, model: Any, vocabulary: int = 301, pad: int = 0) -> None:
    generator = torch.Generator().manual_seed(1)
    length = torch.tensor([3, 12, 7, 2])
    text = torch.randint(3, vocabulary - 1, (4, 12), generator=generator)
    text[torch.arange(4), length - 1] = vocabulary - 1
    text = torch.where(torch.arange(12) < length[:, None], text, pad)
    image = torch.randn(3, 3, 16, 16, generator=generator)
    encoder.eval()
    theirs = model.encode_text(text, normalize=True)
    torch.testing.assert_close(encoder.encode_text(text, length), theirs, rtol=0, atol=1e-5)
    theirs = model.encode_image(image, normalize=True)
    torch.testing.assert_close(encoder.encode_image(image), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("open_clip_model.safetensors", {}),
        ("open_clip_pytorch_model.bin", {"quick_gelu": True}),
        ("open_clip_model.safetensors", {"custom_text": True}),
        ("model.pt", {"init_logit_bias": -10.0, "text_cfg": {"pool_type": "eos", "eos_id": 300}}),
        (
            "open_clip_model.safetensors",
            {"custom_text": True, "text_cfg": {"no_causal_mask": True, "pool_type": "last", "pad_id": 1}},
        ),
    ],
)
def test_a_folder_gives_the_embeddings_of_open_clip(tmp_path: Path, file: str, changes: dict[str, Any]) -> None:
    folder, model = write_weights(tmp_path / "clip", file, **changes)
    encoder = PretrainedEncoder(str(folder))
    same_embeddings(encoder, model, pad=changes.get("text_cfg", {}).get("pad_id", 0))
    assert encoder.origin() == {"weights": str(folder), "file": file, "sha256": file_sha256(folder / file)}
    torch.testing.assert_close(encoder.image_mean, torch.tensor([0.5, 0.4, 0.3]))
    assert (encoder.image_size, encoder.context_length, encoder.text.vocab_size) == (16, 12, 301)
    same_embeddings(PretrainedEncoder(str(folder / file)), model, pad=changes.get("text_cfg", {}).get("pad_id", 0))


def test_hugging_face_towers_start_from_a_folder(tmp_path: Path) -> None:
    text = {"hf_model_name": str(write_text_model(tmp_path / "bert", "bert")), "hf_model_pretrained": False}
    folder, model = write_weights(tmp_path / "clip", text_cfg=text)
    same_embeddings(PretrainedEncoder(str(folder)), model, vocabulary=60)


def test_names_of_the_zoo_are_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    with pytest.raises(UserError, match=r"not on this machine: .*create_model\('ViT-B-32', 'laion2b_s34b_b79k'\)"):
        PretrainedEncoder("ViT-B-32:laion2b_s34b_b79k")
    with pytest.raises(UserError, match=r"has no weights 'nothing'; there are commonpool_m_basic"):
        PretrainedEncoder("ViT-B-32:nothing")
    with pytest.raises(UserError, match="open_clip has no model 'ViT-none'"):
        PretrainedEncoder("ViT-none:openai")
    known = {"url": "https://127.0.0.1/some-weights.pt"}
    (tmp_path / ".cache" / "clip").mkdir(parents=True)
    (tmp_path / ".cache" / "clip" / "some-weights.pt").write_bytes(b"x")
    assert cached_file("ViT-B-32", "tag", known) == tmp_path / ".cache" / "clip" / "some-weights.pt"


def test_hostile_and_foreign_files_are_one_line(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    folder, model = write_weights(tmp_path / "clip", "model.pt")
    torch.save({"state_dict": Evil()}, folder / "model.pt")
    with pytest.raises(UserError, match=r"model\.pt cannot be loaded"):
        PretrainedEncoder(str(folder))
    assert not (tmp_path / "ran").exists()
    state = model.state_dict()
    torch.save({**state, "visual.class_embedding": torch.zeros(5)}, folder / "model.pt")
    with pytest.raises(UserError, match="cannot be loaded into these towers"):
        PretrainedEncoder(str(folder))
    torch.save({**state, "logit_scale": torch.tensor(float("nan"))}, folder / "model.pt")
    with pytest.raises(UserError, match="NaN or infinite"):
        PretrainedEncoder(str(folder))
    (folder / "model.pt").unlink()
    with pytest.raises(UserError, match="holds none of open_clip_model"):
        PretrainedEncoder(str(folder))
    with pytest.raises(UserError, match="is not a folder, a file"):
        PretrainedEncoder(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model_cfg": []}', "[" * 100_000, '{"embed_dim": 2}'])
def test_configs_that_are_none_are_refused(tmp_path: Path, content: str) -> None:
    folder, _ = write_weights(tmp_path / "clip")
    (folder / CONFIG).write_text(content)
    with pytest.raises(UserError, match="not a valid open_clip config"):
        PretrainedEncoder(str(folder))


def test_unknown_models_are_refused_by_name(tmp_path: Path) -> None:
    folder, _ = write_weights(tmp_path / "clip")
    config = json.loads((folder / CONFIG).read_text())["model_cfg"]
    for change, message in (
        ({"multimodal_cfg": {}}, "CoCa"),
        ({"text_cfg": {**TEXT, "hf_pooler_type": "max_pooler"}}, "max_pooler"),
        ({"vision_cfg": {**VISION, "image_size": [16, 8]}}, "only square ones"),
        ({"text_cfg": {**TEXT, "surprise": 1}}, "cannot be built .*surprise"),
    ):
        (folder / CONFIG).write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=message):
            PretrainedEncoder(str(folder))


def test_other_sizes_are_interpolated_as_by_open_clip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, _ = write_weights(tmp_path / "clip")
    with caplog.at_level("INFO", logger="leam_mm.encoders.pretrained_encoder"):
        encoder = PretrainedEncoder(str(folder), image_size=32, context_length=8, patch_dropout=0.5, init_bias=-10.0)
    told = [record.getMessage() for record in caplog.records if record.name.startswith("leam_mm")]
    assert [line.split(":")[0] for line in told] == ["image tower", "text tower"]
    theirs = open_clip.create_model(f"local-dir:{folder}", force_image_size=32, force_context_length=8)
    mine = encoder.clip.state_dict()
    for name, value in theirs.state_dict().items():
        assert torch.equal(mine[name], value), name
    assert mine["visual.positional_embedding"].shape == (17, 32) and mine["positional_embedding"].shape == (8, 32)
    assert float(encoder.bias) == -10.0 and encoder.config()["vision_cfg"]["patch_dropout"] == 0.5  # type: ignore[arg-type]


def tune(folder: Path, weights: Path, shards: Path, tokenizer: Path, **settings: Any) -> dict[str, Any]:
    recipe = clip_recipe(folder / "run", shards, tokenizer, max_samples=24)
    recipe["model"]["init_args"]["encoder"] = {
        "class_path": "leam_mm.encoders.pretrained_encoder.PretrainedEncoder",
        "init_args": {"weights": str(weights), **settings},
    }
    recipe["trainer"]["logger"] = False
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    main(["fit", "--config", str(folder / "recipe.yaml")])
    return read_checkpoint(folder / "run")


def test_from_weights_over_training_to_a_release_that_open_clip_loads(
    toy_shards: Path, toy_tokenizer: Path, tmp_path: Path
) -> None:
    vocabulary = Tokenizer(toy_tokenizer, 12).vocabulary
    base, _ = write_weights(tmp_path / "base", text_cfg={"vocab_size": vocabulary}, quick_gelu=True)
    checkpoint = tune(tmp_path / "tuned", base, toy_shards, toy_tokenizer)
    weights = base / "open_clip_model.safetensors"
    assert checkpoint[EVIDENCE]["pretrained"]["sha256"] == file_sha256(weights)
    weights.unlink()  # what was trained does not need them any more
    module = load_module(tmp_path / "tuned" / "run", ContrastiveModule)
    assert module.encoder.origin() == {}
    write_open_clip_folder(module, tmp_path / "clip", "someone/a-name")
    again = PretrainedEncoder(str(tmp_path / "clip"))
    same_embeddings(again, module.ema_encoder().clip, vocabulary)
    code = """
import open_clip, torch
model = open_clip.create_model("local-dir:clip").eval()
text = open_clip.get_tokenizer("local-dir:clip")(["a red square", "Quadrat, blau"])
print(*model.encode_text(text, normalize=True).flatten().tolist())
"""
    theirs = torch.tensor([float(word) for word in run_without_us(code, tmp_path).split()]).reshape(2, 16)
    with torch.no_grad():
        mine = module.ema_encoder().encode_text(*module.tokenizer.encode(["a red square", "Quadrat, blau"]))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
