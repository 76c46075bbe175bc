"""Pictures drawn from pictures: what stays, what strength means, the same in plain diffusers by the card's recipe."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from toys.codecs import tiny_dc, tiny_kl
from toys.generators import PROMPTS, tiny_generator
from toys.runs import run_without_us

from leam_mm.data.random_stream import PhiloxStream
from leam_mm.diffusion.editing import Edit, latent_mask, remaining_times, sample_edit
from leam_mm.diffusion.rectified_flow import RectifiedFlow
from leam_mm.diffusion.samplers import sample_euler, sample_heun
from leam_mm.documents.model_card import generator_usage
from leam_mm.errors import UserError
from leam_mm.release.diffusers_folder import write_diffusers_folder

SEED, STEPS = 7, 4


def pictures(count: int = 3, size: int = 32) -> Tensor:
    """Of 256 levels, so that a PNG holds them."""
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(3)) / 255


def half(size: int = 32) -> Tensor:
    mask = torch.zeros(1, 1, size, size)
    mask[..., size // 2 :] = 1
    return mask


@pytest.fixture(scope="module")
def generator(toy_tokenizer: Path) -> Any:
    return tiny_generator(toy_tokenizer, tiny_dc(), shift=2.0)


def reconstruction(generator: Any, image: Tensor) -> Tensor:
    with torch.no_grad():
        return (generator.codec.decode(generator.codec.encode(image * 2 - 1)) / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_full_strength_is_plain_sampling_to_the_bit(generator: Any, method: Any) -> None:
    plain = generator.sample(PROMPTS, SEED, STEPS, method=method)
    assert torch.equal(generator.sample(PROMPTS, SEED, STEPS, method=method, edit=Edit(pictures())), plain)
    everywhere = Edit(pictures(), mask=torch.ones(1, 1, 32, 32))
    assert torch.equal(generator.sample(PROMPTS, SEED, STEPS, method=method, edit=everywhere), plain)


def test_no_strength_is_the_codec_s_reconstruction(generator: Any) -> None:
    found = generator.sample(PROMPTS, SEED, STEPS, edit=Edit(pictures(), 0.0))
    assert torch.equal(found, reconstruction(generator, pictures()))


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_outside_the_mask_nothing_changes_and_inside_it_all_does(generator: Any, strength: float) -> None:
    edit = Edit(pictures(), strength, half())
    found, kept = generator.sample(PROMPTS, SEED, STEPS, edit=edit), reconstruction(generator, pictures())
    assert torch.equal(found[..., :16], kept[..., :16])
    assert ((found - kept)[..., 16:].flatten(1).abs().amax(1) > 1e-3).all()


def test_more_strength_goes_further_from_the_picture(generator: Any) -> None:
    kept = reconstruction(generator, pictures())
    distances = [
        float((generator.sample(PROMPTS, SEED, 10, edit=Edit(pictures(), strength)) - kept).square().mean())
        for strength in (0.0, 0.2, 0.6, 1.0)
    ]
    assert distances == sorted(distances) and distances[0] == 0 < distances[1]


def test_one_picture_serves_all_prompts_and_batches_change_nothing(generator: Any) -> None:
    edit = Edit(pictures(), 0.7, half())
    together = generator.sample(PROMPTS, SEED, STEPS, edit=edit)
    alone = generator.sample(PROMPTS, SEED, STEPS, batch_size=2, edit=edit)
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)
    same = generator.sample(PROMPTS, SEED, STEPS, edit=Edit(pictures(1), 0.7))
    repeated = generator.sample(PROMPTS, SEED, STEPS, edit=Edit(pictures(1).repeat(3, 1, 1, 1), 0.7))
    assert torch.equal(same, repeated)


def test_remaining_times_start_at_the_strength() -> None:
    times = RectifiedFlow(shift=3.0).times(8)
    assert torch.equal(remaining_times(times, 1.0), times)
    assert remaining_times(times, 0.0).tolist() == [0.0]
    part = remaining_times(times, 0.5)
    assert part[0] == 0.5 and torch.equal(part[1:], times[times < 0.5])
    assert torch.equal(remaining_times(times, float(times[3])), times[3:])  # a time of the grid is not taken twice


@pytest.mark.parametrize("sampler", [sample_euler, sample_heun])
def test_the_exact_flow_gives_the_picture_back_at_any_strength(sampler: Any) -> None:
    """With the velocity of one image's own path, noise - clean, a straight line leads back to it."""
    torch.manual_seed(0)
    clean, noise = (torch.randn(2, 4, 8, 8, dtype=torch.float64) for _ in range(2))
    mask = latent_mask(half(32), 4)

    def draw(x: Tensor, times: Tensor) -> Tensor:
        return sampler(lambda state, time: noise - clean, x, times)

    process = RectifiedFlow()
    for strength in (0.3, 1.0):
        for part in (None, mask):
            found = sample_edit(process, draw, clean, noise, process.times(5).double(), strength, part)
            torch.testing.assert_close(found, clean, rtol=0, atol=1e-12)
    kept = sample_edit(process, lambda x, times: x * 0 + 9, clean, noise, process.times(5).double(), 0.8, mask)
    assert torch.equal(kept, torch.where(mask, torch.full_like(clean, 9), clean))


def test_a_position_is_drawn_anew_where_any_of_its_pixels_is() -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[0, 0, 3, 4] = 1
    assert latent_mask(mask, 4).tolist() == [[[[False, True], [False, False]]]]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"strength": 1.5}, "strength is 1.5"),
        ({"image": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, "floats in"),
        ({"image": torch.zeros(3, 32, 32)}, "image has shape"),
        ({"mask": torch.ones(1, 1, 16, 16)}, "mask has shape"),
        (
            {"image": torch.zeros(1, 3, 16, 16), "strength": 0.5},
            "16 x 16 pixels, the generator's have 32 x 32",
        ),
        ({"image": torch.zeros(2, 3, 32, 32)}, "2 images or masks for 3 prompts"),
    ],
)
def test_what_fits_no_picture_is_refused(generator: Any, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        generator.sample(PROMPTS, SEED, 1, edit=Edit(**{"image": pictures(), **settings}))


def test_diffusers_edits_as_we_do_by_the_recipes_of_the_card(toy_tokenizer: Path, tmp_path: Path) -> None:
    generators = {
        "dc": tiny_generator(toy_tokenizer, tiny_dc(), shift=1.0),
        "kl": tiny_generator(toy_tokenizer, tiny_kl(), shift=3.0, seed=1),
        "unet": tiny_generator(toy_tokenizer, tiny_dc(), shift=1.0, seed=2, network="unet"),
    }
    image, noise = pictures(1), PhiloxStream().normal(SEED, torch.arange(1), "sample", (4, 8, 8))
    save_file({"noise": noise, "mask": half()}, tmp_path / "given.safetensors")
    strengths = (0.0, 0.4, 1.0)
    code = f"""
import os
from safetensors.torch import load_file, save_file
given, more = load_file("given.safetensors"), {{"steps": {STEPS}}}
for name in {sorted(generators)}:
    os.chdir(name)
    card = {{}}
    exec(open("recipe.py").read(), card)
    redraw, inpaint, source = card["redraw"], card["inpaint"], card["Image"].open("../given.png")
    found = {{f"redrawn_{{s}}": redraw({PROMPTS[0]!r}, source, s, given["noise"], **more) for s in {strengths}}}
    for s in {strengths[1:]}:
        found[f"inpainted_{{s}}"] = inpaint({PROMPTS[0]!r}, source, given["mask"], given["noise"], s, **more)
    save_file({{key: value.contiguous() for key, value in found.items()}}, "found.safetensors")
    os.chdir("..")
"""
    levels = (image[0].permute(1, 2, 0) * 255).round().byte().numpy()
    Image.fromarray(np.ascontiguousarray(levels)).save(tmp_path / "given.png")
    for name, module in generators.items():
        write_diffusers_folder(module, tmp_path / name)
        card = generator_usage(True, False, type(module.denoiser).__name__)
        recipe = "\n".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL))
        (tmp_path / name / "recipe.py").write_text(recipe)
    run_without_us(code, tmp_path)
    for name, module in generators.items():
        assert {"redrawn.png", "inpainted.png"} <= {file.name for file in (tmp_path / name).iterdir()}
        theirs = load_file(tmp_path / name / "found.safetensors")
        for key, found in theirs.items():
            kind, _, strength = key.partition("_")
            edit = Edit(image, float(strength), half() if kind == "inpainted" else None)
            ours = module.sample(PROMPTS[:1], SEED, STEPS, guidance=3.0, edit=edit)
            torch.testing.assert_close(found, ours, rtol=0, atol=1e-4, msg=f"{name} {key}")
        assert (theirs["redrawn_0.4"] - theirs["redrawn_1.0"]).abs().max() > 1e-3
