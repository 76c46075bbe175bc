import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader
from toys.codecs import RandomImages, codec_module, fit_codec, weights_of
from toys.recipes import clip_recipe

from leam_mm.checkpoint import build_module, load_module
from leam_mm.cli import main
from leam_mm.codec_module import LatentCodecModule
from leam_mm.codecs.codec_losses import Adversarial
from leam_mm.codecs.latent_codec import LatentCodec, LatentStatistics
from leam_mm.codecs.perceptual_loss import EfficientNetLoss
from leam_mm.codecs.pretrained_codec import codec_file, load_codec
from leam_mm.data.batch import samples_seen
from leam_mm.data.image_range import signed
from leam_mm.errors import UserError


@pytest.mark.parametrize("kind", ["dc", "kl"])
def test_training_moves_every_weight_and_logs(kind: str, tmp_path: Path) -> None:
    model = codec_module(kind=kind, losses={"kl_weight": 1e-3 if kind == "kl" else 0.0})
    before = weights_of(model.codec)
    trainer = fit_codec(model, tmp_path, steps=4)
    unmoved = [name for name, value in model.codec.named_parameters() if torch.equal(value, before[name])]
    assert not [name for name in unmoved if "to_k.bias" not in name]  # softmax does not see the keys' bias
    assert trainer.global_step == 4
    assert {"train/loss", "train/reconstruction", "val/l1", "val/psnr"} <= set(trainer.callback_metrics)
    assert ("train/divergence" in trainer.callback_metrics) == (kind == "kl")


def test_statistics_in_the_last_checkpoint_are_those_of_its_weights(tmp_path: Path) -> None:
    for validated in (True, False):
        model = codec_module()
        saver = ModelCheckpoint(tmp_path / str(validated), save_last=True, every_n_train_steps=2)
        limits = {} if validated else {"limit_val_batches": 0}
        trainer = fit_codec(model, tmp_path, steps=4, enable_checkpointing=True, callbacks=[saver], **limits)
        trainer.save_checkpoint(tmp_path / "end.ckpt")
        checkpoint = torch.load(tmp_path / "end.ckpt", weights_only=True)
        reloaded = codec_module(seed=1)
        reloaded.load_state_dict(checkpoint["state_dict"])
        # Validated: the 8 held-out pictures. Else: the last training batch, pictures 12 to 15.
        seen = RandomImages(8).image if validated else RandomImages().image[12:]
        expected = LatentStatistics.of(reloaded.codec.encode_raw(signed(seen)))
        torch.testing.assert_close(reloaded.codec.latent_mean, expected.mean.float(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(reloaded.codec.latent_std, expected.std.float(), rtol=1e-4, atol=1e-6)
        last = torch.load(tmp_path / str(validated) / "last.ckpt", weights_only=True)
        assert int(last["state_dict"]["codec.latent_count"]) > 0


def test_measured_statistics_do_not_depend_on_the_batches() -> None:
    first, second = codec_module(), codec_module()
    first.measure_statistics(DataLoader(RandomImages(), batch_size=16))
    second.measure_statistics(DataLoader(RandomImages(), batch_size=3))
    torch.testing.assert_close(first.codec.scale, second.codec.scale, rtol=1e-6, atol=0)
    with pytest.raises(UserError, match="empty"):
        first.measure_statistics([])


def test_discriminator_gradient_never_reaches_the_codec_nor_the_reverse(tmp_path: Path) -> None:
    # With the critic's weight at zero the codec must train as if there were none, though the critic itself learns.
    alone, watched = codec_module(), codec_module(critic={"weight": 0.0, "clip": 1e9})
    critic = weights_of(watched.discriminator)  # type: ignore[arg-type]
    watched.codec.load_state_dict(alone.codec.state_dict())
    fit_codec(alone, tmp_path, steps=3)
    trainer = fit_codec(watched, tmp_path, steps=3)
    for name, value in watched.codec.named_parameters():
        torch.testing.assert_close(value, alone.codec.get_parameter(name), msg=name)
    assert any(not torch.equal(value, critic[name]) for name, value in watched.discriminator.named_parameters())  # type: ignore[union-attr]
    assert trainer.global_step == 3  # the critic's steps are not counted as the training's


def test_codec_step_leaves_no_gradient_in_the_critic(tmp_path: Path) -> None:
    model = codec_module(critic={"weight": 1.0})
    seen: list[str] = []
    step = model._step

    def spy(optimizer: Any, loss: torch.Tensor, network: nn.Module) -> None:
        other = model.codec if network is model.discriminator else model.discriminator
        before = [None if p.grad is None else p.grad.clone() for p in other.parameters()]  # type: ignore[union-attr]
        step(optimizer, loss, network)
        for parameter, gradient in zip(other.parameters(), before, strict=True):  # type: ignore[union-attr]
            assert (parameter.grad is None) == (gradient is None)
            assert gradient is None or torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]
        seen.append(type(network).__name__)

    model._step = spy  # type: ignore[method-assign]
    fit_codec(model, tmp_path, steps=2)
    assert seen == ["DCCodec", "PatchDiscriminator"] * 2


def test_critic_joins_after_its_samples(tmp_path: Path) -> None:
    model = codec_module(critic={"start_samples": 8})
    before = weights_of(model.discriminator)  # type: ignore[arg-type]
    fit_codec(model, tmp_path, steps=2)
    assert all(torch.equal(value, before[name]) for name, value in model.discriminator.named_parameters())  # type: ignore[union-attr]
    fit_codec(model, tmp_path, steps=3)
    assert any(not torch.equal(value, before[name]) for name, value in model.discriminator.named_parameters())  # type: ignore[union-attr]


def test_perceptual_loss_changes_the_update(tmp_path: Path) -> None:
    plain, perceptual = codec_module(), codec_module(losses={"perceptual": EfficientNetLoss(stages=(0,))})
    fit_codec(plain, tmp_path, steps=1)
    fit_codec(perceptual, tmp_path, steps=1)
    name = "autoencoder.decoder.conv_in.weight"
    assert not torch.equal(plain.codec.get_parameter(name), perceptual.codec.get_parameter(name))
    assert not [key for key in perceptual.state_dict() if key.startswith("perceptual")]


def test_posterior_noise_belongs_to_the_sample(tmp_path: Path) -> None:
    # Two runs agree bit for bit whatever the global random state, since noise is derived from (seed, sample).
    first = codec_module(kind="kl", losses={"kl_weight": 1e-3})
    second = copy.deepcopy(first)
    torch.manual_seed(1)
    fit_codec(first, tmp_path)
    torch.manual_seed(2)
    fit_codec(second, tmp_path)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_wrong_set_ups_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no posterior"):
        codec_module(losses={"kl_weight": 1.0})
    with pytest.raises(UserError, match="bf16-mixed"):
        model = codec_module(critic={})
        model.trainer = type("T", (), {"precision": "16-mixed"})()  # type: ignore[assignment]
        model.on_fit_start()
    with pytest.raises(UserError, match="ddp_find_unused_parameters_true"):
        model = codec_module(critic={})
        model.trainer = type("T", (), {"precision": "32-true", "world_size": 2, "strategy": DDPStrategy()})()  # type: ignore[assignment]
        model.on_fit_start()


def train(
    run: Path, shards: Path, tokenizer: Path, samples: int, batch_size: int = 8, **settings: Any
) -> LatentCodecModule:
    recipe = clip_recipe(run, shards, tokenizer, max_samples=samples)
    recipe["data"]["init_args"]["batch_size"] = batch_size
    recipe["model"] = {
        "class_path": "leam_mm.codec_module.LatentCodecModule",
        "init_args": {
            "codec": {
                "class_path": "leam_mm.codecs.latent_codec.KLCodec",
                "init_args": {"latent_channels": 4, "widths": [8, 8, 8], "layers": 1, "norm_groups": 4},
            },
            "losses": {
                "perceptual": {
                    "class_path": "leam_mm.codecs.perceptual_loss.EfficientNetLoss",
                    "init_args": {"stages": [0]},
                },
                "kl_weight": 0.001,
            },
            "adversarial": {"discriminator": {"width": 4}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}},
            "schedule": {"warmup_steps": 0, "kind": "constant"},
            **settings,
        },
    }
    run.mkdir(exist_ok=True)
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    main(["fit", "--config", str(run / "recipe.yaml")])
    return load_module(run, LatentCodecModule)


def test_recipe_trains_and_its_checkpoint_rebuilds(toy_shards: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    trained = train(tmp_path / "run", toy_shards, toy_tokenizer, samples=16)
    assert trained.codec.statistics()["scale"] > 0
    assert trained.discriminator is not None


def test_discriminator_joins_at_the_same_sample_when_a_run_resumes_with_another_batch_size(
    toy_shards: Path, toy_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int | None, bool]] = []
    joined = LatentCodecModule._discriminator_joined

    def spy(module: LatentCodecModule, settings: Adversarial, batch_size: int) -> bool:
        steps.append((samples_seen(module.trainer), joined(module, settings, batch_size)))
        return steps[-1][1]

    monkeypatch.setattr(LatentCodecModule, "_discriminator_joined", spy)
    adversarial = {"discriminator": {"width": 4}, "start_samples": 24}
    train(tmp_path / "run", toy_shards, toy_tokenizer, samples=16, adversarial=adversarial)
    train(tmp_path / "run", toy_shards, toy_tokenizer, samples=32, batch_size=4, adversarial=adversarial)
    assert steps == [(0, False), (8, False), (16, False), (20, False), (24, True), (28, True)]


@pytest.mark.slow
def test_resumed_training_equals_an_unbroken_one(toy_shards: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    settings = {"ema": 0.9, "adversarial": {"discriminator": {"width": 4}, "adaptive": True}}
    whole = train(tmp_path / "whole", toy_shards, toy_tokenizer, samples=32, **settings)
    train(tmp_path / "parts", toy_shards, toy_tokenizer, samples=16, **settings)
    parts = train(tmp_path / "parts", toy_shards, toy_tokenizer, samples=32, **settings)
    unequal = [name for name, value in whole.state_dict().items() if not torch.equal(value, parts.state_dict()[name])]
    assert not unequal


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("codec_kl", {"widths": [8, 8, 8, 8], "layers": 1, "norm_groups": 4}),
        ("codec_dc", {"widths": [32] * 6, "layers": [0, 1, 1, 1, 1, 1], "decoder_layers": None}),
    ],
)
def test_large_recipe_trains_when_it_is_made_small(
    name: str, sizes: dict[str, Any], toy_shards: Path, tmp_path: Path
) -> None:
    evaluator = {
        "class_path": "leam_mm.evaluators.reconstruction.Reconstruction",
        "init_args": {
            "reference": str(toy_shards),
            "image_size": 64,
            "samples": 8,
            "features": {"class_path": "leam_mm.evaluators.image_features.EfficientNetLite0"},
        },
    }
    every = {
        "class_path": "leam_mm.callbacks.evaluate_every.EvaluateEvery",
        "init_args": {"every_n_steps": 2, "evaluators": [evaluator]},
    }
    run, data = tmp_path / "run", {"train": str(toy_shards), "validation": str(toy_shards), "validation_samples": 4}
    changes = {
        "max_samples": 8,
        "threads": 1,
        "trainer": {
            "default_root_dir": str(run),
            "accelerator": "cpu",
            "devices": 1,
            "callbacks": [every],
            "log_every_n_steps": 1,
            "val_check_interval": 2,
        },
        "data": {"init_args": {**data, "image": {"image_size": 64}, "batch_size": 4, "loading": {"workers": 0}}},
        "model": {
            "init_args": {
                "codec": {"init_args": sizes},
                "adversarial": {"discriminator": {"width": 4, "layers": 2}, "start_samples": 4},
            }
        },
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(changes))
    recipe = Path(__file__).parent.parent / "configs" / f"{name}.yaml"
    main(["fit", "--config", str(recipe), "--config", str(tmp_path / "small.yaml")])
    assert load_codec(run).checkpoint_evidence["samples_seen"] == 8  # type: ignore[index]
    logged = (run / "metrics.csv").read_text()
    for metric in ("train/adversarial_factor", "val/psnr", "reconstruction/frechet_distance", "reconstruction/ssim"):
        assert metric in logged


@pytest.mark.parametrize("critic", [False, True])
def test_average_follows_the_codec_and_is_what_others_get(critic: bool, tmp_path: Path) -> None:
    model = codec_module(critic={} if critic else None, ema=0.5)
    start = copy.deepcopy(model.codec.state_dict())
    seen: list[dict[str, Tensor]] = []
    average = model._average
    model._average = lambda: (seen.append(copy.deepcopy(model.codec.state_dict())), average())  # type: ignore[method-assign, assignment, func-returns-value]
    trainer = fit_codec(model, tmp_path, steps=3)
    assert len(seen) == 3 and model.ema is not None and int(model.ema.updates) == 3
    name = "autoencoder.decoder.conv_in.weight"
    shadow = start[name]
    for count, weights in enumerate(seen):
        decay = min(0.5, (1 + count) / (10 + count))
        shadow = decay * shadow + (1 - decay) * weights[name]
    codec = model.ema_codec()
    assert codec is not model.codec
    torch.testing.assert_close(codec.get_parameter(name), shadow, rtol=1e-5, atol=1e-7)
    # Validation, reconstruction and the file's statistics are the averaged codec's.
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    state = torch.load(tmp_path / "end.ckpt", weights_only=True)["state_dict"]
    expected = LatentStatistics.of(codec.encode_raw(signed(RandomImages().image[8:12])))
    for place in ("codec", "ema.model"):
        torch.testing.assert_close(state[f"{place}.latent_mean"], expected.mean.float(), rtol=1e-5, atol=1e-6)
    image = RandomImages().image[:4]
    latent = codec.encode(signed(image))
    assert torch.equal(model(image), codec.decode(latent))
    trainer.validate(model, DataLoader(RandomImages(8), batch_size=4), verbose=False)
    l1 = (
        codec.decode_raw(codec.encode_raw(signed(RandomImages(8).image))).clamp(-1, 1) - signed(RandomImages(8).image)
    ).abs()
    assert trainer.callback_metrics["val/l1"].item() == pytest.approx(l1.mean().item(), rel=1e-4)


def test_load_codec_takes_a_run_or_a_folder_of_diffusers(toy_shards: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    trained = train(tmp_path / "run", toy_shards, toy_tokenizer, samples=16, ema=0.5)
    codec = load_codec(tmp_path / "run")
    assert isinstance(codec, LatentCodec) and not codec.training and codec.checkpoint_evidence["samples_seen"] == 16
    image = signed(RandomImages(2).image)
    latent = codec.encode(image)
    assert torch.equal(latent, trained.ema_codec().encode(image))
    assert not torch.equal(latent, trained.codec.encode(image))
    codec.save(tmp_path / "vae")
    saved = load_codec(tmp_path / "vae")
    assert torch.equal(saved.encode(image), latent) and len(saved.checkpoint_evidence["sha256"]) == 64  # type: ignore[arg-type, index]
    with pytest.raises(UserError, match="no checkpoint at"):
        load_codec(tmp_path / "nothing")
    assert codec_file(tmp_path / "run").name == "last.ckpt"
    assert codec_file(tmp_path / "vae").name == "diffusion_pytorch_model.safetensors"
    (tmp_path / "vae" / "other.safetensors").touch()
    with pytest.raises(UserError, match="holds 2 safetensors files"):
        load_codec(tmp_path / "vae")


@pytest.mark.parametrize("name", ["codec_kl", "codec_dc"])
def test_large_recipe_builds_its_codec(name: str) -> None:
    content = yaml.safe_load((Path(__file__).parent.parent / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
    with torch.device("meta"):  # shapes only
        built = build_module(content["model"])
    assert isinstance(built, LatentCodecModule) and built.discriminator is not None and built.ema is not None
    size = content["data"]["init_args"]["image"]["image_size"]
    raw = built.codec.encode_raw(torch.zeros(1, 3, size, size, device="meta"))
    side = size // {"codec_kl": 8, "codec_dc": 32}[name]
    assert raw.shape == (1, {"codec_kl": 16, "codec_dc": 32}[name], side, side)
    # Adversarial training on several GPUs works with nothing else, see on_fit_start.
    assert content["trainer"]["strategy"] == "ddp_find_unused_parameters_true"
