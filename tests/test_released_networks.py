"""Generators with U-Nets, SD3's transformer and text encoders of transformers draw our images in diffusers alone."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys.codecs import tiny_dc, tiny_kl
from toys.encoders import write_caption_encoder
from toys.generators import PROMPTS, tiny_generator
from toys.runs import run_without_us

from leam_mm.captions.hugging_face_captions import HuggingFaceCaptions
from leam_mm.data.random_stream import PhiloxStream
from leam_mm.denoisers.denoiser import PRXDenoiser
from leam_mm.denoisers.released_denoiser import load_released_denoiser
from leam_mm.diffusion.rectified_flow import RectifiedFlow
from leam_mm.diffusion.variance_preserving import VariancePreserving
from leam_mm.diffusion_module import LatentDiffusionModule
from leam_mm.documents.model_card import generator_usage
from leam_mm.errors import UserError
from leam_mm.model_address import load_generator
from leam_mm.release.diffusers_folder import write_diffusers_folder
from leam_mm.release.half_precision import write_variants
from leam_mm.release.half_precision_generator import generator_differences

STEPS, GUIDANCE, SEED = 4, 3.0, 7
ALONE = """
import os, socket, tempfile
os.environ["HF_HOME"] = tempfile.mkdtemp()
def refuse(*_):
    raise OSError("no connection must be needed")
socket.socket.connect = socket.create_connection = refuse
"""


def loading_lines(denoiser: str, folder: str) -> str:
    """The card's lines that load a generator, which lies in a folder beside others here."""
    first = re.findall(r"```python\n(.*?)```", generator_usage(True, False, denoiser), re.DOTALL)[0]
    assert '"."' in first
    return first.replace('"."', f'"{folder}"')


@pytest.fixture(scope="module")
def generators(toy_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, LatentDiffusionModule]:
    """One generator of each kind, whose every weight has an influence."""
    generators = {
        "unet_dc": tiny_generator(toy_tokenizer, tiny_dc(), 2.0, network="unet"),
        "unet_kl": tiny_generator(toy_tokenizer, tiny_kl(), 1.0, 1, VariancePreserving("sd_linear"), "unet"),
        "sd3": tiny_generator(toy_tokenizer, tiny_kl(), 3.0, 2, network="sd3"),
    }
    for kind in ("t5", "xlm-roberta"):
        generator = tiny_generator(toy_tokenizer, tiny_dc(), 1.0, 3)
        folder = write_caption_encoder(tmp_path_factory.mktemp("text") / kind, kind)
        captions = HuggingFaceCaptions(str(folder), context_length=12)
        denoiser = PRXDenoiser(4, captions.width, hidden_size=32, depth=2, num_heads=2)
        for parameter in denoiser.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        generators[kind] = LatentDiffusionModule(denoiser, RectifiedFlow(), latent_size=8).eval()
        generators[kind].frozen.opened = generator.frozen.opened | {"clip": captions}
    return generators


@pytest.fixture(scope="module")
def released(generators: dict[str, LatentDiffusionModule], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their folders."""
    root = tmp_path_factory.mktemp("released")
    for name, generator in generators.items():
        write_diffusers_folder(generator, root / name)
    return root


def test_diffusers_alone_gives_our_images(generators: dict[str, LatentDiffusionModule], released: Path) -> None:
    lines = {name: loading_lines(type(module.denoiser).__name__, name) for name, module in generators.items()}
    noise = PhiloxStream().normal(SEED, torch.arange(len(PROMPTS)), "sample", (4, 8, 8))
    save_file({"noise": noise}, released / "noise.safetensors")
    (released / "lines.json").write_text(json.dumps([lines, PROMPTS]))
    code = (
        ALONE
        + f"""
import json, torch
from diffusers import DiffusionPipeline, PRXTransformer2DModel
from safetensors.torch import load_file, save_file
(lines, prompts), noise = json.load(open("lines.json")), load_file("noise.safetensors")["noise"]
stopped = []
for name, loading in lines.items():
    names = {{}}
    exec(loading, names)
    pipeline = names["pipeline"]
    if not isinstance(pipeline.transformer, PRXTransformer2DModel):  # stops without the lines, draws nothing else
        try:
            DiffusionPipeline.from_pretrained(name)("a red square", num_inference_steps=1, use_resolution_binning=False)
        except (TypeError, AttributeError):
            stopped.append(name)
    pipeline.set_progress_bar_config(disable=True)
    settings = dict(num_inference_steps={STEPS}, use_resolution_binning=False, output_type="pt")
    guided = torch.cat([pipeline(prompt, guidance_scale={GUIDANCE}, latents=latent[None], **settings).images
                        for prompt, latent in zip(prompts, noise)])
    plain = pipeline(prompts, guidance_scale=1.0, latents=noise, **settings).images
    save_file({{"guided": guided.contiguous(), "plain": plain.contiguous()}}, name + ".safetensors")
print(*stopped)
"""
    )
    assert run_without_us(code, released).split() == ["unet_dc", "unet_kl", "sd3"]
    for name, generator in generators.items():
        theirs = load_file(released / f"{name}.safetensors")
        for kind, guidance in (("guided", GUIDANCE), ("plain", 1.0)):
            ours = generator.sample(PROMPTS, SEED, STEPS, guidance)
            assert float((theirs[kind] - ours).abs().max()) < 1e-4, (name, kind)
            assert (ours[0] - ours[1]).abs().max() > 1e-3 and ours.std() > 0.01
        assert (theirs["guided"] - theirs["plain"]).abs().max() > 1e-3  # the captions matter


@pytest.mark.parametrize("name", ["unet_dc", "unet_kl", "sd3", "t5"])
def test_predictions_and_images_in_16_bits_are_near(generators: dict[str, LatentDiffusionModule], name: str) -> None:
    found = generator_differences(generators[name], ["float16", "bfloat16"])
    half, brain = found["float16"], found["bfloat16"]
    assert 0 < half["prediction_relative_difference"] < brain["prediction_relative_difference"] < 0.05  # type: ignore[operator]
    assert 0 < half["image_largest_difference"] < brain["image_largest_difference"] < 0.05  # type: ignore[operator]


def test_the_lines_of_the_card_draw_with_weights_in_16_bits(released: Path, tmp_path: Path) -> None:
    lines = {}
    for name, kind in (("unet_dc", "UNetDenoiser"), ("sd3", "SD3Denoiser")):
        shutil.copytree(released / name, tmp_path / name)
        write_variants(tmp_path / name, ["bfloat16"])
        lines[name] = loading_lines(kind, name)
        assert load_generator(tmp_path / name).denoiser.model.dtype == torch.float32
    (tmp_path / "lines.json").write_text(json.dumps(lines))
    code = (
        ALONE
        + """
import json, torch
for name, lines in json.load(open("lines.json")).items():
    drawn = []
    for more in ("", ', variant="bf16", torch_dtype=torch.bfloat16'):
        names = {"torch": torch}
        exec(lines.replace(f'from_pretrained("{name}")', f'from_pretrained("{name}"{more})'), names)
        settings = dict(num_inference_steps=2, use_resolution_binning=False, output_type="pt")
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        latents = noise.to(names["pipeline"].transformer.dtype)
        drawn.append(names["pipeline"]("ein kreis", latents=latents, **settings).images.float())
    print(float((drawn[0] - drawn[1]).abs().max()))
"""
    )
    differences = [float(line) for line in run_without_us(code, tmp_path).split()]
    assert all(0 < difference < 0.1 for difference in differences), differences


def test_they_are_read_back(generators: dict[str, LatentDiffusionModule], released: Path) -> None:
    for name, generator in generators.items():
        module = load_generator(released / name)
        expected = generator.sample(PROMPTS, SEED, STEPS, GUIDANCE)
        torch.testing.assert_close(module.sample(PROMPTS, SEED, STEPS, GUIDANCE), expected, rtol=0, atol=1e-4)
        assert type(module.denoiser).__name__.replace("Pretrained", "PRX") == type(generator.denoiser).__name__


@pytest.mark.parametrize(
    "part, changes",
    [
        ("transformer", {"class_embed_type": "timestep"}),
        ("transformer", {"_class_name": "AutoencoderKL"}),
        ("transformer", {"cross_attention_dim": 16}),
    ],
)
def test_other_unets_are_refused(released: Path, tmp_path: Path, part: str, changes: dict[str, Any]) -> None:
    shutil.copytree(released / "unet_dc", tmp_path / "copy")
    config = tmp_path / "copy" / part / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(UserError, match=r"config\.json|loadable"):
        load_released_denoiser(tmp_path / "copy")


def test_no_file_names_a_path_of_this_machine(released: Path) -> None:
    for file in released.rglob("*.json"):
        assert str(released) not in file.read_text() and "/tmp" not in file.read_text(), file


def test_an_older_transformers_loads_the_text_encoder(
    generators: dict[str, LatentDiffusionModule], released: Path
) -> None:
    older = os.environ.get("LEAM_MM_OTHER_TRANSFORMERS")
    if not older:
        pytest.skip("set LEAM_MM_OTHER_TRANSFORMERS to a folder with transformers 4.57 and the libraries that it needs")
    code = f"""
import json, sys
sys.path.insert(0, {older!r})
import torch, transformers
from safetensors.torch import save_file
from transformers import AutoTokenizer, CLIPTextModel, PreTrainedTokenizerFast
assert transformers.__version__.startswith("4.57"), transformers.__version__
model, loading = CLIPTextModel.from_pretrained("sd3/text_encoder", output_loading_info=True)
assert not loading["missing_keys"] and not loading["unexpected_keys"], loading
for kind in (AutoTokenizer, PreTrainedTokenizerFast):
    tokenizer = kind.from_pretrained("sd3/tokenizer")
    tokens = tokenizer(json.load(open("prompts.json")), padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        states = model(tokens["input_ids"]).last_hidden_state
save_file({{"states": states, "mask": tokens["attention_mask"]}}, "older.safetensors")
"""
    (released / "prompts.json").write_text(json.dumps([prompt.lower().replace("[", " ") for prompt in PROMPTS]))
    run_without_us(code, released)
    theirs = load_file(released / "older.safetensors")
    tokens = json.loads((released / "prompts.json").read_text())
    state, mask = generators["sd3"].caption_encoder.encode(tokens)
    assert mask.any() and theirs["states"].shape == state.shape
