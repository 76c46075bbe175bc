"""Frozen weights and the running statistics of frozen layers do not move; all else does."""

from pathlib import Path

import pytest
import torch
from toys.command_line import fit_here
from toys.recipes import clip_recipe

from leam_mm.errors import UserError


def frozen_run(folder: Path, shards: Path, tokenizer: Path, patterns: list[str]) -> tuple[dict, dict]:
    """State before and after three steps with a tower that has batch norms."""
    recipe = clip_recipe(folder / "run", shards, tokenizer, max_samples=24)
    recipe["model"]["init_args"]["encoder"]["vision"] = {
        "image_size": 16,
        "timm_model_name": "test_resnet",
        "timm_pool": "",
    }
    recipe["data"]["init_args"].update(validation=str(shards), validation_samples=8)
    recipe["trainer"].update(val_check_interval=1, check_val_every_n_epoch=None)
    recipe["trainer"]["callbacks"] = [
        {"class_path": "leam_mm.callbacks.freezing.Freezing", "init_args": {"patterns": patterns}}
    ]
    torch.manual_seed(0)
    cli = fit_here(recipe, folder)
    after = {name: value.clone() for name, value in cli.model.encoder.state_dict().items()}
    folder.joinpath("again").mkdir()
    recipe["trainer"]["default_root_dir"] = str(folder / "again")
    recipe["trainer"]["limit_train_batches"] = 0
    before = fit_here(recipe, folder / "again").model.encoder.state_dict()
    return before, after


def test_locked_image_tower(toy_shards: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    before, after = frozen_run(tmp_path, toy_shards, toy_tokenizer, ["encoder.clip.visual.*"])
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and not any(name.startswith("clip.visual") for name in moved)
    assert any("running_mean" in name for name in before)  # the tower has statistics that could have moved
    assert {"clip.token_embedding.weight", "clip.logit_scale"} <= moved


def test_patterns_that_match_nothing_or_all(toy_shards: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no parameter matches 'encoder\.image\.\*'; there are .*encoder\.clip"):
        frozen_run(tmp_path, toy_shards, toy_tokenizer, ["encoder.image.*"])
    with pytest.raises(UserError, match="match all parameters"):
        frozen_run(tmp_path, toy_shards, toy_tokenizer, ["*"])
