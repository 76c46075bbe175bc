"""Alignment against its formula, the places it counts, and the same gradients on one rank and on two."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from toys.generators import SignLatents, generator_module, randomise_generator
from toys.ranks import process_group
from toys.recipes import clip_recipe

from leam_mm.checkpoint import EVIDENCE, find_checkpoint
from leam_mm.data.batch import collate_samples
from leam_mm.denoisers.block_step import Tokens
from leam_mm.denoisers.denoiser import UNetDenoiser
from leam_mm.encoders.patch_features import open_patch_features
from leam_mm.errors import UserError
from leam_mm.files import file_sha256
from leam_mm.losses.representation_alignment import alignment, resample_features, spread_features
from leam_mm.techniques.contrastive_flow import ContrastiveFlow
from leam_mm.techniques.representation_alignment import RepresentationAlignment, feature_grid
from leam_mm.techniques.technique import Technique

FEATURES = 6


def batch(first: int = 0, count: int = 8, grid: tuple[int, int] = (2, 2)) -> dict[str, Any]:
    made = collate_samples([SignLatents(64)[number] for number in range(first, first + count)])
    generator = torch.Generator().manual_seed(5)
    feature = torch.randn(64, grid[0] * grid[1], FEATURES, generator=generator)
    return made | {"image_feature": feature[first : first + count]}


def aligned(**changes: Any) -> RepresentationAlignment:
    return RepresentationAlignment(**{"feature_size": FEATURES, "depth": 1, "width": 16, **changes})


class Halved(Technique):
    """Takes every second token out before the first block and puts the rest back in after it, as routing does."""

    def block_steps(self) -> list[Any]:
        return [self]

    def enter(self, number: int, tokens: Tokens) -> Tokens:
        self.whole = tokens
        self.kept = torch.arange(0, tokens.values.shape[1], 2).expand(len(tokens.values), -1)
        return tokens.keep(self.kept)

    def leave(self, number: int, tokens: Tokens) -> Tokens:
        return tokens.join(self.whole, self.kept)


def test_alignment_is_minus_the_mean_cosine() -> None:
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn(3, 5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    cosine = (one * two).sum(-1) / (one.norm(dim=-1) * two.norm(dim=-1))
    torch.testing.assert_close(alignment(one, two), -cosine.mean(1), rtol=1e-14, atol=0)
    torch.testing.assert_close(alignment(3 * two, two), -torch.ones(3, dtype=torch.float64))
    assert alignment(one.bfloat16(), two.float()).dtype == torch.float32


def test_resampling_keeps_constants_ramps_and_its_own_grid() -> None:
    feature = torch.randn(2, 12, 5, dtype=torch.float64)
    assert resample_features(feature, (3, 4), (3, 4)) is feature
    same = torch.full((1, 12, 2), 0.7, dtype=torch.float64)
    for wanted in ((2, 2), (7, 5), (1, 1)):
        out = resample_features(same, (3, 4), wanted)
        torch.testing.assert_close(out, torch.full_like(out, 0.7))
    # What rises evenly over the image does so on any grid, away from the border: rows of 16 become rows of 8.
    ramp = torch.arange(16.0, dtype=torch.float64).add(0.5).div(16)[None, :, None]
    halves = resample_features(ramp, (16, 1), (8, 1))[0, :, 0]
    torch.testing.assert_close(halves[1:-1], (torch.arange(8.0, dtype=torch.float64)[1:-1] + 0.5) / 8)
    assert resample_features(ramp, (16, 1), (40, 1)).shape == (1, 40, 1)


@pytest.mark.parametrize(("grid", "wanted"), [((7, 9), (4, 3)), ((7, 9), (14, 20)), ((16, 16), (3, 24))])
def test_resampling_is_torchs_antialiased_interpolation(grid: tuple[int, int], wanted: tuple[int, int]) -> None:
    feature = torch.randn(2, grid[0] * grid[1], 5, dtype=torch.float64)
    feature_grid_2d = feature.transpose(1, 2).unflatten(2, grid)
    expected = F.interpolate(feature_grid_2d, wanted, mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(resample_features(feature, grid, wanted), expected.flatten(2).transpose(1, 2))


def test_spreading_takes_the_common_part_away() -> None:
    feature = torch.randn(2, 9, 4, dtype=torch.float64) * 3 + 5
    spread = spread_features(feature, 1.0)
    torch.testing.assert_close(spread.mean(1), torch.zeros(2, 4, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(spread.std(1), torch.ones(2, 4, dtype=torch.float64), rtol=1e-5, atol=0)
    kept = spread_features(feature, 0.6) - spread
    torch.testing.assert_close(kept, (0.4 * feature.mean(1) / (feature.std(1) + 1e-6))[:, None].expand_as(kept))


@pytest.mark.parametrize(
    ("count", "shape", "grid"),
    [(16, (4, 4), (4, 4)), (16, (16, 64), (2, 8)), (64, (32, 32), (8, 8)), (12, (31, 41), (3, 4)), (7, (9, 2), (7, 1))],
)
def test_the_grid_follows_from_the_number_and_the_shape(count: int, shape: tuple[int, int], grid: Any) -> None:
    assert feature_grid(count, *shape) == grid


@pytest.mark.parametrize("share", [None, 0.6])
def test_the_added_loss_is_the_weighted_alignment_of_the_tokens(share: float | None) -> None:
    technique = aligned(weight=0.25, spatial_share=share)
    module, seen = randomise_generator(generator_module(techniques=[technique])), []
    block = module.denoiser.model.blocks[0]
    block.register_forward_hook(lambda *parts: seen.append(parts[-1]))
    data = batch(grid=(4, 4))
    with torch.no_grad():
        losses = module.sample_losses(data)
        feature = data["image_feature"] if share is None else spread_features(data["image_feature"], share)
        feature = resample_features(feature, (4, 4), (2, 2))
        expected = 0.25 * alignment(technique.projection(seen[0]), feature)  # of tokens (8, 4, E)
    torch.testing.assert_close(
        losses, randomise_generator(generator_module()).sample_losses(batch()).detach() + expected
    )
    assert expected.unique().numel() == 8


def test_tokens_that_were_left_out_do_not_count() -> None:
    technique = aligned()
    module = randomise_generator(generator_module(techniques=[technique, Halved()]))
    data = batch()
    plain, changed = module.sample_losses(data), dict(data)
    noise = torch.randn_like(data["image_feature"])
    away = torch.arange(4) % 2 == 1
    changed["image_feature"] = torch.where(away[:, None], noise, data["image_feature"])
    torch.testing.assert_close(module.sample_losses(changed), plain)
    changed["image_feature"] = torch.where(~away[:, None], noise, data["image_feature"])
    assert not torch.isclose(module.sample_losses(changed), plain).any()
    other = randomise_generator(
        generator_module(techniques=[Halved(), aligned()])
    )  # listed after it: sees all tokens again
    other.techniques[1].load_state_dict(technique.state_dict())  # type: ignore[union-attr]
    assert not torch.isclose(other.sample_losses(data), plain).any()


def test_samples_from_the_end_on_get_nothing_and_gradients_stay_whole() -> None:
    module = randomise_generator(generator_module(techniques=[aligned(until_samples=4)]))
    plain = randomise_generator(generator_module()).sample_losses(batch())
    losses = module.sample_losses(batch())
    assert torch.equal(losses[4:], plain[4:]) and not torch.isclose(losses[:4], plain[:4]).any()
    late = module.sample_losses(batch(first=8))
    assert torch.equal(late, randomise_generator(generator_module()).sample_losses(batch(first=8)))
    late.mean().backward()
    for weight in module.techniques.parameters():
        assert weight.grad is not None and not weight.grad.any()


def test_training_aligns(tmp_path: Path) -> None:
    class Pictures(SignLatents):
        def __getitem__(self, number: int) -> dict[str, Any]:
            sample = super().__getitem__(number)
            sign = sample["latent"][0, 0, 0]
            return sample | {"image_feature": torch.stack([sign * torch.arange(1.0, 1 + FEATURES)] * 4)}

    module = randomise_generator(generator_module(techniques=[aligned()]))
    data = collate_samples([Pictures(64)[number] for number in range(32)])

    def alone() -> float:
        with torch.no_grad():
            both = module.sample_losses(data)
            techniques, module.techniques = module.techniques, torch.nn.ModuleList()
            plain = module.sample_losses(data)
            module.techniques = techniques
            return float((both - plain).mean())

    before = alone()
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        module.sample_losses(data).mean().backward()
        optimizer.step()
    assert before > -0.25 and alone() < -0.4  # of -0.5


def test_features_of_pictures_come_from_the_encoder_and_its_digest_is_recorded(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    from toys.recipes import save_checkpoint

    section = clip_recipe(tmp_path, toy_shards, toy_tokenizer)["model"]
    vision = {"image_size": 16, "patch_size": 4, "width": 32, "layers": 2, "head_width": 16}
    section["init_args"]["encoder"]["vision"] = vision
    file = save_checkpoint(tmp_path / "clip.ckpt", section)
    technique = aligned(feature_size=32, encoder=str(file))
    module = randomise_generator(generator_module(techniques=[technique]))
    image = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    latent = torch.randn(4, 4, 4, 4)
    data = batch(count=4) | {"latent": latent}
    stored = data | {"image_feature": open_patch_features(str(file)).encode(image / 127.5 - 1)}
    unstored = {name: value for name, value in data.items() if name != "image_feature"} | {"image": image}
    with torch.no_grad():
        torch.testing.assert_close(module.sample_losses(unstored), module.sample_losses(stored))
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    recorded = checkpoint[EVIDENCE]["frozen"]["image_encoder"]
    assert recorded["sha256"] == file_sha256(find_checkpoint(file))
    checkpoint[EVIDENCE]["frozen"] = {"image_encoder": recorded | {"sha256": "0" * 64}}
    with pytest.raises(UserError, match="another image_encoder"):
        module.on_load_checkpoint(checkpoint)
    assert not any("encoder" in name for name in technique.state_dict())


def test_what_does_not_fit_is_said_in_one_line() -> None:
    with pytest.raises(UserError, match="depth is 2"):
        generator_module(techniques=[aligned(depth=2)])
    with pytest.raises(UserError, match="UNetDenoiser"):
        aligned().attach(UNetDenoiser(4, 12, [8, 16], num_heads=2, norm_groups=4), 0)
    with pytest.raises(UserError, match="spatial_share is 2"):
        aligned(spatial_share=2.0)
    with pytest.raises(UserError, match="width 0"):
        aligned(width=0)
    module = generator_module(techniques=[aligned(feature_size=7)])
    with pytest.raises(UserError, match=r"6 channels, .* expects 7"):
        module.sample_losses(batch())
    bare = {name: value for name, value in batch().items() if name != "image_feature"}
    with pytest.raises(UserError, match="--features"):
        module.sample_losses(bare)
    with pytest.raises(UserError, match="set its encoder"):
        module.sample_losses(bare | {"image": torch.zeros(8, 3, 4, 4, dtype=torch.uint8)})


CASES: dict[str, Any] = {"alignment": lambda: aligned(until_samples=6), "contrastive": lambda: ContrastiveFlow(0.3)}


class Step(torch.nn.Module):
    """The module's loss as DDP calls it."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.generator = randomise_generator(generator_module(techniques=[CASES[case]()], ema=None)).double()

    def forward(self, data: dict[str, Any]) -> Tensor:
        return self.generator.sample_losses(data).mean()


def gradients(network: torch.nn.Module, first: int, count: int) -> dict[str, Tensor]:
    data = {n: value.double() if value.is_floating_point() else value for n, value in batch(first, count).items()}
    network(data).backward()
    return {name.removeprefix("module."): weight.grad for name, weight in network.named_parameters()}  # type: ignore[misc]


def rank_gradients(rank: int, world: int, folder: str) -> None:
    with process_group(folder, rank, world):
        found = {case: gradients(DistributedDataParallel(Step(case)), rank * 4, 4) for case in CASES}
        torch.save(found, f"{folder}/{rank}.pt")


def test_two_ranks_have_the_gradients_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(rank_gradients, args=(2, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for case in CASES:
        whole = gradients(Step(case), 0, 8)
        assert any("projection" in name for name in whole) == (case == "alignment")
        for rank in ranks:
            assert rank[case].keys() == whole.keys()
            for name, expected in whole.items():
                error = (rank[case][name] - expected).abs().max()
                assert error <= 1e-12 * max(1.0, float(expected.abs().max())), f"{case}, {name}: off by {error:.2e}"


def test_the_projection_is_sharded_and_computes_the_same(tmp_path: Path) -> None:
    technique = aligned()
    module = randomise_generator(generator_module(techniques=[technique]))
    with torch.no_grad():
        before = module.sample_losses(batch())
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
        technique.shard(mesh)
        losses = module.sample_losses(batch())
        torch.testing.assert_close(losses, before)
        losses.mean().backward()
        assert all(isinstance(weight.grad, DTensor) for weight in technique.parameters())
    finally:
        dist.destroy_process_group()


def test_a_technique_with_weights_and_without_sharding_is_refused() -> None:
    class Headed(Technique):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(1, 1)

    with pytest.raises(UserError, match="Headed has weights of its own"):
        Headed().shard(None)  # type: ignore[arg-type]
    Technique().shard(None)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_ranks_sharded_or_not_train_as_one(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    from toys.recipes import codec_section, generator_section, stable_recipe
    from toys.runs import assert_same_training, last_checkpoint, run_recorded

    def recipe(name: str, samples: int) -> dict[str, Any]:
        return stable_recipe(tmp_path / name, toy_shards, toy_tokenizer, max_samples=samples)

    clip = run_recorded(recipe("clip", 8))
    codec = run_recorded({**recipe("codec", 8), "model": codec_section()})
    aligning = {"feature_size": 32, "depth": 1, "width": 16, "until_samples": 28, "encoder": str(clip)}
    techniques = [
        {"class_path": "leam_mm.techniques.representation_alignment.RepresentationAlignment", "init_args": aligning},
        {"class_path": "leam_mm.techniques.contrastive_flow.ContrastiveFlow", "init_args": {"weight": 0.1}},
    ]
    runs = []
    for name, overlays in (("one", ()), ("two", ("overlay_two_ranks.yaml",)), ("sharded", ("overlay_fsdp2.yaml",))):
        made = {**recipe(name, 32), "model": generator_section(clip, codec)}
        made["model"]["init_args"]["techniques"] = techniques
        made["trainer"]["gradient_clip_val"] = 1.0
        runs.append(run_recorded(made, *overlays))
    for other in runs[1:]:
        assert_same_training(runs[0], other)
    evidence = last_checkpoint(runs[0])[EVIDENCE]["frozen"]
    assert evidence["image_encoder"]["sha256"] == evidence["clip"]["sha256"]
    assert any("projection" in name for name in last_checkpoint(runs[0])["state_dict"])
