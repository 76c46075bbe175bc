"""Training steps of the module: parts, the ring's limits, and losses that keep something of each sample."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from toys.recipes import clip_recipe
from toys.runs import assert_same_run, last_checkpoint, step_losses
from toys.shards import write_toy_shards

from leam_mm.cli import main
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.encoders import gradient_cache
from leam_mm.encoders.dual_encoder import DualEncoder, ImageTower, TextTower
from leam_mm.errors import UserError
from leam_mm.losses.contrastive import ContrastiveLoss, InfoNCE, PairwiseLoss, SigmoidLoss
from leam_mm.losses.global_contrastive import GlobalContrastive


def encoder(patch_dropout: float = 0.0) -> DualEncoder:
    torch.manual_seed(0)
    vision = ImageTower(16, 8, 32, 1, 16, patch_dropout=patch_dropout)
    return DualEncoder(16, vision, TextTower(12, 40, 32, 2, 1), init_bias=-2.0)


def batch(images: int = 6, captions: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    length = torch.randint(3, 12, (images * captions,), generator=generator)
    return {
        "image": torch.randint(0, 256, (images, 3, 16, 16), generator=generator, dtype=torch.uint8),
        "text": torch.randint(1, 40, (images * captions, 12), generator=generator),
        "text_length": length,
        "sample_index": torch.arange(images),
    }


def gradients(module: ContrastiveModule) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    module.double().train().log = lambda *_, **__: None  # type: ignore[method-assign]
    # training_step rounds features to float32 for the loss; here all stays in float64.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", lambda self: self)
        module.training_step(batch(), 0).backward()
    return {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("loss", [InfoNCE(0.1), SigmoidLoss()])
@pytest.mark.parametrize("exchange", ["gather", "ring"])
def test_step_in_parts_is_the_step_of_the_whole_batch(exchange: Any, loss: ContrastiveLoss) -> None:
    whole = gradients(ContrastiveModule(encoder(), loss, "none"))
    parts = gradients(ContrastiveModule(encoder(), loss, "none", exchange=exchange, micro_batch=4))
    assert whole.keys() == parts.keys()
    assert ("encoder.clip.logit_bias" in whole) == isinstance(loss, SigmoidLoss)
    for name, expected in whole.items():
        assert (parts[name] - expected).abs().max() <= 1e-12 * expected.abs().max().clamp(min=1e-3), name


def test_patch_dropout_keeps_the_same_patches_in_both_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    cached = gradients(ContrastiveModule(encoder(0.5), InfoNCE(), "none", micro_batch=4))
    whole = gradients(ContrastiveModule(encoder(0.5), InfoNCE(), "none"))
    # The same parts with all their activations kept: one pass, one draw.
    monkeypatch.setattr(gradient_cache, "checkpoint", lambda embed, part, **_: embed(part))
    kept = gradients(ContrastiveModule(encoder(0.5), InfoNCE(), "none", micro_batch=4))
    for name, expected in kept.items():
        assert (cached[name] - expected).abs().max() <= 1e-12 * expected.abs().max().clamp(min=1e-3), name
        # Which patches a sample keeps is its own matter, however a batch is cut.
        assert (cached[name] - whole[name]).abs().max() <= 1e-12 * expected.abs().max().clamp(min=1e-3), name


def test_ring_is_refused_where_rows_belong_together() -> None:
    class Own(InfoNCE):
        def forward(self, *parts: Any) -> torch.Tensor:
            return super().forward(*parts) * 2

    for loss in (Own(), GlobalContrastive(9)):
        with pytest.raises(
            UserError, match=f"exchange is ring, but {type(loss).__name__} is neither InfoNCE nor a sum"
        ):
            ContrastiveModule(encoder(), loss, "none", exchange="ring")
    with pytest.raises(UserError, match="micro_batch is 0"):
        ContrastiveModule(encoder(), InfoNCE(), "none", micro_batch=0)


class Stop(Callback):
    """An end in the middle."""

    def on_train_batch_end(self, trainer: Any, *_: object) -> None:
        if trainer.global_step == 5:
            raise InterruptedError


def fit(recipe: dict[str, Any], folder: Path) -> None:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    main(["fit", "--config", str(path)])


def global_recipe(run: Path, shards: Path, tokenizer: Path) -> dict[str, Any]:
    run.parent.mkdir(parents=True, exist_ok=True)
    recipe = clip_recipe(run, shards, tokenizer, max_samples=64)
    loss = {"samples": 96, "gamma": 0.4, "decay_epochs": 1}
    recipe["model"]["init_args"]["loss"] = {
        "class_path": "leam_mm.losses.global_contrastive.GlobalContrastive",
        "init_args": loss,
    }
    recipe["model"]["init_args"]["micro_batch"] = 3
    return recipe


def test_running_estimates_survive_an_end_in_the_middle(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    whole = global_recipe(tmp_path / "a" / "run", toy_shards, toy_tokenizer)
    fit(whole, tmp_path / "a")
    broken = global_recipe(tmp_path / "b" / "run", toy_shards, toy_tokenizer)
    stopped = {**broken["trainer"], "callbacks": [{"class_path": "test_contrastive_module.Stop"}]}
    with pytest.raises(InterruptedError):
        fit({**broken, "trainer": stopped}, tmp_path / "b")
    assert last_checkpoint(tmp_path / "b" / "run")["global_step"] == 4
    fit(broken, tmp_path / "b")
    assert_same_run(tmp_path / "a" / "run", tmp_path / "b" / "run")
    state = last_checkpoint(tmp_path / "a" / "run")["state_dict"]
    seen = state["loss.image_estimate"].isfinite()
    assert state["loss.visits"] == 64 and seen.sum() == 64  # the samples of one epoch are all different
    assert len(step_losses(tmp_path / "a" / "run")) == 8


class Threshold(PairwiseLoss):
    """Somebody's loss with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold = torch.nn.Parameter(torch.zeros(()))

    def pairs(self, image: Any, text: Any, scale: Any, bias: Any, matching: bool) -> torch.Tensor:
        logits = scale * image @ text.T - self.threshold
        sign = 1 - 2 * torch.eye(len(image)) if matching else 1
        return torch.nn.functional.softplus(sign * logits).sum()


def test_weights_of_a_loss_are_trained_too(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    recipe = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer, max_samples=16)
    recipe["model"]["init_args"] |= {"loss": {"class_path": "test_contrastive_module.Threshold"}, "exchange": "ring"}
    fit(recipe, tmp_path)
    assert last_checkpoint(tmp_path / "run")["state_dict"]["loss.threshold"] > 0  # most pairs do not match


def test_number_of_samples_is_checked_before_the_first_step(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    recipe = global_recipe(tmp_path / "run", toy_shards, toy_tokenizer)
    recipe["model"]["init_args"]["loss"]["init_args"]["samples"] = 95
    with pytest.raises(UserError, match=r"samples is 95, but data.train holds 96 samples"):
        fit(recipe, tmp_path)


def test_batches_without_what_the_loss_needs_are_named(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    recipe = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer)
    recipe["model"]["init_args"]["loss"] = {
        "class_path": "leam_mm.losses.distillation.Distillation",
        "init_args": {"loss": {"class_path": "leam_mm.losses.contrastive.InfoNCE"}, "teachers": [{"size": 8}]},
    }
    with pytest.raises(UserError, match=r"Distillation needs teacher_image, teacher_text"):
        fit(recipe, tmp_path)


def test_batch_with_more_images_than_there_are_is_refused(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = write_toy_shards(tmp_path / "few", 12)

    def recipe(batch_size: int, accumulate: int, micro_batch: int | None = None) -> dict[str, Any]:
        made = clip_recipe(tmp_path / f"run {batch_size} {accumulate}", few, toy_tokenizer, max_samples=2 * batch_size)
        made["data"]["init_args"] |= {"batch_size": batch_size}
        made["trainer"]["accumulate_grad_batches"] = accumulate
        made["model"]["init_args"]["micro_batch"] = micro_batch
        return made

    with pytest.raises(
        UserError, match=r"holds 12 samples, fewer than the 16 of a batch.*init_args.batch_size to 12 or less"
    ):
        fit(recipe(16, 1), tmp_path)
    assert "few holds 12 samples, each batch has 16 of them" in caplog.text
    caplog.clear()
    fit(recipe(16, 2), tmp_path)  # a micro-batch repeats no image
    assert "compares the 8 images of a micro-batch, not the 16 of the batch; model.init_args.micro_batch" in caplog.text
    caplog.clear()
    fit(recipe(12, 1, 6), tmp_path)
    assert "micro" not in caplog.text and "repeats" not in caplog.text


@pytest.mark.parametrize(
    "vision, normalised", [({"timm_model_name": "test_resnet", "timm_pool": ""}, True), ({}, False)]
)
def test_batch_norm_on_several_ranks_is_named(
    vision: dict[str, Any], normalised: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The halves of a batch give the embeddings of the whole one, unless batch norm sees them apart."""
    tower = ImageTower(image_size=32, **vision) if vision else ImageTower(32, 16, width=32, layers=1, head_width=16)
    made = DualEncoder(16, tower, TextTower(12, 50, width=32, heads=2, layers=1)).train()
    image = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    halves = torch.cat([made.encode_image(part) for part in image.chunk(2)])
    assert torch.allclose(made.encode_image(image), halves, atol=1e-5) != normalised
    module = ContrastiveModule(made, InfoNCE(), "nowhere")
    data = SimpleNamespace(train_plan=SimpleNamespace(samples=96), batch_size=8)
    trainer = SimpleNamespace(datamodule=data, accumulate_grad_batches=1, is_global_zero=True, world_size=2)
    monkeypatch.setattr(ContrastiveModule, "trainer", trainer)
    module._check_negatives()
    assert ("each of 2 ranks normalises its own 4 images" in caplog.text) == normalised
    caplog.clear()
    trainer.world_size = 1
    module._check_negatives()
    assert not caplog.text
