"""Low-rank additions as a folder: peft's names and numbers, and the same pictures as with the sum."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PRXTransformer2DModel
from safetensors.torch import load_file
from torch import nn
from toys.codecs import tiny_dc
from toys.generators import tiny_generator

from leam_mm.denoisers.pretrained_denoiser import PretrainedDenoiser
from leam_mm.encoders.low_rank import LowRank
from leam_mm.errors import UserError
from leam_mm.release.diffusers_folder import build_pipeline, write_diffusers_folder
from leam_mm.release.low_rank_folder import CONFIG, WEIGHTS, has_low_rank, write_low_rank_folder


@pytest.fixture
def tuned(toy_tokenizer: Path, tmp_path: Path) -> Any:
    """A generator with additions to the one that lies in base/; both files of the additions lie in low_rank/."""
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


def draw(generator: Any, transformer: Any = None) -> torch.Tensor:
    """A picture of the released pipeline, with another transformer in it if one is given."""
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
    before = draw(tuned, base)
    for name in names:
        first, second = (weights[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        assert first.shape[0] == second.shape[1] == 3
        base.get_submodule(name).weight += config["lora_alpha"] / config["r"] * second @ first
    after = draw(tuned)
    torch.testing.assert_close(draw(tuned, base), after, rtol=0, atol=1e-6)
    assert (before - after).abs().max() > 1e-3


def test_peft_loads_it(tuned: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base: Any = PRXTransformer2DModel.from_pretrained(tmp_path / "base" / "transformer")
    wrapped = peft.PeftModel.from_pretrained(base, tmp_path / "low_rank").eval()
    torch.testing.assert_close(draw(tuned, wrapped.merge_and_unload()), draw(tuned), rtol=0, atol=1e-6)


def test_a_generator_without_additions_has_no_such_folder(toy_tokenizer: Path, tmp_path: Path) -> None:
    denoiser = tiny_generator(toy_tokenizer, tiny_dc(), shift=1.0).denoiser
    assert not has_low_rank(denoiser)
    with pytest.raises(UserError, match="not trained with low_rank"):
        write_low_rank_folder(denoiser, tmp_path / "low_rank")
