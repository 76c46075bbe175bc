"""One process and several ranks are the same training: gradients in fp64, whole runs through the command line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from toys.ranks import process_group
from toys.recipes import buckets_recipe, codec_section, generator_section, stable_recipe
from toys.runs import assert_same_training, loss_curve, run_recorded, seen_keys
from toys.shards import write_toy_buckets

from leam_mm.distributed import any_rank, gather, ring, ring_softmax, world_size
from leam_mm.encoders.gradient_cache import embed_in_parts
from leam_mm.losses.contrastive import ContrastiveLoss, InfoNCE, PairwiseLoss, SigmoidLoss
from leam_mm.losses.distillation import Distillation, Teacher
from leam_mm.losses.global_contrastive import GlobalContrastive

BATCH = 12  # of all ranks together
TEACHER = 6


class Shared(ContrastiveLoss):
    """A sum hands the very same gradient tensor to both of its terms, so that neither may be changed in place."""

    def forward(self, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        return scale * (image + text).square().sum()


class Margin(PairwiseLoss):
    """Somebody's own sum over pairs, with a weight of its own, and without the bias."""

    def __init__(self) -> None:
        super().__init__()
        self.margin = nn.Parameter(torch.tensor([0.3, -0.2], dtype=torch.float64))

    def pairs(self, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None, matching: bool) -> Tensor:
        logits = scale * image @ text.T
        apart = nn.functional.softplus(logits - self.margin[0])
        if not matching:
            return apart.sum()
        return apart.sum() - apart.trace() + nn.functional.softplus(self.margin[1] - logits.diagonal()).sum()


class Towers(nn.Module):
    """Two linear towers, a scale and a bias, in fp64."""

    def __init__(self, loss: ContrastiveLoss, exchange: str = "gather", micro_batch: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.image, self.text = nn.Linear(7, 5).double(), nn.Linear(9, 5).double()
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor(-0.5, dtype=torch.float64))
        self.loss, self.exchange, self.micro_batch = loss, exchange, micro_batch

    def embed(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        image, text = self.image(batch["image"]), self.text(batch["text"])
        return nn.functional.normalize(image, dim=-1), nn.functional.normalize(text, dim=-1)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        parts = self.micro_batch
        image, text = self.embed(batch) if parts is None else embed_in_parts(self.embed, batch, parts, self)
        shared = (self.scale.exp(), self.bias)
        # Some losses leave the bias out; DDP wants every parameter to take part.
        if self.exchange == "ring" and isinstance(self.loss, InfoNCE):
            return ring_softmax(image, text, shared[0], self.loss.label_smoothing, self.loss.tile) + 0 * self.bias
        if self.exchange == "ring":
            return ring(self.loss.pairs, image, text, *shared, list(self.loss.parameters())) + 0 * self.bias  # type: ignore[arg-type]
        further = {name: gather(batch[name]) for name in self.loss.needs}
        return self.loss(gather(image), gather(text), *shared, **further) + 0 * self.bias


def cases() -> dict[str, Towers]:
    teachers = [Teacher(4, 3.0), Teacher(2, 5.0)]
    return {
        "InfoNCE": Towers(InfoNCE(0.1)),
        "InfoNCE in parts": Towers(InfoNCE(0.1, tile=5), micro_batch=3),
        "InfoNCE ring": Towers(InfoNCE(0.1, tile=5), "ring"),
        "InfoNCE ring in parts": Towers(InfoNCE(tile=3), "ring", micro_batch=3),
        "sigmoid": Towers(SigmoidLoss()),
        "sigmoid ring": Towers(SigmoidLoss(tile=3), "ring"),
        "sigmoid ring in parts": Towers(SigmoidLoss(), "ring", micro_batch=1),
        "own pairwise": Towers(Margin()),
        "own pairwise ring": Towers(Margin(), "ring"),
        "global": Towers(GlobalContrastive(40, gamma=0.3, rho=1.5, tile=5).double()),
        "distillation": Towers(Distillation(InfoNCE(), teachers, weight=0.7, tile=5)),
        "Shared": Towers(Shared()),
    }


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"image": 7, "text": 9, "teacher_image": TEACHER, "teacher_text": TEACHER}
    made = {name: torch.randn(BATCH, size, generator=generator, dtype=torch.float64) for name, size in sizes.items()}
    rows = torch.randperm(40, generator=generator)[:BATCH]
    rows[-1] = rows[0]  # on another rank, the same sample
    return {**made, "sample_row": rows}


def gradients(network: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Loss and gradients of a second step, and the state that it leaves."""
    for _ in range(2):
        network.zero_grad()
        loss = network(batch)
        loss.backward()
    named = {name.removeprefix("module."): parameter.grad for name, parameter in network.named_parameters()}
    state = {name.removeprefix("module."): buffer.exp() for name, buffer in network.named_buffers()}
    return {"loss": loss.detach(), **named, **state}  # type: ignore[dict-item]


def rank_gradients(rank: int, world: int, folder: str) -> None:
    with process_group(folder, rank, world):
        assert world_size() == world
        votes = [any_rank(rank == world - 1, torch.device("cpu")), any_rank(False, torch.device("cpu"))]
        found = {"votes": torch.tensor(votes)}
        batch = {name: part.chunk(world)[rank] for name, part in inputs().items()}
        for name, towers in cases().items():
            state = [buffer for buffer, _ in towers.named_buffers()]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(towers, state)
            found |= {f"{name}.{key}": g for key, g in gradients(DistributedDataParallel(towers), batch).items()}
        torch.save(found, f"{folder}/{rank}.pt")


@pytest.mark.parametrize("world", [2, *(pytest.param(ranks, marks=pytest.mark.slow) for ranks in (1, 3))])
def test_losses_over_ranks_have_the_gradients_of_one_process(world: int, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(rank_gradients, args=(world, str(tmp_path)), nprocs=world)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    for name, towers in cases().items():
        plain = Towers(towers.loss)  # one process, no exchange, no parts
        whole = gradients(plain, inputs())
        assert whole["loss"] > 0 and whole["scale"].abs() > 0
        assert (whole["bias"].abs() > 0) == name.startswith("sigmoid")
        for rank in ranks:
            assert len(whole) == sum(key.startswith(f"{name}.") for key in rank)
            for key, expected in whole.items():
                error = (rank[f"{name}.{key}"] - expected).abs().max()
                assert error <= 1e-12 * expected.abs().max(), f"{name}.{key}: off by {error:.2e}"
    assert all(rank["votes"].tolist() == [True, False] for rank in ranks)


def test_ring_of_one_is_the_loss_itself() -> None:
    batch = inputs()
    image, text = (batch[name] for name in ("teacher_image", "teacher_text"))
    scale, bias = torch.tensor(3.0).double(), torch.tensor(-1.0).double()
    for loss in (SigmoidLoss(), Margin()):
        values = []
        for call in (loss, lambda *parts, own=loss: ring(own.pairs, *parts, list(own.parameters()))):
            leaves = [part.clone().requires_grad_() for part in (image, text, scale)]
            value = call(*leaves, None)
            (2 * value).backward()
            values.append([value.detach(), *(leaf.grad for leaf in leaves)])
        for one, other in zip(*values, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-15)
    with torch.no_grad():
        assert ring(SigmoidLoss().pairs, image, text, scale, bias).item() == pytest.approx(
            SigmoidLoss()(image, text, scale, bias).item(), rel=1e-14
        )


def test_two_ranks_by_overlay_train_as_one(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    one = run_recorded(stable_recipe(tmp_path / "one", toy_shards, toy_tokenizer))
    two = run_recorded(stable_recipe(tmp_path / "two", toy_shards, toy_tokenizer), "overlay_two_ranks.yaml")
    assert len(list(two.glob("keys.*"))) == 2
    assert_same_training(one, two)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("loss", "overlay", "exchange"),
    [
        ("InfoNCE", "overlay_two_ranks.yaml", "ring"),
        ("SigmoidLoss", "overlay_two_ranks.yaml", "ring"),
        ("InfoNCE", "overlay_fsdp2.yaml", "gather"),
        ("SigmoidLoss", "overlay_fsdp2.yaml", "ring"),
    ],
)
def test_exchange_and_parts_change_nothing_in_a_training(
    loss: str, overlay: str, exchange: str, tmp_path: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    def recipe(name: str, **settings: Any) -> dict:
        made = stable_recipe(tmp_path / name, toy_shards, toy_tokenizer)
        model = made["model"]["init_args"]
        model["loss"] = {"class_path": f"leam_mm.losses.contrastive.{loss}"}
        model["encoder"] |= {"init_scale": 10.0, "init_bias": -10.0} if loss == "SigmoidLoss" else {}
        made["data"]["init_args"]["captions"]["per_image"] = 2
        made["trainer"] |= {"gradient_clip_val": 1.0}
        model |= settings
        return made

    assert_same_training(
        run_recorded(recipe("one")), run_recorded(recipe("two", exchange=exchange, micro_batch=3), overlay)
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_resume_with_another_number_of_ranks(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    def recipe(name: str) -> dict:
        made = stable_recipe(tmp_path / name, toy_shards, toy_tokenizer)
        made["checkpoint"] = {"every_n_train_steps": 1000}
        return made

    whole = run_recorded(recipe("whole"))
    run_recorded(recipe("grown"), stop_at=3)
    stopped = len(loss_curve(tmp_path / "grown"))
    assert 3 <= stopped < len(loss_curve(whole))
    assert_same_training(whole, run_recorded(recipe("grown"), "overlay_two_ranks.yaml"))
    # And back: two ranks first, then one.
    shrunk = run_recorded(recipe("shrunk"), "overlay_two_ranks.yaml", stop_at=3)
    for path in shrunk.glob("keys.*"):
        path.rename(path.with_name(path.name.replace("keys", "first")))
    run_recorded(recipe("shrunk"))
    assert seen_keys(shrunk) == seen_keys(whole)[8 * len((shrunk / "first.0").read_text().splitlines()) :]
    assert loss_curve(shrunk) == pytest.approx(loss_curve(whole), rel=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_codec_and_generator_on_two_ranks(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    clip = run_recorded(stable_recipe(tmp_path / "clip", toy_shards, toy_tokenizer, max_samples=16))

    def runs(kind: str, model: dict) -> list[Path]:
        made = []
        for name, overlays in ((f"{kind}_one", ()), (f"{kind}_two", ("overlay_two_ranks.yaml",))):
            recipe = stable_recipe(tmp_path / name, toy_shards, toy_tokenizer, max_samples=32)
            made.append(run_recorded({**recipe, "model": model}, *overlays))
        return made

    codec, codec_two = runs("codec", codec_section())
    assert seen_keys(codec) == seen_keys(codec_two)
    assert loss_curve(codec_two) == pytest.approx(loss_curve(codec), rel=1e-5)
    generator, generator_two = runs("generator", generator_section(clip, codec))
    assert len(loss_curve(generator)) == 4
    assert_same_training(generator, generator_two)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_ranks_train_on_buckets_as_one_and_one_goes_on(tmp_path: Path, toy_tokenizer: Path) -> None:
    latents = write_toy_buckets(tmp_path / "latents")

    def recipe(name: str) -> dict:
        made = buckets_recipe(tmp_path / name, latents, toy_tokenizer)
        made["model"]["init_args"]["optimizer"]["init_args"]["eps"] = 1e-4
        return made | {"checkpoint": {"every_n_train_steps": 1000}}

    whole = run_recorded(recipe("whole"))
    assert_same_training(whole, run_recorded(recipe("two"), "overlay_two_ranks.yaml"))
    run_recorded(recipe("grown"), stop_at=3)
    assert_same_training(whole, run_recorded(recipe("grown"), "overlay_two_ranks.yaml"))
