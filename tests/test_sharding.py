"""A sharded run is the run on one device: same losses, same checkpoint file, either resumes the other."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from toys.recipes import codec_section, generator_section, stable_recipe
from toys.runs import assert_same_training, last_checkpoint, loss_curve, run_recorded

from leam_mm.checkpoint import load_module
from leam_mm.codec_module import LatentCodecModule
from leam_mm.codecs.latent_codec import DCCodec
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.denoisers.denoiser import Denoiser, PRXDenoiser, UNetDenoiser
from leam_mm.denoisers.sd3_denoiser import SD3Denoiser
from leam_mm.encoders.dual_encoder import DualEncoder, ImageTower, TextTower
from leam_mm.errors import UserError
from leam_mm.optim.ema import Ema
from leam_mm.optim.sharding import shard_blocks

FSDP2 = "overlay_fsdp2.yaml"


def encoder() -> DualEncoder:
    torch.manual_seed(0)
    vision = ImageTower(image_size=16, patch_size=8, width=32, layers=3, head_width=16)
    text = TextTower(context_length=12, vocab_size=50, width=32, heads=2, layers=2)
    made = DualEncoder(16, vision, text, init_bias=-10.0)
    return made.to(memory_format=torch.channels_last)  # an order of kernels that torch refuses to shard


def denoiser(kind: str) -> Denoiser:
    torch.manual_seed(0)
    if kind == "prx":
        return PRXDenoiser(4, 12, hidden_size=32, depth=3, num_heads=2)
    if kind == "sd3":
        return SD3Denoiser(4, 12, hidden_size=32, depth=3, num_heads=2)
    return UNetDenoiser(4, 12, [8, 16], num_heads=2, norm_groups=4)


def test_towers_are_sharded_by_block_and_compute_the_same(mesh: DeviceMesh) -> None:
    module, image, text = encoder(), torch.rand(3, 3, 16, 16), torch.randint(1, 50, (3, 12))
    length = torch.tensor([5, 12, 7])
    plain = module.encode_image(image), module.encode_text(text, length)
    for _ in range(2):  # the second call finds everything done
        shard_blocks(module, mesh, methods=("encode_image", "encode_text"))
    for expected, found in zip(plain, (module.encode_image(image), module.encode_text(text, length)), strict=True):
        torch.testing.assert_close(found, expected)
    assert sum(isinstance(part, FSDPModule) for part in module.modules()) == 1 + 3 + 2
    whole = {name for name, value in module.named_parameters() if not isinstance(value, DTensor)}
    assert whole == {"clip.logit_scale", "clip.logit_bias"}


@pytest.mark.parametrize(("kind", "parts"), [("prx", 1 + 3), ("sd3", 1 + 3), ("unet", 1 + 2 + 2 + 3)])
def test_denoisers_and_their_average_are_sharded_alike(kind: str, parts: int, mesh: DeviceMesh) -> None:
    module = denoiser(kind)
    average = Ema(module, 0.5, ramp=False)
    for one in (module, average.model):
        shard_blocks(one, mesh)
        assert sum(isinstance(part, FSDPModule) for part in one.modules()) == parts
        assert all(isinstance(value, DTensor) for value in one.parameters())
    inputs = torch.rand(2, 4, 4, 4), torch.rand(2), torch.rand(2, 8, 12), torch.ones(2, 8, dtype=torch.bool)
    average.model(*inputs)
    module(*inputs).square().mean().backward()
    assert all(value.grad is None or isinstance(value.grad, DTensor) for value in module.parameters())
    before = {name: value.full_tensor().clone() for name, value in average.model.named_parameters()}
    with torch.no_grad():
        for value in module.parameters():
            value.add_(1.0)
    average.update(module)
    for name, value in average.model.named_parameters():
        torch.testing.assert_close(value.full_tensor(), before[name] + 0.5)


def test_codecs_are_not_sharded() -> None:
    module = LatentCodecModule(DCCodec(latent_channels=4, widths=[8, 8], layers=[1, 1]))
    module.configure_model()
    module._device_mesh = object()  # type: ignore[assignment]
    with pytest.raises(UserError, match="leave overlay_fsdp2"):
        module.configure_model()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sharded_encoder_trains_as_one_and_either_resumes_the_other(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    def recipe(name: str) -> dict:
        made = stable_recipe(tmp_path / name, toy_shards, toy_tokenizer)
        made["trainer"] |= {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0, "val_check_interval": 4}
        made["trainer"]["check_val_every_n_epoch"] = None
        made["checkpoint"] = {"every_n_train_steps": 1000}
        made["data"]["init_args"] |= {"validation": str(toy_shards), "validation_samples": 16}
        made["model"]["init_args"]["loss"] = {"class_path": "leam_mm.losses.contrastive.SigmoidLoss"}
        made["model"]["init_args"]["encoder"] |= {"init_scale": 10.0, "init_bias": -10.0}
        return made

    whole = run_recorded(recipe("whole"))
    sharded = run_recorded(recipe("sharded"), FSDP2)
    assert_same_training(whole, sharded)
    assert load_module(sharded, ContrastiveModule).ema is not None
    groups = [
        [state["params"] for state in last_checkpoint(run)["optimizer_states"][0]["param_groups"]]
        for run in (whole, sharded)
    ]
    assert groups[0] == groups[1]
    run_recorded(recipe("grown"), stop_at=3)
    assert_same_training(whole, run_recorded(recipe("grown"), FSDP2))
    run_recorded(recipe("shrunk"), FSDP2, stop_at=3)
    shrunk = run_recorded(recipe("shrunk"))
    assert loss_curve(shrunk) == pytest.approx(loss_curve(whole), rel=1e-5)
    for name, value in last_checkpoint(whole)["state_dict"].items():
        torch.testing.assert_close(last_checkpoint(shrunk)["state_dict"][name], value, rtol=1e-4, atol=1e-5, msg=name)


Recipe = Callable[..., dict]


@pytest.fixture
def stages(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> tuple[Recipe, Path, Path]:
    """How a recipe is made, and the runs of an encoder and a codec."""

    def recipe(name: str, samples: int = 32) -> dict:
        return stable_recipe(tmp_path / name, toy_shards, toy_tokenizer, max_samples=samples)

    return recipe, run_recorded(recipe("clip", 8)), run_recorded({**recipe("codec", 8), "model": codec_section()})


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sharded_generator_trains_as_one(stages: tuple[Recipe, Path, Path]) -> None:
    recipe, *frozen = stages
    runs = []
    for name, overlays in (("one", ()), ("sharded", (FSDP2,))):
        made = {**recipe(name), "model": generator_section(*frozen)}
        made["trainer"]["gradient_clip_val"] = 1.0
        runs.append(run_recorded(made, *overlays))
    assert_same_training(*runs)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sharded_low_rank_additions_train_as_on_one(stages: tuple[Recipe, Path, Path]) -> None:
    """Most weights are frozen then, and have neither gradients nor an optimizer's states."""
    recipe, *frozen = stages
    base = run_recorded({**recipe("base"), "model": generator_section(*frozen)})
    section = generator_section(*frozen)
    low_rank = {"rank": 2, "alpha": 4.0, "patterns": ["*.attention.*", "*.*_proj"]}
    section["init_args"]["denoiser"] = {
        "class_path": "leam_mm.denoisers.pretrained_denoiser.PretrainedDenoiser",
        "init_args": {"weights": str(base), "low_rank": low_rank},
    }
    one = run_recorded({**recipe("one"), "model": section})
    assert_same_training(one, run_recorded({**recipe("sharded"), "model": section}, FSDP2))
    run_recorded({**recipe("grown"), "model": section}, stop_at=3)
    grown = run_recorded({**recipe("grown"), "model": section}, FSDP2)
    assert_same_training(one, grown)
    state, before = last_checkpoint(grown)["state_dict"], last_checkpoint(base)["state_dict"]
    averaged = {name.removeprefix("ema."): value for name, value in before.items() if name.startswith("ema.model.")}
    for name, value in averaged.items():  # what a tuned generator starts from
        assert torch.equal(state[f"denoiser.{name.removeprefix('model.')}"], value)
    assert any("low_rank_second" in name and value.abs().max() > 0 for name, value in state.items())
