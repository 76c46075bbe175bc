"""Denoisers that start from a trained one: same weights, low-rank additions, rebuilt without the base."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PRXTransformer2DModel
from torch import Tensor, nn
from toys.generators import (
    CAPTION_LENGTH,
    CAPTION_WIDTH,
    FakeCaptions,
    FakeCodec,
    save_generator,
    sign_batch,
    sign_generator_section,
    train_generator,
)
from toys.recipes import codec_section, generator_section, stable_recipe
from toys.runs import assert_same_training, run_recorded

from leam_mm.callbacks.compilation import probe, trained_blocks
from leam_mm.checkpoint import EVIDENCE, build_module, load_module
from leam_mm.denoisers.denoiser import PRXDenoiser
from leam_mm.denoisers.pretrained_denoiser import PretrainedDenoiser
from leam_mm.diffusion_module import LatentDiffusionModule
from leam_mm.encoders.low_rank import LowRank, LowRankLinear
from leam_mm.errors import UserError
from leam_mm.files import file_sha256

PATTERNS = ["*.attention.*", "*.*_proj"]
SIZES = {"in_channels": 4, "context_dim": CAPTION_WIDTH, "hidden_size": 32, "depth": 2, "num_heads": 2}
BASE = sign_generator_section(ema=0.9)
PRETRAINED = "leam_mm.denoisers.pretrained_denoiser.PretrainedDenoiser"


def tuned_section(base: Path, low_rank: bool = True, **more: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"weights": str(base), **more}
    if low_rank:
        arguments["low_rank"] = {"rank": 2, "alpha": 6.0, "patterns": PATTERNS}
    return sign_generator_section({"class_path": PRETRAINED, "init_args": arguments}, ema=0.9)


def build(part: dict[str, Any]) -> LatentDiffusionModule:
    module = build_module(part)
    assert isinstance(module, LatentDiffusionModule)
    module.frozen.opened = {"clip": FakeCaptions(), "codec": FakeCodec()}
    return module


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A trained generator: its average differs from its last weights, and nothing is zero."""
    torch.manual_seed(0)
    module = build(BASE)
    for weight in [*module.denoiser.parameters(), *module.ema_denoiser().parameters()]:
        nn.init.normal_(weight, std=0.1)
    return save_generator(module, BASE, tmp_path / "base")


def predict(denoiser: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    latent, state = (
        torch.randn(2, *shape, generator=generator, dtype=dtype)
        for shape in ((4, 4, 4), (CAPTION_LENGTH, CAPTION_WIDTH))
    )
    mask = torch.arange(CAPTION_LENGTH) < torch.tensor([[3], [5]])
    with torch.no_grad():
        return denoiser(latent, torch.tensor([0.2, 0.9], dtype=dtype), state, mask)


def randomise_additions(denoiser: nn.Module) -> nn.Module:
    """Draw the low-rank weights, as if after some training."""
    torch.manual_seed(2)
    for name, weight in denoiser.named_parameters():
        if "low_rank" in name:
            nn.init.normal_(weight, std=0.2)
    return denoiser


def test_base_is_the_average_of_a_run_or_a_folder_of_diffusers(base: Path, tmp_path: Path) -> None:
    trained = load_module(base, LatentDiffusionModule)
    wanted = predict(trained.ema_denoiser())
    assert not torch.allclose(wanted, predict(trained.denoiser))
    trained.ema_denoiser().plain_model().save_pretrained(tmp_path / "generator" / "transformer")  # type: ignore[operator]
    release = {"name": "lab/base", "licence": "EUPL-1.2", "files": {}}
    (tmp_path / "leam_mm_release.json").write_text(json.dumps(release))
    for weights in (base, base / "checkpoints" / "last.ckpt", tmp_path / "generator", tmp_path):
        for low_rank in (None, LowRank(2, 4.0, PATTERNS)):
            denoiser = PretrainedDenoiser(str(weights), low_rank)
            assert (denoiser.in_channels, denoiser.context_dim, denoiser.patch_size) == (4, CAPTION_WIDTH, 2)
            # torch chooses another product of matrices for a weight that requires gradients; the average needs none.
            assert torch.equal(predict(denoiser.requires_grad_(False)), wanted)
    assert PretrainedDenoiser(str(base)).origin() == {
        "weights": str(base),
        "sha256": file_sha256(base / "checkpoints" / "last.ckpt"),
        "config": denoiser.origin()["config"],
    }
    assert denoiser.origin() | {"config": {}} == {
        "weights": str(tmp_path),
        "sha256": file_sha256(tmp_path / "generator" / "transformer" / "diffusion_pytorch_model.safetensors"),
        "name": "lab/base",
        "licence": "EUPL-1.2",
        "config": {},
    }
    assert denoiser.origin()["config"]["hidden_size"] == 32


def test_all_weights_of_the_average_are_loaded_and_trainable(base: Path) -> None:
    full = PretrainedDenoiser(str(base))
    average = load_module(base, LatentDiffusionModule).ema_denoiser().state_dict()
    assert all(torch.equal(value, average[name]) for name, value in full.state_dict().items())
    assert all(weight.requires_grad for weight in full.parameters())


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
def test_plain_model_adds_the_low_rank_product_to_the_weights(base: Path, dtype: torch.dtype, limit: float) -> None:
    tuned = randomise_additions(PretrainedDenoiser(str(base), LowRank(2, 6.0, PATTERNS)).to(dtype))
    before = {name: value.clone() for name, value in tuned.state_dict().items()}
    plain = PRXDenoiser(**SIZES)
    plain.model = tuned.plain_model()  # type: ignore[operator]
    assert not any(isinstance(layer, LowRankLinear) for layer in plain.modules())
    assert type(plain.model) is PRXTransformer2DModel
    torch.testing.assert_close(predict(plain, dtype), predict(tuned, dtype), rtol=0, atol=limit)
    assert (predict(tuned, dtype) - predict(PretrainedDenoiser(str(base)).to(dtype), dtype)).abs().max() > 0.01
    assert all(torch.equal(value, before[name]) for name, value in tuned.state_dict().items())


def test_only_the_additions_are_trained_and_averaged(base: Path, tmp_path: Path) -> None:
    module = build(tuned_section(base))
    names = {name for name, weight in module.denoiser.named_parameters() if weight.requires_grad}
    layers = {name.removeprefix("model.").rpartition(".")[0] for name in names}
    parts = [f"attention.{part}" for part in ("img_qkv_proj", "txt_kv_proj", "to_out.0")]
    parts += ["gate_proj", "up_proj", "down_proj"]
    assert layers == {f"blocks.{number}.{part}" for number in range(2) for part in parts}
    assert names == {f"model.{layer}.low_rank_{part}" for layer in layers for part in ("first", "second")}
    average = {name: value.clone() for name, value in module.ema_denoiser().state_dict().items()}
    frozen = {name: value.clone() for name, value in module.denoiser.state_dict().items() if "low_rank" not in name}
    trainer = train_generator(module, tmp_path / "run", 3)
    state = trainer.optimizers[0].state_dict()["state"]
    kept = sum(value.numel() for entry in state.values() for value in entry.values() if value.ndim)
    assert kept == 2 * sum(weight.numel() for weight in module.denoiser.parameters() if weight.requires_grad)
    assert kept < 0.3 * sum(value.numel() for value in frozen.values())
    moved = {name for name, value in module.denoiser.state_dict().items() if not torch.equal(value, average[name])}
    assert moved == names
    for name, value in module.ema_denoiser().state_dict().items():
        assert torch.equal(value, average[name]) == (name not in names), name
        assert name in names or torch.equal(value, frozen[name])


def test_checkpoint_is_rebuilt_without_the_base(base: Path, tmp_path: Path) -> None:
    for low_rank in (True, False):
        part = tuned_section(base, low_rank, gradient_checkpointing=True)
        module = build(part)
        randomise_additions(module.ema_denoiser())
        run = save_generator(module, part, tmp_path / f"tuned_{low_rank}")
        (moved := base.with_name("moved")) and base.rename(moved)
        again = load_module(run, LatentDiffusionModule)
        assert torch.equal(predict(again.ema_denoiser()), predict(module.ema_denoiser()))
        assert again.denoiser.origin() == module.denoiser.origin()
        assert again.denoiser.model.gradient_checkpointing
        moved.rename(base)
    # A tuned generator can be a base, too.
    further = PretrainedDenoiser(str(tmp_path / "tuned_True"))
    assert not any(isinstance(layer, LowRankLinear) for layer in further.modules())
    tuned = load_module(tmp_path / "tuned_True", LatentDiffusionModule)
    torch.testing.assert_close(predict(further), predict(tuned.ema_denoiser()), rtol=0, atol=2e-6)


def test_checkpoint_resumes_with_its_own_base_only(base: Path, tmp_path: Path) -> None:
    part = tuned_section(base)
    run = save_generator(build(part), part, tmp_path / "tuned")
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    build(part).on_load_checkpoint(checkpoint)
    with pytest.raises(UserError, match="trained from other weights"):
        build(BASE).on_load_checkpoint(checkpoint)
    del checkpoint[EVIDENCE]["pretrained"]
    with pytest.raises(UserError, match="trained from other weights"):
        build(part).on_load_checkpoint(checkpoint)
    torch.save(checkpoint, run / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match="does not state the shape"):
        load_module(run)


def test_invalid_bases_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is missing: give a generator's run folder"):
        PretrainedDenoiser("nowhere")
    with pytest.raises(
        UserError, match=r"no matrix in a repeated block is named 'final\*'; there are blocks\.0\.attention"
    ):
        PretrainedDenoiser(str(base), LowRank(patterns=["final*"]))
    model: Any = load_module(base, LatentDiffusionModule).ema_denoiser().plain_model()  # type: ignore[operator]
    folder = tmp_path / "model"
    config_file, weights = folder / "config.json", folder / "diffusion_pytorch_model.safetensors"

    def refuse(reason: str) -> None:
        with pytest.raises(UserError, match=reason):
            PretrainedDenoiser(str(folder))

    model.save_pretrained(folder)
    config = json.loads(config_file.read_text())
    config_file.write_text(json.dumps(config | {"_class_name": "UNet2DConditionModel"}))
    refuse("only a PRX")
    config_file.write_text(json.dumps(config | {"depth": 3}))
    refuse("not those of its config")
    config_file.write_text(json.dumps(config))
    weights.write_bytes(weights.read_bytes()[:100])
    refuse("no loadable safetensors")
    config_file.write_text("{")
    refuse("cannot be read")
    next(model.parameters()).data.fill_(float("nan"))
    model.save_pretrained(folder)
    refuse("NaN or infinite")
    PRXTransformer2DModel.from_config({**config, "resolution_embeds": True}).save_pretrained(folder)
    refuse("embeds the resolution")


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_blocks_take_the_same_training_steps(base: Path, backend: str) -> None:
    if backend == "inductor" and (reason := probe(torch.device("cpu"))):
        pytest.skip(reason)
    batch = sign_batch(range(8))
    losses: list[list[float]] = []
    for compiled in (False, True):
        torch.manual_seed(3)
        module = build(tuned_section(base))
        if compiled:
            for block in trained_blocks(module):
                block.compile(dynamic=True, backend=backend)
        optimizer = torch.optim.SGD([weight for weight in module.parameters() if weight.requires_grad], lr=0.5)
        losses.append([])
        for _ in range(2):
            loss = module.sample_losses(copy.copy(batch)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and losses[0][1] < losses[0][0]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_ranks_train_the_additions_as_one_does(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    def run(name: str, model: dict[str, Any] | None = None, *overlays: str) -> Path:
        recipe = stable_recipe(tmp_path / name, toy_shards, toy_tokenizer, max_samples=32)
        return run_recorded({**recipe, "model": model} if model else recipe, *overlays)

    clip, codec = run("clip"), run("codec", codec_section())
    part = generator_section(clip, codec)
    base = run("base", part)
    arguments = {"weights": str(base), "low_rank": {"rank": 2, "alpha": 4.0, "patterns": PATTERNS}}
    part["init_args"]["denoiser"] = {"class_path": PRETRAINED, "init_args": arguments}
    assert_same_training(run("one", part), run("two", part, "overlay_two_ranks.yaml"))
