"""A trained toy encoder finds the right captions far more often than chance."""

from pathlib import Path

import torch
import yaml
from toys.encoders import right_share
from toys.images import COLOURS, GERMAN
from toys.recipes import clip_recipe
from toys.shards import write_toy_shards

from leam_mm.checkpoint import load_module
from leam_mm.cli import main
from leam_mm.contrastive_module import ContrastiveModule


def test_toy_encoder_learns_colours_in_two_languages(toy_shards: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    recipe = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer, max_samples=200 * 32)
    recipe["data"]["init_args"]["batch_size"] = 32
    recipe["checkpoint"] = {"every_n_train_steps": 1000}
    recipe["model"]["init_args"]["schedule"] = {"warmup_steps": 10}
    recipe["trainer"]["logger"] = False
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    held_out = write_toy_shards(tmp_path / "held_out", samples=40, first=1000)
    colours = sorted(COLOURS)
    texts = {"en": [f"a {colour} square" for colour in colours], "de": [f"Quadrat, {GERMAN[c]}" for c in colours]}
    main(["fit", "--config", str(tmp_path / "recipe.yaml")])
    trained = load_module(tmp_path / "run", ContrastiveModule)
    for language, names in texts.items():
        assert right_share(trained, held_out, names) > 0.9, language  # chance is 0.25
    for name, value in trained.encoder.state_dict().items():
        assert torch.isfinite(value).all(), name
