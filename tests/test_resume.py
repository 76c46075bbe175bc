"""A run that is killed (signal 9) and resumed equals an undisturbed one bit for bit, also with other loader workers."""

import csv
import signal
from pathlib import Path

import pytest
import yaml
from toys.recipes import buckets_recipe, clip_recipe
from toys.runs import assert_same_run, last_checkpoint, run_training, step_losses, with_kill
from toys.shards import write_toy_buckets

from leam_mm.cli import main
from leam_mm.errors import UserError


@pytest.mark.parametrize(("accumulate", "workers"), [(1, 2), (2, 0)])
def test_kill_and_resume_is_bit_equal(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path, accumulate: int, workers: int
) -> None:
    def recipe(name: str) -> dict:
        made = clip_recipe(tmp_path / name, toy_shards, toy_tokenizer, max_samples=96)
        made["trainer"]["accumulate_grad_batches"] = accumulate
        return made

    whole = run_training(recipe("whole"), tmp_path / "a")
    assert whole.returncode == 0, whole.stderr
    broken = run_training(with_kill(recipe("broken"), 7), tmp_path / "b")
    assert broken.returncode == -signal.SIGKILL
    assert last_checkpoint(tmp_path / "broken")["global_step"] == 6
    resumed = run_training(recipe("broken"), tmp_path / "b", f"--data.init_args.loading.workers={workers}")
    assert resumed.returncode == 0, resumed.stderr
    assert len(step_losses(tmp_path / "whole")) == 12
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_signal_saves_at_a_step_boundary_and_exits_with_75(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    recipe = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer, max_samples=64)
    recipe["checkpoint"] = {"every_n_train_steps": 1000}
    stopped = run_training(with_kill(recipe, 3, signal.SIGUSR1), tmp_path / "a")
    assert stopped.returncode == 75, stopped.stderr
    assert last_checkpoint(tmp_path / "run")["global_step"] in (3, 4)
    resumed = run_training(recipe, tmp_path / "a")
    assert resumed.returncode == 0, resumed.stderr
    whole = clip_recipe(tmp_path / "whole", toy_shards, toy_tokenizer, max_samples=64)
    assert run_training(whole, tmp_path / "b").returncode == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_run_on_buckets_resumes_bit_for_bit_with_other_workers(
    tmp_path: Path, toy_tokenizer: Path, accumulate: int
) -> None:
    latents = write_toy_buckets(tmp_path / "latents")

    def start(name: str, workers: int) -> None:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(buckets_recipe(tmp_path / name, latents, toy_tokenizer, workers, accumulate)))
        main(["fit", "--config", str(path)])

    start("whole", 0)
    broken = run_training(
        with_kill(buckets_recipe(tmp_path / "broken", latents, toy_tokenizer, 2, accumulate), 7), tmp_path / "b"
    )
    assert broken.returncode == -signal.SIGKILL, broken.stderr
    assert last_checkpoint(tmp_path / "broken")["global_step"] == 6
    start("broken", 1)
    assert len(step_losses(tmp_path / "whole")) == 12
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    last = last_checkpoint(tmp_path / "whole")
    assert last["LatentsModule"] == {"bucket_batch": 8 // accumulate} and last["leam_mm"]["samples_seen"] == 96
    with open(tmp_path / "whole" / "metrics.csv") as file:  # validation covers all three shapes
        assert sum(bool(row["val/loss"]) for row in csv.DictReader(file)) == 6


def test_another_batch_size_for_buckets_is_refused_in_one_line(tmp_path: Path, toy_tokenizer: Path) -> None:
    latents = write_toy_buckets(tmp_path / "latents")

    def start(size: int, samples: int) -> None:
        recipe = buckets_recipe(tmp_path / "run", latents, toy_tokenizer)
        recipe["data"]["init_args"]["batch_size"], recipe["max_samples"] = size, samples
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        main(["fit", "--config", str(tmp_path / "recipe.yaml")])

    start(8, 16)
    with pytest.raises(UserError, match="in a row, which is no multiple of the micro-batch 16"):
        start(16, 64)
    start(4, 32)  # 4 divides 8: the order stays in groups of 8
    assert last_checkpoint(tmp_path / "run")["LatentsModule"] == {"bucket_batch": 8}
