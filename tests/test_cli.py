import csv
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import RichProgressBar
from toys.command_line import fit_here
from toys.recipes import clip_recipe

from leam_mm.checkpoint import build_module, checkpoint_config, load_module, read_checkpoint
from leam_mm.cli import main
from leam_mm.code_commit import code_commit
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.errors import UserError


def steps(run: Path) -> list[int]:
    with open(run / "metrics.csv", newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]


def test_print_config_is_complete_and_trains_nothing(
    toy_shards: Path, toy_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer)
    with pytest.raises(SystemExit) as caught:
        fit_here(recipe, tmp_path, "--print_config", "--data.init_args.seed=77")
    assert caught.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["data"]["init_args"]["seed"] == 77  # the command line comes last
    assert printed["max_samples"] == 64 and printed["trainer"]["gradient_clip_val"] is None
    assert printed["model"]["init_args"]["max_scale"] == 100.0  # defaults are written out
    assert printed["checkpoint"]["every_n_train_steps"] == 2 and "window" in printed["throughput"]
    assert "optimizer" not in printed  # the model's own optimizer is the only one
    assert isinstance(build_module(printed["model"]), ContrastiveModule)
    assert not (tmp_path / "run").exists()


def test_printed_config_is_a_recipe_that_prints_itself(
    toy_shards: Path, toy_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    recipe = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer)
    for _ in range(2):
        with pytest.raises(SystemExit):
            fit_here(recipe, tmp_path, "--print_config")
        texts.append(capsys.readouterr().out)
        recipe = yaml.safe_load(texts[-1])
    assert texts[0] == texts[1]


def test_run_leaves_config_metrics_and_one_checkpoint(toy_shards: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml.tmp-1-0123abcd").touch()  # of a killed run
    fit_here(clip_recipe(run, toy_shards, toy_tokenizer, max_samples=24), tmp_path)
    assert steps(run) == [0, 1, 2]
    names = [f"generation-{number:06d}-samples-{samples:012d}.ckpt" for number, samples in ((1, 16), (2, 24))]
    assert sorted(file.name for file in (run / "checkpoints").iterdir()) == [*names, "last.ckpt"]
    assert list((run / "tensorboard").glob("events*"))
    assert not list(run.rglob("*.tmp*"))
    checkpoint = read_checkpoint(run)
    assert checkpoint["leam_mm"]["samples_seen"] == 24 and checkpoint["global_step"] == 3
    assert checkpoint["leam_mm"]["code"].get("commit") == code_commit()[0]
    assert list(checkpoint["leam_mm"]["data"]) == [str(toy_shards)]
    assert checkpoint_config(checkpoint)["model"] == yaml.safe_load((run / "config.yaml").read_text())["model"]


def test_finished_run_is_not_trained_again(toy_shards: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    recipe = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer, max_samples=24)
    fit_here(recipe, tmp_path)
    before = read_checkpoint(tmp_path / "run")
    fit_here(recipe, tmp_path)
    after = read_checkpoint(tmp_path / "run")
    assert after["global_step"] == 3 and after["leam_mm"]["samples_seen"] == 24
    assert all(torch.equal(value, after["state_dict"][name]) for name, value in before["state_dict"].items())
    assert steps(tmp_path / "run") == [0, 1, 2]


def test_raised_max_samples_goes_on_to_the_new_length(toy_shards: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    recipe = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer, max_samples=24)
    fit_here(recipe, tmp_path)
    short = read_checkpoint(tmp_path / "run")["state_dict"]
    fit_here(recipe, tmp_path, "--max_samples=56", "--extend=schedule")
    longer = read_checkpoint(tmp_path / "run")
    assert longer["global_step"] == 7 and longer["leam_mm"]["samples_seen"] == 56
    assert steps(tmp_path / "run") == list(range(7))
    assert any(not torch.equal(value, longer["state_dict"][name]) for name, value in short.items())
    assert checkpoint_config(longer)["max_samples"] == 56


def test_extension_with_a_constant_rate_equals_the_long_run(
    toy_shards: Path, toy_tokenizer: Path, tmp_path: Path
) -> None:
    def recipe(name: str, samples: int) -> dict[str, Any]:
        made = clip_recipe(tmp_path / name, toy_shards, toy_tokenizer, max_samples=samples)
        made["model"]["init_args"]["schedule"] = {"kind": "constant"}
        return made

    fit_here(recipe("whole", 48), tmp_path)
    fit_here(recipe("parts", 24), tmp_path)
    fit_here(recipe("parts", 48), tmp_path)
    whole, parts = (read_checkpoint(tmp_path / name)["state_dict"] for name in ("whole", "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_recipe_without_length_is_refused(toy_shards: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    recipe = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer)
    del recipe["max_samples"]
    with pytest.raises(UserError, match="sets no length of training: set max_samples"):
        fit_here(recipe, tmp_path)


def test_threads_are_the_recipes(toy_shards: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        fit_here(clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer, max_samples=8), tmp_path, "--threads=3")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_max_samples_must_be_whole_batches(toy_shards: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"max_samples 30 is no multiple of data\.init_args\.batch_size 8"):
        fit_here(clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer, max_samples=30), tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--model.init_args.warm_up=3"], r"the command line: unknown key 'model\.init_args\.warm_up'"),
        (["--max_samples=many"], r"the command line: max_samples: .*int.*many"),
        (["--config=/no/such.yaml"], r"/no/such\.yaml: cannot be read"),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str], reason: str, toy_shards: Path, toy_tokenizer: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        fit_here(clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer), tmp_path, *words)
    assert "\n" not in str(caught.value)


def test_vocabulary_of_another_tokenizer_is_refused_before_the_first_step(
    toy_shards: Path, toy_tokenizer: Path, tmp_path: Path
) -> None:
    recipe = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer)
    recipe["model"]["init_args"]["encoder"]["text"]["vocab_size"] = 999
    with pytest.raises(UserError, match=r"vocab_size is 999, but the tokenizer .* write that number into the recipe"):
        fit_here(recipe, tmp_path)


def test_validate_measures_a_checkpoint(toy_shards: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    recipe = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer, max_samples=16)
    recipe["data"]["init_args"].update(validation=str(toy_shards), validation_samples=16)
    fit_here(recipe, tmp_path)
    before = read_checkpoint(tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    cli = main(["validate", "--config", str(tmp_path / "recipe.yaml"), "--ckpt_path", str(checkpoint)])
    encoder = load_module(tmp_path / "run", ContrastiveModule).ema_encoder()
    trained = cli.model.ema_encoder()
    assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in trained.state_dict().items())
    assert 0 <= float(cli.trainer.callback_metrics["val/in_batch_top1"]) <= 1
    assert read_checkpoint(tmp_path / "run")["global_step"] == before["global_step"]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is an option that is not installed")
def test_one_line_adds_wandb_and_keeps_the_other_loggers(
    toy_shards: Path, toy_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    recipe = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer, max_samples=8)
    recipe["trainer"]["logger"] = "lightning.pytorch.loggers.WandbLogger"
    cli = fit_here(recipe, tmp_path)
    kinds = [type(logger).__name__ for logger in cli.trainer.loggers]
    assert kinds == ["MetricsLog", "EventsLog", "WandbLogger"]
    assert steps(tmp_path / "run") == [0] and list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_logger_can_be_switched_off(toy_shards: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    recipe = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer, max_samples=8)
    recipe["trainer"]["logger"] = False
    assert fit_here(recipe, tmp_path).trainer.loggers == []
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_the_terminal_shows_small_learning_rates_and_nothing_unknown(
    toy_shards: Path, toy_tokenizer: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer, max_samples=8)
    recipe["trainer"] |= {"enable_progress_bar": True, "enable_model_summary": True}
    trainer = fit_here(recipe, tmp_path).trainer
    bar = trainer.progress_bar_callback
    assert isinstance(bar, RichProgressBar) and f"{0.0003:{bar.theme.metrics_format}}" == "0.0003"
    shown = "".join(capfd.readouterr())
    assert "DualEncoder" in shown and re.search(r"[0-9,]+ parameters, [0-9,]+ of them trained", shown)
    assert not re.search("FLOPs|v_num|-2 |transfer_batch_to_device", shown)
