"""Closed forms of FLOPs equal what torch counts on the modules of our recipes; identities of the closed forms."""

import copy
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from toys.command_line import fit_here, printed_config
from toys.generators import SignLatents, deep_generator, train_generator
from toys.recipes import clip_recipe

from leam_mm.diffusion_module import LatentDiffusionModule
from leam_mm.errors import UserError
from leam_mm.planning import counted_flops as counted
from leam_mm.planning.memory_fit import memory_model
from leam_mm.planning.recipe_file import merge, read_recipe
from leam_mm.planning.recipe_work import recipe_work
from leam_mm.planning.transformer_flops import (
    DenoiserShape,
    TowerShape,
    block,
    contrastive_loss,
    dit,
    image_tower,
    linear,
    mmdit,
    pixart,
    prx,
    text_tower,
    tokens_of_blocks,
)
from leam_mm.techniques.token_routing import TokenRouting

CONFIGS = Path(__file__).parent.parent / "configs"
RECOMPUTING = "leam_mm.callbacks.gradient_checkpointing.GradientCheckpointing"
ENCODERS = ("clip_vit_b32", "clip_vit_b16", "clip_vit_l14", "clip_multilingual", "clip_clipa")
GENERATORS = ("generator_one_gpu", "generator_8gpu", "generator_cluster_7b", "scenes_generator")


def recipe(name: str, *overlays: str) -> dict[str, Any]:
    return read_recipe([CONFIGS / f"{one}.yaml" for one in (name, *overlays)])


def towers(content: dict[str, Any]) -> tuple[float, float, dict[str, Any]]:
    """Closed forms of both towers of a recipe."""
    encoder = content["model"]["init_args"]["encoder"]
    vision, text, size = encoder["vision"], encoder["text"], encoder["embed_dim"]
    image = TowerShape(vision["layers"], vision["width"], 4 * vision["width"], size)
    caption = TowerShape(text["layers"], text["width"], 4 * text["width"], size)
    return image_tower(image, vision["image_size"], vision["patch_size"]), text_tower(
        caption, text["context_length"]
    ), vision  # fmt: skip


@pytest.mark.parametrize("name", ENCODERS)
def test_towers_agree_with_the_counter(name: str) -> None:
    content = recipe(name)
    image, text, vision = towers(content)
    encoder = counted.meta_module(content["model"]).encoder
    assert counted.count_image(encoder, vision["image_size"], 0.0) == pytest.approx(image, rel=0.01)
    assert counted.count_text(encoder, encoder.context_length) == pytest.approx(text, rel=0.01)


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("late", [False, True])
def test_denoisers_agree_with_the_counter(name: str, late: bool) -> None:
    content = recipe(name)
    sample = (1 << 50) if late else 0
    arguments, side = content["model"]["init_args"], content["model"]["init_args"]["latent_size"]
    settings = arguments["denoiser"]["init_args"]
    techniques = {one["class_path"].rpartition(".")[2]: one["init_args"] for one in arguments.get("techniques", [])}
    width = settings["hidden_size"]
    shape = DenoiserShape(
        settings["depth"], width, int(settings.get("mlp_ratio", 3.5) * width), settings["in_channels"],
        settings["patch_size"], settings["context_dim"],
    )  # fmt: skip
    tokens, routed, masked = (side // settings["patch_size"]) ** 2, None, None
    if (found := techniques.get("TokenRouting")) is not None:
        routed = found["first"], found["last"], found["share"]
    if (found := techniques.get("TokenMasking")) is not None and sample < found["until_samples"]:
        masked = found["mixing_blocks"], found["share"]
    counts = tokens_of_blocks(settings["depth"], tokens, routed, masked)
    expected = prx(shape, counts, caption=20)
    module = counted.meta_module(content["model"])
    found_flops = counted.count_denoiser(module, (side, side), 20, sample)
    if (aligned := techniques.get("RepresentationAlignment")) is not None and sample < aligned["until_samples"]:
        hidden = aligned.get("width", 2048)
        sizes = (width, hidden, hidden, aligned["feature_size"])
        expected += sum(linear(counts[aligned["depth"] - 1], *pair) for pair in pairwise(sizes))
    assert found_flops == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("name", "flops"), [("clip_vit_b32", 14.78e9), ("clip_vit_b16", 41.09e9), ("clip_vit_l14", 175.33e9)]
)
def test_recipes_cost_what_open_clip_lists(name: str, flops: float) -> None:
    content = recipe(name)
    work, vision = recipe_work(content), content["model"]["init_args"]["encoder"]["vision"]
    shape = TowerShape(vision["layers"], vision["width"], 4 * vision["width"], 0)
    spared = [image_tower(shape, 224, vision["patch_size"], whole_blocks=whole) for whole in (True, False)]
    flops -= spared[0] - spared[1]  # our last block computes the class token only
    assert sum(part.forward for part in work.phases[0].parts) == pytest.approx(flops, rel=0.002)
    assert work.model_flops == pytest.approx(3 * flops * 12.8e9, rel=0.002)


def test_sd3_and_dit_and_pixart_agree_with_the_counter() -> None:
    from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel, SD3Transformer2DModel

    width, channels, caption = 96, 4, 12
    shape = DenoiserShape(3, width, 4 * width, channels, 2, context=40, outputs=2 * channels)
    latent, time = torch.zeros(1, channels, 16, 16, device="meta"), torch.zeros(1, dtype=torch.int64, device="meta")
    states, counts = torch.zeros(1, caption, 40, device="meta"), tokens_of_blocks(3, 64)
    size = {
        "num_attention_heads": 6,
        "attention_head_dim": 16,
        "in_channels": channels,
        "num_layers": 3,
        "sample_size": 16,
    }
    with torch.device("meta"):
        plain: Any = DiTTransformer2DModel(**size, num_embeds_ada_norm=10)
        crossed: Any = PixArtTransformer2DModel(
            **size,
            out_channels=2 * channels,
            cross_attention_dim=width,
            caption_channels=40,
            use_additional_conditions=False,
        )
        joint: Any = SD3Transformer2DModel(
            **size, joint_attention_dim=40, caption_projection_dim=width,
            pooled_projection_dim=40, pos_embed_max_size=16,
        )  # fmt: skip
    # diffusers computes the embedding of the timestep in each block of DiT.
    timesteps = 3 * shape.timestep()
    found = counted.count(lambda: plain(latent, time, class_labels=time))
    assert found == pytest.approx(dit(shape, counts) + timesteps, rel=0.01)
    empty = {"resolution": None, "aspect_ratio": None}
    found = counted.count(lambda: crossed(latent, states, time, added_cond_kwargs=empty))
    assert found == pytest.approx(pixart(shape, counts, caption), rel=0.01)
    found = counted.count(lambda: joint(latent, states, states[:, 0], time))
    assert found == pytest.approx(mmdit(shape, counts, caption), rel=0.01)


def test_dit_xl_has_twice_the_published_multiply_accumulates() -> None:
    shape = DenoiserShape(28, 1152, 4 * 1152, 4, 2, outputs=8)
    assert dit(shape, tokens_of_blocks(28, 256)) == pytest.approx(2 * 118.64e9, rel=0.002)  # table 4 of 2212.09748
    assert dit(shape, tokens_of_blocks(28, 1024)) == pytest.approx(2 * 524.6e9, rel=0.002)


def test_backward_pass_costs_two_forward_passes() -> None:
    module = counted.meta_module(recipe("clip_vit_l14")["model"])
    for run in (lambda back: counted.count_image(module.encoder, 224, 0.0, back),
                lambda back: counted.count_text(module.encoder, 77, back)):  # fmt: skip
        assert run(True) == pytest.approx(3 * run(False), rel=0.01)
    generator = counted.meta_module(recipe("generator_one_gpu")["model"])
    both = [counted.count_denoiser(generator, (16, 16), 20, backward=back) for back in (False, True)]
    assert both[1] == pytest.approx(3 * both[0], rel=0.01)


def test_flops_add_up_over_layers_and_samples() -> None:
    def tower(layers: int) -> float:
        return text_tower(TowerShape(layers, 64, 256, 32), 16)

    assert tower(7) - tower(4) == pytest.approx(3 * block(16, 64, 256))
    content = recipe("clip_vit_b32")
    one, two = recipe_work(content, samples=32768), recipe_work(content, samples=65536)
    assert two.model_flops == pytest.approx(2 * one.model_flops)
    assert (one.steps, two.steps) == (1, 2)


def test_shorter_captions_cost_less() -> None:
    content = recipe("clip_vit_b32")
    full, short = recipe_work(content), recipe_work(content, caption_tokens=16)
    image, text = (part.forward for part in full.phases[0].parts)
    assert short.phases[0].parts[0].forward == image
    assert short.phases[0].parts[1].forward == pytest.approx(text * 16 / 77, rel=0.05)
    assert any("77 tokens" in note for note in full.assumptions) and not short.assumptions


def test_tokens_of_routed_and_masked_blocks() -> None:
    assert tokens_of_blocks(6, 100) == [100] * 6
    assert tokens_of_blocks(6, 100, routed=(1, -2, 0.5)) == [100, 100, 50, 50, 50, 100]
    assert tokens_of_blocks(6, 100, masked=(2, 0.75)) == [100, 100, 25, 25, 25, 25]


def test_checkpointing_costs_less_than_a_fourth_forward_pass_of_hardware_only() -> None:
    work = recipe_work(recipe("datacomp_small"))  # recomputes activations
    # All of a block but its last matrix, whose output is not needed: 16 of 24 n d^2, and the products of attention.
    assert work.hardware_flops == pytest.approx(3.67 / 3 * work.model_flops, rel=0.01)
    plain = recipe_work(recipe("clip_vit_b32"))
    assert plain.hardware_flops == plain.model_flops
    cached = recipe("clip_vit_b32")
    cached["model"]["init_args"]["micro_batch"] = 64  # GradCache embeds twice
    assert recipe_work(cached).hardware_flops == pytest.approx(4 / 3 * plain.model_flops)
    gated = recipe("generator_one_gpu")
    gated["model"]["init_args"]["denoiser"]["init_args"]["gradient_checkpointing"] = True
    own = recipe_work(gated)
    gated = recipe("generator_one_gpu")
    gated["trainer"]["callbacks"].append(
        {"class_path": "leam_mm.callbacks.gradient_checkpointing.GradientCheckpointing"}
    )
    assert own.hardware_flops == pytest.approx(recipe_work(gated).hardware_flops, rel=0.005)
    assert own.hardware_flops > 1.2 * own.model_flops


def counted_fit(content: dict[str, Any], folder: Path) -> float:
    """FLOP per sample of a real run on the CPU: the difference of two runs of different length."""
    totals = []
    for samples in (16, 48):
        run = copy.deepcopy(content) | {"max_samples": samples}
        run["trainer"]["default_root_dir"] = str(folder / f"run{samples}")
        run["trainer"]["logger"] = False
        totals.append(counted.count(partial(fit_here, run, folder / f"recipe{samples}")))
    return (totals[1] - totals[0]) / 32


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_real_run_computes_what_is_planned(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path, recomputed: bool
) -> None:
    content = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer)
    arguments = content["model"]["init_args"]["encoder"]
    arguments["vision"] |= {"width": 64, "layers": 3}
    # Captions are packed, so that only real tokens cost anything: all of them are cut to the same length.
    arguments["text"] |= {"width": 64, "layers": 3, "context_length": 5}
    content["data"]["init_args"]["captions"]["context_length"] = 5
    if recomputed:
        content["trainer"]["callbacks"] = [{"class_path": RECOMPUTING}]
    work = recipe_work(content)
    assert counted_fit(content, tmp_path) == pytest.approx(work.hardware_flops / work.samples, rel=0.02)
    assert (work.hardware_flops > 1.15 * work.model_flops) == recomputed


def test_frozen_tower_costs_one_pass_and_needs_no_weights_file() -> None:
    work = recipe_work(recipe("clip_lit"))
    image, text = work.phases[0].parts
    assert (image.passes, text.passes) == (1.0, 3.0)
    shape = TowerShape(12, 768, 4 * 768, 512)
    assert image_tower(shape, 224, 32, whole_blocks=True) == pytest.approx(8.82e9, rel=0.002)
    assert image.forward == pytest.approx(image_tower(shape, 224, 32), rel=0.002)
    assert work.trained < work.weights


def test_stages_and_techniques_make_phases() -> None:
    stages = recipe_work(recipe("clip_clipa"))
    assert [phase.samples for phase in stages.phases] == [2_560_000_000, 131_072_000]
    assert stages.phases[0].model_flops < stages.phases[1].model_flops / 3
    masked = recipe_work(recipe("generator_8gpu"))
    assert [phase.samples for phase in masked.phases] == [286_720_000, 225_280_000, 61_440_000]
    assert masked.samples == 573_440_000
    assert masked.phases[2].model_flops > 2.5 * masked.phases[1].model_flops


def test_averages_of_several_widths_are_built_and_counted() -> None:
    plain, averaged = (recipe_work(recipe("scenes_generator", *more)) for more in ((), ("overlay_power_ema",)))
    assert averaged.weights == plain.weights and (plain.averages, averaged.averages) == (1, 2)


def test_overlay_is_merged_on_top_of_a_recipe() -> None:
    plain, routed = recipe_work(recipe("generator_one_gpu")), recipe_work(recipe("generator_one_gpu", "overlay_tread"))
    assert 0.5 < routed.model_flops / plain.model_flops < 0.75
    assert merge({"a": {"class_path": "x", "init_args": {"b": 1}}}, {"a": {"class_path": "y"}}) == {
        "a": {"class_path": "y"}
    }
    assert merge({"a": [1], "b": {"c": 1}}, {"a+": [2], "b": {"d": 2}}) == {"a": [1, 2], "b": {"c": 1, "d": 2}}


def test_codec_and_unet_are_counted() -> None:
    work = recipe_work(recipe("codec_kl"))
    assert [part.name for part in work.phases[1].parts] == ["encoder", "decoder", "perceptual loss", "discriminator"]
    content = recipe("scenes_generator")
    content["model"]["init_args"]["denoiser"] = {
        "class_path": "leam_mm.denoisers.denoiser.UNetDenoiser",
        "init_args": {"in_channels": 16, "context_dim": 128, "block_channels": [32, 64]},
    }
    assert recipe_work(content).model_flops > 0
    sizes = {"in_channels": 16, "context_dim": 128, "hidden_size": 96, "depth": 3, "num_heads": 4}
    content["model"]["init_args"]["denoiser"] = {
        "class_path": "leam_mm.denoisers.sd3_denoiser.SD3Denoiser",
        "init_args": sizes,
    }
    side = content["model"]["init_args"]["latent_size"]
    expected = mmdit(DenoiserShape(3, 96, 384, 16, context=128), tokens_of_blocks(3, (side // 2) ** 2), 20)
    work = recipe_work(content, caption_tokens=20)
    assert work.phases[0].parts[0].forward == pytest.approx(expected, rel=0.01)


def test_contrastive_loss_is_small_and_its_exchange_is_known() -> None:
    # ViT-L/14 on 400 ranks with 96 pairs each: 0.07 % of the forward pass if each rank has its own rows only.
    cost = contrastive_loss(38_400, 400, 768, bytes_per_value=2, gathered=False)
    assert cost.flops / 3 == pytest.approx(4 * 96 * 38_400 * 768)
    assert cost.flops / (3 * 96 * 175.33e9) < 0.001
    assert cost.received_bytes == 2 * (38_400 - 96) * 768 * 2
    assert contrastive_loss(32_768, 32, 512, tile=1024).logit_bytes == 1024 * 32_768 * 4
    assert contrastive_loss(32_768, 32, 512).flops == 3 * 2 * 32_768**2 * 512


def test_faults_name_the_file_and_the_fix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.yaml.*give the path"):
        read_recipe([tmp_path / "missing.yaml"])
    (tmp_path / "empty.yaml").write_text("a: 1")
    with pytest.raises(UserError, match=r"model\.class_path is missing"):
        read_recipe([tmp_path / "empty.yaml"])
    content = recipe("clip_vit_b32")
    del content["max_samples"]
    with pytest.raises(UserError, match="--samples"):
        recipe_work(content)


@pytest.mark.parametrize("name", ["clip_clipa", "codec_kl"])
def test_resolved_config_of_a_run_gives_the_same_plan(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    plain, resolved = recipe(name), printed_config(capsys, CONFIGS / f"{name}.yaml")
    assert recipe_work(resolved) == recipe_work(plain)
    assert memory_model(resolved) == memory_model(plain)


@pytest.mark.parametrize("routed", [False, True])
def test_real_steps_of_a_generator_compute_what_is_planned(tmp_path: Path, routed: bool) -> None:
    def module() -> LatentDiffusionModule:
        return deep_generator([TokenRouting(0.5, 0, 2)] if routed else None)

    steps, caption = (2, 6), len(SignLatents(1)[0]["caption_state"])
    totals = [counted.count(lambda n=n: train_generator(module(), tmp_path / str(n), n)) for n in steps]
    planned = counted.count_denoiser(module().to("meta"), (4, 4), caption, backward=True)
    # Half of the captions are dropped: batches without a long one cost a little less.
    assert (totals[1] - totals[0]) / (4 * 16) == pytest.approx(planned, rel=0.05)
