"""Every file in configs/ is parsed by its program; the training recipes of a pipeline run end to end."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from rich.console import Console
from toys.command_line import CONFIGS, printed_config
from toys.shards import toy_vocabulary

import evaluate
from data_tools import encode_latents
from data_tools.links.link_sources import LinkSources
from data_tools.vetting.vetting_passes import read_rules
from leam_mm.checkpoint import build_module, read_checkpoint
from leam_mm.cli import main
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.data.latents_module import LatentsModule
from leam_mm.data.pairs_module import PairsModule
from leam_mm.encoders.vision_transformer import check_size
from leam_mm.evaluate_commands.audit_command import audit
from leam_mm.pipeline_file import read_pipeline


def kind(path: Path) -> str:
    if path.parent.name == "clusters":
        return "profile"  # see test_cluster_profiles.py
    first = path.stem.partition("_")[0]
    return first if first in ("pipeline", "evaluate", "audit", "overlay", "vet", "sources", "release") else "recipe"


FILES: dict[str, list[Path]] = {
    name: [] for name in ("recipe", "overlay", "pipeline", "evaluate", "audit", "vet", "sources", "profile", "release")
}
for _path in sorted(CONFIGS.rglob("*.yaml")):
    FILES[kind(_path)].append(_path)


def named(group: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", FILES[group], ids=lambda path: path.stem)


def test_every_kind_of_file_is_found() -> None:
    assert all(FILES.values()), FILES


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_first_line_says_what_it_is(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ") and len(first) > 30


@named("recipe")
def test_a_run_shorter_than_the_steps_between_validations_is_no_error(path: Path) -> None:
    trainer = yaml.safe_load(path.read_text(encoding="utf-8"))["trainer"]
    if "val_check_interval" in trainer:  # Lightning refuses more steps than an epoch has, unless epochs do not count
        assert trainer.get("check_val_every_n_epoch", 1) is None


@named("recipe")
def test_recipe_parses_and_says_what_it_needs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = printed_config(capsys, path)
    assert config["max_samples"] % config["data"]["init_args"]["batch_size"] == 0
    assert config["ckpt_path"] == "last"  # the same command starts and resumes
    assert config["trainer"]["default_root_dir"].startswith("runs/")
    assert isinstance(config["seed_everything"], int)
    text = config["model"]["init_args"].get("encoder", {}).get("text")
    if text:
        assert text["context_length"] == config["data"]["init_args"]["captions"]["context_length"]
        assert config["model"]["init_args"]["tokenizer"] == config["data"]["init_args"]["captions"]["tokenizer"]


@named("overlay")
def test_overlay_parses_on_top_of_a_recipe(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    for_generators = {"techniques+", "denoiser", "ema", "caption_tower"} & content.get("model", {}).get(
        "init_args", {}
    ).keys()
    recipe = CONFIGS / ("scenes_generator.yaml" if for_generators else "scenes_clip.yaml")
    below, above = printed_config(capsys, recipe), printed_config(capsys, recipe, path)
    changes_model = "model" in content
    assert below != above and (below["model"] != above["model"]) == changes_model


@pytest.mark.parametrize("path", [path for path in FILES["recipe"] if path.stem.startswith(("clip_", "datacomp_"))])
def test_large_recipe_builds_its_towers_and_its_stages(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    arguments, data = content["model"]["init_args"], content["data"]["init_args"]
    if "class_path" not in arguments["encoder"]:  # weights that must be downloaded first
        with torch.device("meta"):  # shapes only
            module = build_module(content["model"])
        assert (
            isinstance(module, ContrastiveModule)
            and module.encoder.context_length == data["captions"]["context_length"]
        )
        assert module.encoder.image_size == data["image"]["image_size"]
    data = {**data, "train": "nowhere", "validation": None}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PairsModule, "data")
    built = parser.instantiate_classes(parser.parse_object({"data": data})).data
    if built.stages is not None:
        assert built.stages.stages[-1].samples < content["max_samples"]
        for size in built.stages.sizes:
            check_size(module.encoder.clip.visual, size)


@pytest.mark.parametrize("path", [path for path in FILES["recipe"] if path.stem.startswith("generator_")])
def test_large_generator_has_as_many_weights_as_its_recipe_says(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    with torch.device("meta"):  # shapes only
        module: Any = build_module(content["model"])
    weights = sum(value.numel() for value in module.denoiser.parameters())
    header = " ".join(line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# "))
    assert f"{weights:,} weights" in header and "Not run here" in header
    assert len(module.techniques) == len(content["model"]["init_args"].get("techniques", []))
    for technique in module.techniques:
        end = getattr(technique, "until_samples", None)
        assert end is None or (end < content["max_samples"] and end % content["data"]["init_args"]["batch_size"] == 0)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(LatentsModule, "data")
    parser.parse_object({"data": content["data"]["init_args"]})


def test_compilation_is_added_to_the_callbacks_of_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = CONFIGS / "emoji_clip.yaml"
    below, above = printed_config(capsys, recipe), printed_config(capsys, recipe, CONFIGS / "overlay_compile.yaml")
    added = above["trainer"]["callbacks"][len(below["trainer"]["callbacks"]) :]
    assert [each["class_path"] for each in added] == ["leam_mm.callbacks.compilation.Compilation"]


@named("pipeline")
def test_pipeline_names_files_that_exist(path: Path) -> None:
    pipeline = read_pipeline(path)
    words = [word for stage in pipeline.stages for word in stage.command.split()]
    for word in words:
        if word.startswith(("configs/", "data_tools/")) or word in ("train.py", "evaluate.py"):
            assert (CONFIGS.parent / word).is_file(), word
    assert len({stage.name for stage in pipeline.stages}) == len(pipeline.stages)


@named("vet")
def test_vetting_parses(path: Path) -> None:
    if "nudity" in path.read_text(encoding="utf-8") and importlib.util.find_spec("nudenet") is None:
        pytest.skip("the recipe has the rule for nudity, whose weights the extra nudity installs")
    assert all(rule.setting()["rule"].startswith("data_tools.") for rule in read_rules(path))


@named("sources")
def test_sources_trust_the_tables_of_the_pipelines(path: Path) -> None:
    sources = LinkSources(path)
    for pipeline in map(read_pipeline, FILES["pipeline"]):
        words = " ".join(stage.command for stage in pipeline.stages).split()
        tables = [Path(word) for word in words if word.endswith(".parquet")]
        assert all(sources.trusts(table) for table in tables) and words.count(str(path)) in (0, len(tables))


@named("evaluate")
def test_evaluation_parses(path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(evaluate.evaluate, as_positional=False)
    settings = parser.parse_object(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert settings.evaluators and os.fspath(settings.output).startswith("runs/")


@named("audit")
def test_audits_parse_and_read_what_their_pipeline_makes(path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(audit, as_positional=False)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    built = parser.instantiate_classes(parser.parse_object(content))
    assert built.audits and all(one.name for one in built.audits)
    made = {
        made for pipeline in map(read_pipeline, FILES["pipeline"]) for stage in pipeline.stages for made in stage.makes
    }
    read = [
        content[key]
        for key in ("clip", "generator", "codec", "shards", "held_out", "release", "results")
        if key in content
    ]
    assert set(map(Path, read)) <= set(map(Path, made)), read


def train(recipe: Path, run: Path, changes: dict[str, Any]) -> None:
    """Two steps of a recipe as it is, but for data, length and run folder."""
    quiet = {"default_root_dir": str(run), "accelerator": "cpu", "logger": False}
    quiet.update(enable_progress_bar=False, enable_model_summary=False)
    changes["data"]["init_args"].update(batch_size=4, loading={"workers": 0})
    content = {"max_samples": 8, "trainer": quiet, **changes}
    run.mkdir()
    (run / "overlay.yaml").write_text(yaml.safe_dump(content))
    main(["fit", "--config", str(recipe), "--config", str(run / "overlay.yaml")])
    assert read_checkpoint(run)["global_step"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("corpus", ["scenes", "emoji"])
def test_recipes_of_a_pipeline_train_one_after_the_other(
    corpus: str, toy_shards: Path, toy_tokenizer: Path, tmp_path: Path
) -> None:
    data = {"train": str(toy_shards), "validation": str(toy_shards), "validation_samples": 4}
    words: dict[str, Any] = {"tokenizer": str(toy_tokenizer)}
    model = words | {"encoder": {"text": {"vocab_size": toy_vocabulary(toy_tokenizer)}}}
    clip, codec, latents = tmp_path / "clip", tmp_path / "codec", tmp_path / "latents"
    pairs = {"init_args": data | {"captions": words}}
    train(CONFIGS / f"{corpus}_clip.yaml", clip, {"data": pairs, "model": {"init_args": model}})
    train(CONFIGS / f"{corpus}_codec.yaml", codec, {"data": {"init_args": data}})
    arguments = ["--shards", str(toy_shards), "--codec", str(codec), "--clip", str(clip), "--output", str(latents)]
    encode_latents.encode_latents(encode_latents.parse(arguments), Console(quiet=True))
    parts = {"clip": str(clip), "codec": str(codec), "latents": str(latents)}
    changes = {"data": {"init_args": {"train": str(latents)}}, "model": {"init_args": {"frozen": parts}}}
    train(CONFIGS / f"{corpus}_generator.yaml", tmp_path / "generator", changes)


@pytest.mark.parametrize("recipe", ["scenes_codec.yaml", "scenes_generator.yaml"])
def test_a_mixture_of_folders_is_printed_so_that_it_can_be_read_again(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [{"path": "a", "weight": 0.5, "language": None}, {"path": "b", "weight": 2.0, "language": "fi"}]
    overlay = tmp_path / "mixture.yaml"
    overlay.write_text(yaml.safe_dump({"data": {"init_args": {"train": sources}}}))
    config = printed_config(capsys, CONFIGS / recipe, overlay)
    found = [each.get("init_args", each) for each in config["data"]["init_args"]["train"]]
    assert found == sources
    whole = tmp_path / "whole.yaml"
    whole.write_text(yaml.safe_dump(config))
    assert printed_config(capsys, whole)["data"] == config["data"]
