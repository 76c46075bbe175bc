"""The logged norms are those of the gradients before clipping and of the step that was made."""

import csv
from pathlib import Path

import pytest
import torch
from toys.command_line import fit_here
from toys.recipes import clip_recipe


def logged(folder: Path, toy_shards: Path, toy_tokenizer: Path, **trainer: object) -> list[dict[str, str]]:
    recipe = clip_recipe(folder / "run", toy_shards, toy_tokenizer, max_samples=24)
    recipe["trainer"]["callbacks"] = [{"class_path": "leam_mm.callbacks.gradient_norms.GradientNorms"}]
    recipe["trainer"].update(trainer)
    recipe["model"]["init_args"].update(
        optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 1e-3}},
        schedule={"warmup_steps": 0},
        ema_decay=None,
    )
    folder.mkdir(exist_ok=True)
    fit_here(recipe, folder)
    with open(folder / "run" / "metrics.csv") as file:
        return [row for row in csv.DictReader(file) if row["gradient/norm"]]


def test_norms_of_plain_gradient_descent(toy_shards: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    rows = logged(tmp_path, toy_shards, toy_tokenizer)
    assert len(rows) == 3
    # Without momentum and decay the step is rate x gradient; the first weights are about the last ones.
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    weights = torch.cat([value.flatten() for name, value in saved.items() if name.startswith("encoder.clip")])
    first = rows[0]
    assert float(first["update/relative"]) == pytest.approx(
        1e-3 * float(first["gradient/norm"]) / float(weights.norm()), rel=0.02
    )


def test_gradient_norm_is_that_before_clipping(toy_shards: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    free = logged(tmp_path / "free", toy_shards, toy_tokenizer)
    clipped = logged(tmp_path / "clipped", toy_shards, toy_tokenizer, gradient_clip_val=1e-3)
    assert clipped[0]["gradient/norm"] == free[0]["gradient/norm"]
    assert float(clipped[0]["update/relative"]) < 0.01 * float(free[0]["update/relative"])
