"""Techniques: their block steps, losses and weights in training, and their rebuild from a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys.generators import (
    build_denoiser,
    generator_module,
    randomise_generator,
    save_generator,
    sign_batch,
    sign_generator_section,
    train_generator,
)

from leam_mm.checkpoint import build_module, load_module
from leam_mm.denoisers.denoiser import Denoiser, Tokens
from leam_mm.diffusion.rectified_flow import RectifiedFlow
from leam_mm.diffusion_module import LatentDiffusionModule
from leam_mm.errors import UserError
from leam_mm.recorded_classes import TRUST
from leam_mm.techniques.technique import Technique, TrainingStep


class Recorder:
    """Records the calls with the shapes of the tokens."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, tuple[int, ...]]] = []

    def enter(self, number: int, tokens: Tokens) -> Tokens:
        self.seen.append(("enter", number, tuple(tokens.values.shape)))
        return tokens

    def leave(self, number: int, tokens: Tokens) -> Tokens:
        self.seen.append(("leave", number, tuple(tokens.values.shape)))
        return tokens


class HeadOnTokens(Technique):
    """A head of its own on the tokens after the first block; the errors of the upper half do not count."""

    def __init__(self, strength: float = 0.5) -> None:
        super().__init__()
        self.strength = strength

    def attach(self, denoiser: Denoiser, seed: int) -> None:
        self.head = nn.Linear(32, 1)
        nn.init.ones_(self.head.weight)

    def begin(self, step: TrainingStep) -> None:
        assert step.prediction is None
        self.tokens: Tensor | None = None

    def block_steps(self) -> list[Any]:
        return [self]

    def enter(self, number: int, tokens: Tokens) -> Tokens:
        return tokens

    def leave(self, number: int, tokens: Tokens) -> Tokens:
        self.tokens = tokens.values if number == 0 else self.tokens
        return tokens

    def weigh(self, errors: Tensor, step: TrainingStep) -> Tensor:
        kept = torch.ones_like(errors)
        kept[:, :, :2] = 0
        return errors * kept

    def loss(self, step: TrainingStep) -> Tensor:
        assert self.tokens is not None and step.prediction is not None
        return self.strength * self.head(self.tokens).square().mean((1, 2))


def batch() -> dict[str, Any]:
    return sign_batch(range(8))


def test_steps_run_around_each_block_in_order() -> None:
    denoiser = build_denoiser("prx")
    recorder = Recorder()
    parts = (torch.randn(3, 4, 8, 6), torch.rand(3), torch.randn(3, 5, 12), torch.ones(3, 5, dtype=torch.bool))
    with torch.no_grad():
        assert torch.equal(denoiser(*parts, [recorder]), denoiser(*parts))
    shape = (3, 12, 32)
    assert recorder.seen == [("enter", 0, shape), ("leave", 0, shape), ("enter", 1, shape), ("leave", 1, shape)]
    with pytest.raises(UserError, match="U-Net"):
        build_denoiser("unet")(*parts, [recorder])


def test_technique_without_effect_leaves_the_loss_unchanged() -> None:
    plain, idle = (randomise_generator(generator_module(techniques=own)) for own in (None, [Technique()]))
    with torch.no_grad():
        assert torch.equal(plain.sample_losses(batch()), idle.sample_losses(batch()))


def test_technique_reads_tokens_weighs_errors_and_adds_a_loss() -> None:
    module = randomise_generator(generator_module(techniques=[HeadOnTokens(0.5)]))
    technique: Any = module.techniques[0]
    with torch.no_grad():
        losses = module.sample_losses(batch())
        added = 0.5 * technique.head(technique.tokens).square().mean((1, 2))
        technique.strength = 0.0
        half = module.sample_losses(batch())
    torch.testing.assert_close(losses, half + added)
    assert (half < randomise_generator(generator_module()).sample_losses(batch())).all()


def test_weights_of_a_technique_are_trained_and_sampling_does_not_use_them(tmp_path: Path) -> None:
    module = generator_module(techniques=[HeadOnTokens()])
    before = module.techniques[0].head.weight.clone()  # type: ignore[union-attr, operator]
    train_generator(module, tmp_path, 2)
    assert not torch.equal(module.techniques[0].head.weight, before)  # type: ignore[union-attr, arg-type]
    assert module.sample(["x"], seed=0, steps=2).shape == (1, 3, 4, 4)
    assert "techniques.0.head.weight" in module.state_dict()


def test_checkpoint_with_a_technique_rebuilds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = {"class_path": "test_technique.HeadOnTokens", "init_args": {"strength": 0.25}}
    section = sign_generator_section({"depth": 1}, techniques=[head])
    with pytest.raises(UserError, match="--trust test_technique"):
        build_module(section)
    monkeypatch.setenv(TRUST, "test_technique")
    module: Any = build_module(section)
    assert isinstance(module.process, RectifiedFlow)
    run = save_generator(module, section, tmp_path / "run")
    again: Any = load_module(run, LatentDiffusionModule)
    assert again.techniques[0].strength == 0.25
    assert torch.equal(again.techniques[0].head.weight, module.techniques[0].head.weight)
