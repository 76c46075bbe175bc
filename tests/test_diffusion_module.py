import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader
from toys.generators import (
    CAPTION_LENGTH,
    CAPTION_WIDTH,
    FakeCaptions,
    SignLatents,
    generator_module,
    randomise_generator,
    train_generator,
)

from leam_mm.captions.frozen_parts import FrozenParts
from leam_mm.checkpoint import EVIDENCE, build_module, load_module
from leam_mm.codecs.latent_codec import DCCodec
from leam_mm.data.batch import collate_samples
from leam_mm.data.random_stream import PhiloxStream
from leam_mm.diffusion.clean_flow import CleanFlow
from leam_mm.diffusion.edm import Edm
from leam_mm.diffusion.guidance import Guidance
from leam_mm.diffusion.rectified_flow import RectifiedFlow
from leam_mm.diffusion.variance_preserving import VariancePreserving
from leam_mm.diffusion_module import LatentDiffusionModule
from leam_mm.errors import UserError


@pytest.mark.parametrize("process", [RectifiedFlow(), CleanFlow(), VariancePreserving(), Edm()])
def test_loss_falls(process: Any, tmp_path: Path) -> None:
    module = generator_module(process=process, caption_dropout=0.1)
    batch = collate_samples([SignLatents(64)[number] for number in range(64)])
    with torch.no_grad():
        before = module.sample_losses(batch).mean()
    train_generator(module, tmp_path, 40)
    with torch.no_grad():
        assert module.sample_losses(batch).mean() < 0.7 * before


def test_the_loss_of_a_sample_does_not_depend_on_its_batch() -> None:
    module = randomise_generator(generator_module())
    samples = [SignLatents(8)[number] for number in range(8)]
    with torch.no_grad():
        together = module.sample_losses(collate_samples(samples))
        swapped = module.sample_losses(collate_samples(samples[::-1])).flip(0)
        alone = torch.cat([module.sample_losses(collate_samples([sample])) for sample in samples])
    torch.testing.assert_close(swapped, together)
    torch.testing.assert_close(alone, together)
    assert together.unique().numel() == 8  # noise and time differ from sample to sample


def test_another_seed_is_another_training() -> None:
    batch = collate_samples([SignLatents(8)[number] for number in range(8)])
    with torch.no_grad():
        one, two = (randomise_generator(generator_module(seed=seed)).sample_losses(batch) for seed in (0, 1))
    assert not torch.isclose(one, two).any()


def test_captions_are_dropped_at_the_given_rate_for_the_empty_one() -> None:
    module = generator_module(caption_dropout=0.3)
    index = torch.arange(2000)
    state, mask = (
        torch.full((2000, CAPTION_LENGTH, CAPTION_WIDTH), 5.0),
        torch.ones(2000, CAPTION_LENGTH, dtype=torch.bool),
    )
    new_state, new_mask = module.conditioning.drop((state, mask), index)
    dropped = (new_state != 5.0).flatten(1).all(1)
    assert dropped.float().mean().item() == pytest.approx(0.3, abs=0.04)
    empty_state, empty_mask = module.conditioning.empty()
    assert torch.equal(new_state[dropped], empty_state.expand(int(dropped.sum()), -1, -1))
    assert torch.equal(new_mask[dropped], empty_mask.expand(int(dropped.sum()), -1))
    assert new_mask[~dropped].all() and (new_state[~dropped] == 5.0).all()


@pytest.mark.parametrize("length", [1, 3, 9])  # 1 is shorter than the empty caption, which must stay whole
def test_the_empty_caption_fits_any_length_of_batch(length: int) -> None:
    module = generator_module(caption_dropout=1.0)
    state, mask = torch.ones(2, length, CAPTION_WIDTH), torch.ones(2, length, dtype=torch.bool)
    new_state, new_mask = module.conditioning.drop((state, mask), torch.arange(2))
    assert new_state.shape == (2, max(2, length), CAPTION_WIDTH)
    assert new_mask.sum(1).tolist() == [2, 2]
    assert torch.equal(new_state[:, :2], module.conditioning.empty()[0][:, :2].expand(2, -1, -1))


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_average_moves_once_per_optimizer_step(accumulated: int, tmp_path: Path) -> None:
    module = generator_module()
    trainer = train_generator(module, tmp_path, 3, accumulate_grad_batches=accumulated)
    assert trainer.global_step == 3
    assert module.ema is not None and int(module.ema.updates) == 3


def test_two_runs_are_equal_to_the_bit(tmp_path: Path) -> None:
    runs = [generator_module(), generator_module()]
    for module in runs:
        torch.manual_seed(len(str(id(module))))  # the global generator must not matter
        train_generator(module, tmp_path, 2)
    first, second = (module.state_dict() for module in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_pictures_and_texts_are_encoded_on_the_fly() -> None:
    module = randomise_generator(generator_module())
    image = torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8)
    captions = ["ein Kreis", "zwei rote Kreise", "κύκλος"]
    index = torch.arange(3)
    state, mask = module.caption_encoder.encode(captions)
    latent = module.codec.encode(image.float() / 127.5 - 1)
    encoded = {"latent": latent, "caption_state": state, "caption_length": mask.sum(1), "sample_index": index}
    with torch.no_grad():
        from_pictures = module.sample_losses({"image": image, "caption": captions, "sample_index": index})
        torch.testing.assert_close(from_pictures, module.sample_losses(encoded))


def test_half_precision_of_the_codec_does_not_round_noise_and_times() -> None:
    module = randomise_generator(generator_module())
    index = torch.arange(4)
    batch = {"image": torch.randint(0, 256, (4, 3, 4, 4), dtype=torch.uint8), "sample_index": index}
    encode, seen = module.codec.encode, []
    module.codec.encode = lambda image: encode(image).bfloat16()  # type: ignore[method-assign]  # as under autocast
    module.denoiser.register_forward_hook(lambda network, given, found: seen.extend(given[:2]))
    with torch.no_grad():
        module.sample_losses({**batch, "caption": ["a", "b c", "d", "e"]})
    assert [part.dtype for part in seen] == [torch.float32, torch.float32]


def test_a_picture_depends_on_its_number_not_on_its_neighbours() -> None:
    module = randomise_generator(generator_module())
    prompts = ["ein Kreis", "zwei rote Kreise", "κύκλος", "квадрат", "a b c"]
    together = module.sample(prompts, seed=3, steps=4)
    assert together.shape == (5, 3, 4, 4) and together.min() >= 0 and together.max() <= 1
    torch.testing.assert_close(module.sample(prompts, seed=3, steps=4, batch_size=2), together)
    torch.testing.assert_close(module.sample(prompts[3:], seed=3, steps=4, first_index=3), together[3:])
    assert not torch.allclose(module.sample(prompts, seed=4, steps=4), together)
    assert not torch.allclose(module.sample(prompts, seed=3, steps=4, guidance=1.0), together)
    assert not torch.allclose(module.sample(prompts, seed=3, steps=4, method="heun"), together)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_latents_are_those_of_the_released_pipeline(guidance: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, PRXPipeline

    module = randomise_generator(generator_module(process=RectifiedFlow(shift=2.0)))
    module.codec.decode = lambda latent: latent[:, :3] / 100  # type: ignore[method-assign]  # nothing is clamped
    ours = module.sample(["zwei rote Kreise"], seed=3, steps=9, guidance=guidance)
    pipeline: Any = PRXPipeline(
        module.ema_denoiser().model, FlowMatchEulerDiscreteScheduler(shift=2.0), text_encoder=None, tokenizer=None
    )
    pipeline.set_progress_bar_config(disable=True)
    state, mask = module.caption_encoder.encode(["zwei rote Kreise"])
    empty_state, empty_mask = module.conditioning.empty()
    theirs = pipeline(
        latents=PhiloxStream().normal(3, torch.arange(1), "sample", (4, 4, 4)),
        prompt_embeds=state,
        prompt_attention_mask=mask,
        negative_prompt_embeds=empty_state,
        negative_prompt_attention_mask=empty_mask,
        num_inference_steps=9,
        guidance_scale=guidance,
        height=32,
        width=32,
        use_resolution_binning=False,
        output_type="latent",
    ).images
    assert theirs.abs().max() < 100
    torch.testing.assert_close(ours, theirs[:, :3] / 200 + 0.5, rtol=0, atol=1e-6)


def test_sampling_uses_the_average_and_leaves_the_random_state_alone() -> None:
    module = randomise_generator(generator_module())
    state = torch.get_rng_state()
    first = module.sample(["x"], seed=0, steps=2)
    assert torch.equal(torch.get_rng_state(), state)
    nn.init.zeros_(next(module.denoiser.parameters()))
    assert torch.equal(module.sample(["x"], seed=0, steps=2), first)


def test_large_pictures_are_decoded_in_tiles() -> None:
    module = randomise_generator(generator_module())
    torch.manual_seed(2)
    codec = DCCodec(latent_channels=4, widths=[8, 8, 16, 16], layers=[0, 1, 1, 1]).requires_grad_(False).eval()
    module.frozen.opened["codec"] = codec
    seen: set[tuple[int, ...]] = set()
    codec.autoencoder.decoder.register_forward_pre_hook(lambda _, inputs: seen.add(tuple(inputs[0].shape)))
    whole = module.sample(["x", "y"], seed=0, steps=2, size=(16, 12))
    assert seen == {(2, 4, 16, 12)}
    seen.clear()
    tiled = module.sample(["x", "y"], seed=0, steps=2, size=(16, 12), tile=64)
    assert tiled.shape == whole.shape == (2, 3, 128, 96) and not torch.equal(tiled, whole)
    assert max(shape[0] for shape in seen) == 1 and max(max(shape[2:]) for shape in seen) == 8
    with pytest.raises(UserError, match="tile is 60"):
        module.sample(["x"], seed=0, steps=2, tile=60)
    assert torch.equal(module.sample(["x", "y"], seed=0, steps=2, size=(16, 12)), whole)


def test_validation_is_the_same_every_time_and_by_time(tmp_path: Path) -> None:
    module = randomise_generator(generator_module())
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    results = [
        trainer.validate(
            module, DataLoader(SignLatents(12), batch_size=size, collate_fn=collate_samples), verbose=False
        )[0]
        for size in (12, 5)
    ]
    assert set(results[0]) == {"val/loss", "val/loss_t0", "val/loss_t1", "val/loss_t2", "val/loss_t3"}
    for name, value in results[0].items():
        assert results[1][name] == pytest.approx(value, rel=1e-5)
    assert results[0]["val/loss"] == pytest.approx(sum(results[0][f"val/loss_t{place}"] for place in range(4)) / 4)


def test_frozen_parts_stay_out_of_the_state() -> None:
    module = generator_module()
    module.conditioning.empty()
    assert {name.split(".")[0] for name in module.state_dict()} == {"denoiser", "ema"}


def test_missing_parts_are_named() -> None:
    module = generator_module(frozen=FrozenParts(clip="nowhere/clip"))
    with pytest.raises(UserError, match="nowhere/clip"):
        module.setup("fit")
    module = generator_module()
    module.frozen.opened = {}
    with pytest.raises(UserError, match=r"model\.init_args\.frozen\.codec is empty"):
        _ = module.codec
    with pytest.raises(UserError, match=r"model\.init_args\.frozen\.clip is empty"):
        module.setup("fit")
    with pytest.raises(UserError, match=r"codec_statistics\.json cannot be read"):
        generator_module(frozen=FrozenParts(latents="nowhere")).setup("fit")


def test_channels_that_do_not_fit_are_named() -> None:
    batch = collate_samples([SignLatents(2)[number] for number in range(2)])
    batch["latent"] = batch["latent"][:, :3]
    with pytest.raises(UserError, match="3 channels"):
        generator_module().sample_losses(batch)


def test_a_checkpoint_records_its_frozen_parts_and_refuses_others(tmp_path: Path) -> None:
    clip = tmp_path / "clip.ckpt"
    clip.write_bytes(b"one")
    (tmp_path / "codec_statistics.json").write_text(json.dumps({"shift": 0.0, "scale": 2.0}))
    module = generator_module(frozen=FrozenParts(clip=str(clip), latents=str(tmp_path)))
    checkpoint: dict[str, Any] = {EVIDENCE: {"config": "x"}}
    module.on_save_checkpoint(checkpoint)
    frozen = checkpoint[EVIDENCE]["frozen"]
    assert frozen["clip"]["path"] == str(clip) and len(frozen["clip"]["sha256"]) == 64
    assert frozen["latents"]["statistics"] == {"shift": 0.0, "scale": 2.0}
    generator_module(frozen=FrozenParts(clip=str(clip), latents=str(tmp_path))).on_load_checkpoint(checkpoint)
    clip.write_bytes(b"two")
    with pytest.raises(UserError, match="another clip"):
        generator_module(frozen=FrozenParts(clip=str(clip))).on_load_checkpoint(checkpoint)


def test_a_checkpoint_rebuilds_itself_and_finds_its_codec(tmp_path: Path) -> None:
    codec_section = {
        "class_path": "leam_mm.codec_module.LatentCodecModule",
        "init_args": {
            "codec": {
                "class_path": "leam_mm.codecs.latent_codec.DCCodec",
                "init_args": {"latent_channels": 4, "widths": [8, 8], "layers": [1, 1]},
            }
        },
    }
    section = {
        "class_path": "leam_mm.diffusion_module.LatentDiffusionModule",
        "init_args": {
            "denoiser": {
                "class_path": "leam_mm.denoisers.denoiser.PRXDenoiser",
                "init_args": {
                    "in_channels": 4,
                    "context_dim": CAPTION_WIDTH,
                    "hidden_size": 32,
                    "depth": 1,
                    "num_heads": 2,
                },
            },
            "process": {"class_path": "leam_mm.diffusion.rectified_flow.RectifiedFlow", "init_args": {"shift": 2.0}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
            "latent_size": 4,
            "frozen": {"codec": str(tmp_path / "codec.ckpt")},
        },
    }
    for name, part in (("codec", codec_section), ("generator", section)):
        module = build_module(part)
        checkpoint: dict[str, Any] = {
            "state_dict": module.state_dict(),
            EVIDENCE: {"config": yaml.dump({"model": part})},
        }
        module.on_save_checkpoint(checkpoint)
        torch.save(checkpoint, tmp_path / f"{name}.ckpt")
    generator = load_module(tmp_path / "generator.ckpt", LatentDiffusionModule)
    assert generator.process.shift == 2.0  # type: ignore[attr-defined]
    generator.frozen.opened["clip"] = FakeCaptions()
    assert generator.sample(["ein Kreis"], seed=0, steps=2).shape == (1, 3, 8, 8)
    # A generator of the same codec can be the weaker one of autoguidance; this one, untrained, predicts zeros.
    weaker = str(tmp_path / "generator.ckpt")
    guided = randomise_generator(generator).sample(["ein Kreis"], 0, 2, Guidance(2.0, weaker=weaker))
    doubled = generator.ema_denoiser().register_forward_hook(lambda network, given, found: 2 * found)
    torch.testing.assert_close(generator.sample(["ein Kreis"], 0, 2, guidance=1.0), guided)
    doubled.remove()
    assert not torch.allclose(generator.sample(["ein Kreis"], 0, 2, guidance=1.0), guided, atol=1e-4)
    generator.process = CleanFlow()
    generator.frozen.opened.pop(weaker)
    with pytest.raises(UserError, match=r"same process as here \(CleanFlow\)"):
        generator.sample(["ein Kreis"], 0, 2, Guidance(2.0, weaker=weaker))
    generator.frozen.opened = {}
    torch.save({**torch.load(tmp_path / "codec.ckpt", weights_only=True), "more": 1}, tmp_path / "codec.ckpt")
    with pytest.raises(UserError, match="has changed since"):
        _ = generator.codec
    (tmp_path / "codec.ckpt").unlink()
    with pytest.raises(UserError, match=r"the codec of .* is not at .*codec\.ckpt"):
        _ = generator.codec
