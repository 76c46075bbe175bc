"""One step in bfloat16 on a CPU: finite, in another precision than float32, and close to it, for each module."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from torch import Tensor
from toys.codecs import codec_module, fit_codec
from toys.generators import generator_module, train_generator
from toys.recipes import clip_recipe

from leam_mm.cli import main

NOTED: list[tuple[float, Tensor, set[torch.dtype]]] = []


class NoteStep(Callback):
    """Notes loss, gradient and the data types of the weights."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):  # type: ignore[no-untyped-def]
        weights = [weight for weight in pl_module.parameters() if weight.grad is not None]
        self.gradient = torch.cat([weight.grad.detach().float().flatten() for weight in weights])
        self.dtypes = {weight.dtype for weight in weights}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):  # type: ignore[no-untyped-def]
        NOTED.append((float(trainer.callback_metrics["train/loss"]), self.gradient, self.dtypes))


def contrastive(folder: Path, precision: Any, shards: Path, tokenizer: Path) -> None:
    made = clip_recipe(folder / str(precision), shards, tokenizer, max_samples=8)
    made["trainer"] |= {"precision": precision, "callbacks": [{"class_path": f"{__name__}.NoteStep"}]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(made))
    main(["fit", "--config", str(folder / "recipe.yaml")])


def codec(folder: Path, precision: Any, *_: Path) -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"callbacks": [NoteStep()], "limit_val_batches": 0}
    fit_codec(codec_module(kind="kl", losses={"kl_weight": 1e-3}), folder, steps=1, precision=precision, **settings)


def generator(folder: Path, precision: Any, *_: Path) -> None:
    torch.manual_seed(0)
    train_generator(generator_module(), folder, steps=1, precision=precision, callbacks=[NoteStep()])


@pytest.mark.parametrize("train", [contrastive, codec, generator])
def test_step_in_bfloat16_on_a_cpu(
    train: Callable[..., None], tmp_path: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    NOTED.clear()
    for precision in ("32-true", "bf16-mixed"):
        train(tmp_path, precision, toy_shards, toy_tokenizer)
    (whole, gradient, _), (half, rounded, dtypes) = NOTED
    assert half == pytest.approx(whole, rel=2e-2) and torch.isfinite(rounded).all()
    assert dtypes == {torch.float32}  # weights and gradients stay whole
    assert not torch.equal(gradient, rounded)  # bfloat16 was used
    assert torch.cosine_similarity(gradient, rounded, dim=0) > 0.99
    assert float(rounded.norm()) == pytest.approx(float(gradient.norm()), rel=0.05)
