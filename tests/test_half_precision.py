"""Weights in 16 bits load by the names that libraries look for; values that do not fit are refused."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from toys.encoders import tiny_clip
from toys.release_inputs import answer, write_inputs
from toys.runs import run_without_us

from leam_mm.codecs.pretrained_codec import load_codec
from leam_mm.encoders.hugging_face_text import folder_sha256
from leam_mm.errors import UserError
from leam_mm.release.__main__ import main
from leam_mm.release.encoder_folder import write_encoder
from leam_mm.release.half_precision import embedding_differences, write_variants

HALF = """
import json, open_clip, torch, transformers
from PIL import Image
captions = json.load(open("captions.json"))
text = transformers.AutoTokenizer.from_pretrained(".")(captions, padding=True, truncation=True, return_tensors="pt")
pixels = transformers.CLIPProcessor.from_pretrained(".")(images=Image.open("0.png"), return_tensors="pt").pixel_values
found = {}
for name, variant in (("float32", None), ("float16", "fp16"), ("bfloat16", "bf16")):
    dtype = getattr(torch, name)
    model = transformers.CLIPModel.from_pretrained(".", variant=variant, dtype=dtype).eval()
    assert model.dtype == dtype
    with torch.no_grad():
        found[name] = model(**text, pixel_values=pixels.to(dtype)).text_embeds.float()
towers = open_clip.create_model("local-dir:.", precision="fp16")  # rounds the weights in float32 itself
assert towers.visual.conv1.weight.dtype == torch.float16
away = [(found[name] - found["float32"]).abs().max().item() for name in ("float16", "bfloat16")]
print("ANSWER", transformers.__version__, *away, 0)
"""


def test_transformers_loads_each_precision_and_the_differences_are_measured(
    toy_tokenizer: Path, tmp_path: Path
) -> None:
    module = tiny_clip(toy_tokenizer)
    write_encoder(module, tmp_path, "lab/model")  # type: ignore[arg-type]
    write_variants(tmp_path, ["float16", "bfloat16"])
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {
        "open_clip_model.safetensors", "model.safetensors", "model.fp16.safetensors", "model.bf16.safetensors",
    }  # fmt: skip
    write_inputs(tmp_path)
    _, (half, brain, _) = answer(run_without_us(HALF, tmp_path))
    assert 0 < half < 2e-3 and half < brain < 2e-2
    measured = embedding_differences(module, ["float16", "bfloat16"])  # type: ignore[arg-type]
    for name, limit in (("float16", 2e-3), ("bfloat16", 2e-2)):
        for kind in ("image", "caption"):
            assert 0 < float(measured[name][f"{kind}_embedding_largest_difference"]) < limit
            assert 0.999 < float(measured[name][f"{kind}_embedding_smallest_cosine"]) < 1 + 1e-6
    assert module.ema_encoder().clip.logit_scale.dtype == torch.float32  # the module itself stays as it was


def test_a_value_that_overflows_is_named(tmp_path: Path) -> None:
    weights = {"fine": torch.ones(3), "blocks.3.large": torch.tensor([1.0, -7e4]), "ids": torch.arange(3)}
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"blocks\.3\.large holds 7e\+04, more than float16 can .6.55e\+04.: leave"):
        write_variants(tmp_path, ["float16"])
    assert not (tmp_path / "model.fp16.safetensors").exists()
    write_variants(tmp_path, ["bfloat16"])
    found = load_file(tmp_path / "model.bf16.safetensors")
    assert found["fine"].dtype == torch.bfloat16 and found["ids"].dtype == torch.int64


def test_shards_and_their_index_are_found_by_diffusers(tmp_path: Path) -> None:
    sizes = {"block_out_channels": (8,), "norm_num_groups": 4, "latent_channels": 4}
    AutoencoderKL(**sizes).save_pretrained(tmp_path / "vae", max_shard_size="20KB")
    assert len(list((tmp_path / "vae").glob("*-of-*.safetensors"))) > 1
    write_variants(tmp_path, ["float16"])
    half = AutoencoderKL.from_pretrained(tmp_path / "vae", variant="fp16", torch_dtype=torch.float16)
    whole = AutoencoderKL.from_pretrained(tmp_path / "vae").state_dict()
    assert all(torch.equal(value, whole[name].half()) for name, value in half.state_dict().items())
    index = json.loads((tmp_path / "vae" / "diffusion_pytorch_model.safetensors.index.fp16.json").read_text())
    assert all((tmp_path / "vae" / name).is_file() for name in index["weight_map"].values())


def test_digests_and_readers_of_ours_see_the_weights_in_float32(tmp_path: Path) -> None:
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4).save_pretrained(tmp_path)
    before, sha256 = load_codec(tmp_path).checkpoint_evidence, folder_sha256(tmp_path)  # type: ignore[union-attr]
    write_variants(tmp_path, ["float16", "bfloat16"])
    assert load_codec(tmp_path).checkpoint_evidence == before and folder_sha256(tmp_path) == sha256


def test_another_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--variants.*'int8'"):
        main(["build", "--name", "a", "--output", str(tmp_path / "r"), "--variants", "int8"])


def test_intermediate_results_that_overflow_are_no_number_but_a_reason(
    toy_tokenizer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each weight fits into float16; their products do not."""
    module = tiny_clip(toy_tokenizer)
    with torch.no_grad():
        module.ema_encoder().clip.visual.conv1.weight.fill_(6e4)
        module.ema_encoder().clip.visual.ln_pre.weight.fill_(6e4)
    measured = embedding_differences(module, ["float16"])["float16"]  # type: ignore[arg-type]
    assert "embeddings of images are not finite in this precision" in str(measured["encoder_error"])
    assert "not finite" in caplog.text and "image_embedding_largest_difference" not in measured
