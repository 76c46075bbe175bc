"""A job's command carries the emission factors of its cluster, unless the recipe has its own."""

from pathlib import Path

import pytest
import yaml
from toys.recipes import clip_recipe

from leam_mm.cli import main
from leam_mm.launch.energy_words import energy_words
from leam_mm.launch.resolved_recipe import ResolvedRecipe
from leam_mm.planning.cluster_profile import load_profile
from leam_mm.planning.cluster_sections import Site


def recipe(folder: Path, **energy: float) -> ResolvedRecipe:
    return ResolvedRecipe({"trainer": {"default_root_dir": "run"}, "energy": energy}, folder)


def test_factors_of_the_profile_reach_train_py(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = energy_words(load_profile("lumi_g").site, recipe(tmp_path))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer)))
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(tmp_path / "recipe.yaml"), *words, "--print_config"])
    found = yaml.safe_load(capsys.readouterr().out)["energy"]
    assert (found["grams_per_kwh"], found["market_grams_per_kwh"], found["pue"]) == (79.2, 0.0, 1.04)
    assert "Finland" in found["source"] and "pue: " in found["source"] and "assumed" in found["source"]


def test_a_recipe_with_a_factor_of_its_own_is_left_alone(tmp_path: Path) -> None:
    site = load_profile("lumi_g").site
    for name, value in (("grams_per_kwh", 300.0), ("market_grams_per_kwh", 0.0), ("pue", 1.2)):
        assert energy_words(site, recipe(tmp_path, **{name: value})) == ()
    assert energy_words(Site(), recipe(tmp_path)) == ()  # nothing is known: "not given", never 0
