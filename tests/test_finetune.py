"""The stages of a fine-tuning in this process, from a base with a caption tower and from one without."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from toys.command_line import CONFIGS
from toys.recipes import clip_recipe, generator_section
from toys.shards import toy_vocabulary, write_toy_shards

import evaluate
from data_tools import download_shards, encode_latents, split_folder
from leam_mm import finetune_plan
from leam_mm.checkpoint import load_module
from leam_mm.cli import main
from leam_mm.controls.judge_controls import PixelFeatures
from leam_mm.controls.recognition_controls import SUBJECTS, subject_image
from leam_mm.evaluators.image_features import SmallEfficientNetLite0
from leam_mm.evaluators.results import read_results

QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "logger": False}
STEP = {"max_samples": 16, "trainer": {**QUIET, "val_check_interval": 2}}


def write_yaml(path: Path, content: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)


def train_base(base: Path, tokenizer: Path, tower: bool, texts_only: bool) -> Path:
    """Train clip, codec and generator for two steps each, and encode latents as texts or with states."""
    shards = write_toy_shards(base / "shards" / "train", 24)
    clip = clip_recipe(base / "clip", shards, tokenizer, 16)
    text = clip["model"]["init_args"]["encoder"]["text"]
    assert text["vocab_size"] == toy_vocabulary(tokenizer)
    codec = yaml.safe_load((CONFIGS / "scenes_codec.yaml").read_text())
    codec["data"]["init_args"] |= {"train": str(shards), "validation": None, "image": {"image_size": 32}}
    codec["data"]["init_args"] |= {"batch_size": 8, "loading": {"workers": 0}}
    sizes = {"latent_channels": 4, "widths": [8, 8, 8, 16], "layers": [0, 1, 1, 1]}
    codec["model"]["init_args"]["codec"]["init_args"] = sizes
    codec |= STEP | {"trainer": {**STEP["trainer"], "default_root_dir": str(base / "codec")}}
    for name, recipe in (("clip", clip), ("codec", codec)):
        main(["fit", "--config", write_yaml(base / f"{name}.yaml", recipe)])
    captions = ["--texts-only"] if texts_only else ["--clip", str(base / "clip")]
    words = ["--shards", str(shards), "--codec", str(base / "codec"), "--output", str(base / "latents" / "train")]
    encode_latents.main([*words, *captions])
    generator = clip_recipe(base / "generator", shards, tokenizer, 16)
    generator["model"] = generator_section(base / "clip", base / "codec")
    settings = generator["model"]["init_args"]
    settings["frozen"]["latents"] = str(base / "latents" / "train")
    if tower:
        settings["caption_tower"] = {"text": text}
    latents = {"train": str(base / "latents" / "train"), "batch_size": 8, "loading": {"workers": 0}, "seed": 5}
    generator["data"] = {"class_path": "leam_mm.data.latents_module.LatentsModule", "init_args": latents}
    main(["fit", "--config", write_yaml(base / "generator.yaml", generator)])
    return base


def write_pictures(folder: Path) -> Path:
    folder.mkdir()
    for number, subject in enumerate(SUBJECTS):
        Image.fromarray(subject_image(subject, number)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(subject)
    return folder


@pytest.mark.parametrize(
    ("tower", "texts_only", "method"),
    [
        (True, True, "overlay_generator_lora.yaml"),
        pytest.param(True, False, "finetune_generator.yaml", marks=pytest.mark.slow),
        pytest.param(False, True, "finetune_generator.yaml", marks=pytest.mark.slow),
        (False, False, "overlay_generator_lora.yaml"),
    ],
)
def test_every_base_is_tuned_and_judged(
    tmp_path: Path, toy_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, tower: bool, texts_only: bool, method: str
) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    (tmp_path / "base").mkdir()
    train_base(base, toy_tokenizer, tower, texts_only)
    split_folder.main(["--folder", str(write_pictures(tmp_path / "pictures")), "--output", str(run / "tables")])
    finetune_plan.main(["--base", str(base), "--run", str(run)])
    small = write_yaml(tmp_path / "small.yaml", {"data": {"init_args": {"batch_size": 8, "loading": {"workers": 0}}}})
    short = ["--config", small, "--config", write_yaml(tmp_path / "short.yaml", STEP)]
    for part in ("train", "held_out"):
        table, output = str(run / "tables" / f"{part}.jsonl"), str(run / "shards" / part)
        download_shards.main(["--table", table, "--allow-file", "--output", output, "--processes", "1"])
        words = ["--shards", output, "--codec", str(base / "codec"), "--statistics", str(run / "plan")]
        plan = ["--config", str(run / "plan" / "latents.yaml")]
        encode_latents.main([*plan, *words, "--output", str(run / "latents" / part)])
    codec = ["--config", str(CONFIGS / "finetune_codec.yaml"), "--config", str(run / "plan" / "codec.yaml")]
    main(["fit", *codec, *short])
    recipe = ["--config", str(CONFIGS / "finetune_generator.yaml"), "--config", str(CONFIGS / method)]
    main(["fit", *recipe, "--config", str(run / "plan" / "recipe.yaml"), *short])
    tuned, started = (load_module(folder / "generator").ema_denoiser() for folder in (run, base))
    assert (tuned.caption_tower is not None) == (started.caption_tower is not None) == tower
    if tower:
        pairs = zip(tuned.caption_tower.parameters(), started.caption_tower.parameters(), strict=True)
        assert tuned.caption_tower is not None and not all(torch.equal(one, other) for one, other in pairs)
    monkeypatch.setattr(SmallEfficientNetLite0, "extract", lambda self, images: PixelFeatures().extract(images))
    settings = yaml.safe_load((run / "plan" / "evaluate.yaml").read_text())
    for evaluator in settings["evaluators"]:
        evaluator["init_args"] |= {"draws": 1, "sampling": {"steps": 2, "guidance": 3.0}}
    settings["evaluators"][1]["init_args"]["evaluators"] = []
    evaluate.main(["--config", write_yaml(tmp_path / "evaluate.yaml", settings)])
    results = read_results(run / "evaluation")
    assert results["after/recognised_captions"]["samples"] == 12  # of 15 subjects, 3 are held out
    assert results["after/held_out_loss"]["value"] is not None
    page = (run / "evaluation" / "report.html").read_text()
    assert 'id="recognition"' in page
