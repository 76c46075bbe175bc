"""The folder for diffusers gives our images without leam_mm; low-rank additions have peft's names and numbers."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PRXTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import nn
from toys.codecs import tiny_dc, tiny_kl
from toys.encoders import tiny_clip
from toys.generators import PROMPTS, tiny_generator
from toys.runs import run_without_us

from leam_mm.captions.caption_encoders import SeveralCaptionEncoders
from leam_mm.captions.caption_tower import CaptionTower
from leam_mm.data.random_stream import PhiloxStream
from leam_mm.denoisers.pretrained_denoiser import PretrainedDenoiser
from leam_mm.diffusion.clean_flow import CleanFlow
from leam_mm.diffusion.edm import Edm
from leam_mm.diffusion.rectified_flow import RectifiedFlow
from leam_mm.diffusion.time_shift import ResolutionShift
from leam_mm.diffusion.variance_preserving import VariancePreserving, VariancePreservingClean, VariancePreservingNoise
from leam_mm.diffusion_module import LatentDiffusionModule
from leam_mm.encoders.dual_encoder import TextTower
from leam_mm.encoders.low_rank import LowRank
from leam_mm.errors import UserError
from leam_mm.release.diffusers_folder import build_pipeline, clip_text_model, released_scheduler, write_diffusers_folder
from leam_mm.release.low_rank_folder import CONFIG, WEIGHTS, has_low_rank, write_low_rank_folder

STEPS, GUIDANCE, SEED = 4, 3.0, 7


def with_tower(module: LatentDiffusionModule) -> None:
    """Give the generator a deeper text tower of its own."""
    frozen = module.caption_encoder
    tower = CaptionTower(TextTower(**{**asdict(frozen.encoder.text), "layers": 3}))
    tower.start(frozen)
    for parameter in tower.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    for denoiser in (module.denoiser, module.ema_denoiser()):
        denoiser.caption_tower = tower


def test_text_states_are_those_of_clip_text_model(toy_tokenizer: Path) -> None:
    module = tiny_clip(toy_tokenizer)
    model = clip_text_model(module.ema_encoder(), module.tokenizer.path)
    text, length = module.tokenizer.encode([*PROMPTS, "", "long " * 40])
    with torch.no_grad():
        ours, theirs = module.ema_encoder().text_states(text), model(input_ids=text)
    assert torch.allclose(ours, theirs.last_hidden_state, atol=1e-5)
    pooled = ours[torch.arange(len(ours)), length - 1]
    assert torch.allclose(pooled, theirs.pooler_output, atol=1e-5)


def test_diffusers_gives_our_images_without_us(toy_tokenizer: Path, tmp_path: Path) -> None:
    generators = {
        "dc": tiny_generator(toy_tokenizer, tiny_dc(), shift=1.0),
        "kl": tiny_generator(toy_tokenizer, tiny_kl(), 1.0, 1, RectifiedFlow(shift=ResolutionShift(7))),
        "vp": tiny_generator(toy_tokenizer, tiny_dc(), 1.0, 2, VariancePreserving("sd_linear")),
        "noise": tiny_generator(toy_tokenizer, tiny_dc(), 1.0, 3, VariancePreservingNoise()),
    }
    with_tower(generators["kl"])
    noise = PhiloxStream().normal(SEED, torch.arange(len(PROMPTS)), "sample", (4, 8, 8))
    for name, generator in generators.items():
        write_diffusers_folder(generator, tmp_path / name)
        assert not [file for file in (tmp_path / name).rglob("*") if file.suffix not in ("", ".json", ".safetensors")]
    save_file({"noise": noise}, tmp_path / "noise.safetensors")
    (tmp_path / "prompts.json").write_text(json.dumps(PROMPTS))
    code = f"""
import json, torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
prompts, noise = json.load(open("prompts.json")), load_file("noise.safetensors")["noise"]
for name in {sorted(generators)}:
    pipeline = DiffusionPipeline.from_pretrained(name, trust_remote_code=False)
    pipeline.set_progress_bar_config(disable=True)
    settings = dict(num_inference_steps={STEPS}, use_resolution_binning=False, output_type="pt")
    # With guidance, the pipeline of diffusers 0.42 takes one prompt at a time.
    guided = torch.cat([pipeline(prompt, guidance_scale={GUIDANCE}, latents=latent[None], **settings).images
                        for prompt, latent in zip(prompts, noise)])
    plain = pipeline(prompts, guidance_scale=1.0, latents=noise, **settings).images
    state, mask, empty, empty_mask = pipeline.encode_prompt(prompts)
    found = dict(guided=guided, plain=plain, state=state, mask=mask, empty=empty, empty_mask=empty_mask)
    save_file({{key: value.contiguous() for key, value in found.items()}}, name + ".safetensors")
"""
    run_without_us(code, tmp_path)
    for name, generator in generators.items():
        theirs = load_file(tmp_path / f"{name}.safetensors")
        state, mask = generator.caption_encoder.encode(PROMPTS)
        empty, empty_mask = generator.caption_encoder.encode([""] * len(PROMPTS))
        assert torch.equal(theirs["mask"].bool(), mask) and torch.equal(theirs["empty_mask"].bool(), empty_mask)
        assert torch.allclose(theirs["state"][mask], state[mask], atol=1e-5)
        assert torch.allclose(theirs["empty"][empty_mask], empty[empty_mask], atol=1e-5)
        guided, plain = (generator.sample(PROMPTS, SEED, STEPS, guidance) for guidance in (GUIDANCE, 1.0))
        assert torch.allclose(theirs["guided"], guided, atol=1e-4)
        assert torch.allclose(theirs["plain"], plain, atol=1e-4)
        assert (guided - plain).abs().max() > 1e-3  # the captions matter, or equality would prove little
        assert guided.std() > 0.01


def test_codec_normalisation_is_in_the_config(toy_tokenizer: Path, tmp_path: Path) -> None:
    generator = tiny_generator(toy_tokenizer, tiny_kl(), shift=3.0)
    write_diffusers_folder(generator, tmp_path / "kl")
    config = json.loads((tmp_path / "kl" / "vae" / "config.json").read_text())
    assert config["scaling_factor"] == float(generator.codec.scale)
    assert config["shift_factor"] == float(generator.codec.shift)
    assert json.loads((tmp_path / "kl" / "scheduler" / "scheduler_config.json").read_text())["shift"] == 3.0
    assert json.loads((tmp_path / "kl" / "model_index.json").read_text())["default_sample_size"] == 32


def test_what_diffusers_cannot_sample_is_refused(toy_tokenizer: Path, tmp_path: Path) -> None:
    generator = tiny_generator(toy_tokenizer, tiny_dc(), shift=1.0)
    refused = ((VariancePreserving(), "schedule sd_linear"), (CleanFlow(), "RectifiedFlow"), (Edm(), "Rect"))
    for process, fix in refused:
        generator.process = process
        with pytest.raises(UserError, match=rf"{type(process).__name__} cannot.*train with .*{fix}"):
            write_diffusers_folder(generator, tmp_path / "out")
    generator = tiny_generator(toy_tokenizer, tiny_dc(), shift=1.0)
    generator.frozen.opened["clip"] = SeveralCaptionEncoders([generator.frozen.opened["clip"]])
    with pytest.raises(UserError, match="several text encoders"):
        write_diffusers_folder(generator, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_diverged_weights_are_refused(toy_tokenizer: Path, tmp_path: Path) -> None:
    generator = tiny_generator(toy_tokenizer, tiny_dc(), shift=1.0)
    next(generator.ema_denoiser().parameters()).data.fill_(float("inf"))
    with pytest.raises(UserError, match=r"denoiser: weight .* not finite"):
        write_diffusers_folder(generator, tmp_path / "out")


@pytest.mark.parametrize("steps", [1, 2, 8, 25, 40])
@pytest.mark.parametrize("kind", [VariancePreserving, VariancePreservingNoise, VariancePreservingClean])
def test_the_released_scheduler_takes_our_steps_along_the_table(steps: int, kind: type[VariancePreserving]) -> None:
    process = kind("sd_linear")
    scheduler = released_scheduler(process, 64)
    scheduler.set_timesteps(steps)
    times = process.times(steps)
    assert torch.equal(times[:-1], scheduler.timesteps.float() / 1000)
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def network(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return torch.sin(2 * x) - time.view(-1, 1, 1, 1)

    theirs = noise
    for timestep in scheduler.timesteps:
        theirs = scheduler.step(network(theirs, timestep.float().expand(3) / 1000), timestep, theirs).prev_sample
    ours = process.sample(network, noise, times)
    assert float((ours - theirs).abs().max()) < 1e-4 * float(theirs.abs().max())


@pytest.fixture
def tuned(toy_tokenizer: Path, tmp_path: Path) -> Any:
    """A generator with low-rank additions to the one in base/; the additions are in low_rank/."""
    generator = tiny_generator(toy_tokenizer, tiny_dc(), shift=1.0)
    write_diffusers_folder(generator, tmp_path / "base")
    denoiser = PretrainedDenoiser(str(tmp_path / "base"), LowRank(3, 12.0, ["*.attention.*", "*.*_proj"]))
    torch.manual_seed(1)
    for name, weight in denoiser.named_parameters():
        if "low_rank" in name:
            nn.init.normal_(weight, std=0.2)
    generator.denoiser, generator.ema = denoiser.eval(), None
    write_low_rank_folder(denoiser, tmp_path / "low_rank")
    return generator


def generated(generator: Any, transformer: Any = None) -> torch.Tensor:
    """An image of the released pipeline, with another transformer in it if one is given."""
    parts = generator.ema_denoiser(), generator.process, generator.caption_encoder, generator.codec, 32
    pipeline = build_pipeline(*parts)
    pipeline.set_progress_bar_config(disable=True)
    if transformer is not None:
        pipeline.transformer = transformer
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    settings = {"num_inference_steps": 3, "guidance_scale": 3.0, "use_resolution_binning": False, "output_type": "pt"}
    return pipeline("ein rotes Quadrat", latents=noise, **settings).images


@torch.no_grad()
def test_the_layout_is_w_plus_scale_times_b_a(tuned: Any, tmp_path: Path) -> None:
    config = json.loads((tmp_path / "low_rank" / CONFIG).read_text())
    weights = load_file(tmp_path / "low_rank" / WEIGHTS)
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["bias"]) == ("LORA", 3, 12.0, "none")
    assert {file.name for file in (tmp_path / "low_rank").iterdir()} == {CONFIG, WEIGHTS}
    assert str(tmp_path) not in json.dumps(config)
    names = config["target_modules"]
    assert len(names) == 2 * 6
    assert set(weights) == {f"base_model.model.{name}.lora_{part}.weight" for name in names for part in "AB"}
    base: Any = PRXTransformer2DModel.from_pretrained(tmp_path / "base" / "transformer")
    before = generated(tuned, base)
    for name in names:
        first, second = (weights[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        assert first.shape[0] == second.shape[1] == 3
        base.get_submodule(name).weight += config["lora_alpha"] / config["r"] * second @ first
    after = generated(tuned)
    torch.testing.assert_close(generated(tuned, base), after, rtol=0, atol=1e-6)
    assert (before - after).abs().max() > 1e-3


def test_peft_loads_it(tuned: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base: Any = PRXTransformer2DModel.from_pretrained(tmp_path / "base" / "transformer")
    wrapped = peft.PeftModel.from_pretrained(base, tmp_path / "low_rank").eval()
    torch.testing.assert_close(generated(tuned, wrapped.merge_and_unload()), generated(tuned), rtol=0, atol=1e-6)


def test_a_generator_without_additions_has_no_such_folder(toy_tokenizer: Path, tmp_path: Path) -> None:
    denoiser = tiny_generator(toy_tokenizer, tiny_dc(), shift=1.0).denoiser
    assert not has_low_rank(denoiser)
    with pytest.raises(UserError, match="not trained with low_rank"):
        write_low_rank_folder(denoiser, tmp_path / "low_rank")
