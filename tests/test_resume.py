"""N steps == N/2 + kill -9 + resume + N/2, to the last bit, also with another number of loader workers."""

import csv
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import yaml
from conftest import clip_recipe
from test_bucket_order import write_toy_buckets

from leam_mm.cli import main
from leam_mm.errors import UserError

ROOT = Path(__file__).parent.parent
KILLER = """
    import os, signal
    from lightning.pytorch import Callback

    class Killer(Callback):
        def __init__(self, step: int, signal_number: int = 9) -> None:
            self.step, self.signal_number = step, signal_number

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == self.step:
                os.kill(os.getpid(), self.signal_number)
"""


def fit(recipe: dict, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run train.py in a process of its own, with tests' callbacks importable."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "killer.py").write_text(textwrap.dedent(KILLER))
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, str(ROOT / "train.py"), "fit", "--config", str(path), *overrides]
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


def checkpoint(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def losses(run: Path) -> list[tuple[str, str]]:
    with open(run / "metrics.csv") as file:
        return [(row["step"], row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def assert_equal(left: object, right: object, where: str) -> None:
    """Bit-equal trees of tensors, numbers and containers."""
    if isinstance(left, torch.Tensor):
        assert isinstance(right, torch.Tensor) and torch.equal(left, right), where
    elif isinstance(left, dict):
        assert isinstance(right, dict) and left.keys() == right.keys(), where
        for key in left:
            assert_equal(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where  # type: ignore[arg-type]
        for number, (a, b) in enumerate(zip(left, right, strict=True)):  # type: ignore[arg-type]
            assert_equal(a, b, f"{where}[{number}]")
    else:
        assert left == right, where


def assert_same_run(first: Path, second: Path) -> None:
    one, two = checkpoint(first), checkpoint(second)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_equal(one[part], two[part], part)
    assert one["leam_mm"]["samples_seen"] == two["leam_mm"]["samples_seen"]
    assert losses(first) == losses(second)


def killed(recipe: dict, step: int, number: int = 9) -> dict:
    trainer = {
        **recipe["trainer"],
        "callbacks": [{"class_path": "killer.Killer", "init_args": {"step": step, "signal_number": int(number)}}],
    }
    return {**recipe, "trainer": trainer}


@pytest.mark.parametrize(("accumulate", "workers"), [(1, 2), (2, 0)])
def test_kill_and_resume_is_bit_equal(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path, accumulate: int, workers: int
) -> None:
    def recipe(name: str) -> dict:
        made = clip_recipe(tmp_path / name, toy_shards, toy_tokenizer, max_samples=96)
        made["trainer"]["accumulate_grad_batches"] = accumulate
        return made

    whole = fit(recipe("whole"), tmp_path / "a")
    assert whole.returncode == 0, whole.stderr
    broken = fit(killed(recipe("broken"), 7), tmp_path / "b")
    assert broken.returncode == -signal.SIGKILL
    assert checkpoint(tmp_path / "broken")["global_step"] == 6
    resumed = fit(recipe("broken"), tmp_path / "b", f"--data.init_args.workers={workers}")
    assert resumed.returncode == 0, resumed.stderr
    assert len(losses(tmp_path / "whole")) == 12
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_signal_saves_at_a_step_boundary_and_leaves_with_75(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    recipe = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer, max_samples=64)
    recipe["checkpoint"] = {"every_n_train_steps": 1000}
    stopped = fit(killed(recipe, 3, signal.SIGUSR1), tmp_path / "a")
    assert stopped.returncode == 75, stopped.stderr
    assert checkpoint(tmp_path / "run")["global_step"] == 3 or checkpoint(tmp_path / "run")["global_step"] == 4
    resumed = fit(recipe, tmp_path / "a")
    assert resumed.returncode == 0, resumed.stderr
    whole = clip_recipe(tmp_path / "whole", toy_shards, toy_tokenizer, max_samples=64)
    assert fit(whole, tmp_path / "b").returncode == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def buckets_recipe(run: Path, latents: Path, tokenizer: Path, workers: int = 0, accumulate: int = 1) -> dict:
    """A complete recipe for a toy generator on latents in buckets of three shapes."""
    recipe = clip_recipe(run, latents, tokenizer, max_samples=96)
    recipe["trainer"] |= {"accumulate_grad_batches": accumulate, "val_check_interval": 2 * accumulate}
    arguments = {"train": str(latents), "validation": str(latents), "batch_size": 8, "workers": workers, "seed": 5}
    recipe["data"] = {"class_path": "leam_mm.data.latents_module.LatentsModule", "init_args": arguments}
    sizes = {"in_channels": 4, "context_dim": 6, "hidden_size": 16, "depth": 1, "num_heads": 2, "patch_size": 1}
    denoiser = {"class_path": "leam_mm.denoisers.denoiser.PRXDenoiser", "init_args": {**sizes, "size_conditioning": 16}}
    recipe["model"] = {
        "class_path": "leam_mm.diffusion_module.LatentDiffusionModule",
        "init_args": {
            "denoiser": denoiser,
            "process": {"class_path": "leam_mm.diffusion.rectified_flow.RectifiedFlow"},
            "latent_size": 2,
            "caption_dropout": 0.0,
            "ema_decay": 0.9,
            "warmup_steps": 2,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}},
        },
    }
    return recipe


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_training_on_buckets_goes_on_bit_for_bit_with_other_workers(
    tmp_path: Path, toy_tokenizer: Path, accumulate: int
) -> None:
    latents = write_toy_buckets(tmp_path / "latents")

    def start(name: str, workers: int) -> None:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(buckets_recipe(tmp_path / name, latents, toy_tokenizer, workers, accumulate)))
        main(["fit", "--config", str(path)])

    start("whole", 0)
    broken = fit(killed(buckets_recipe(tmp_path / "broken", latents, toy_tokenizer, 2, accumulate), 7), tmp_path / "b")
    assert broken.returncode == -signal.SIGKILL, broken.stderr
    assert checkpoint(tmp_path / "broken")["global_step"] == 6
    start("broken", 1)
    assert len(losses(tmp_path / "whole")) == 12
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    last = checkpoint(tmp_path / "whole")
    assert last["LatentsModule"] == {"bucket_batch": 8 // accumulate} and last["leam_mm"]["samples_seen"] == 96
    with open(tmp_path / "whole" / "metrics.csv") as file:  # all three shapes are in the validation
        assert sum(bool(row["val/loss"]) for row in csv.DictReader(file)) == 6


def test_another_batch_size_for_buckets_is_refused_in_one_line(tmp_path: Path, toy_tokenizer: Path) -> None:
    latents = write_toy_buckets(tmp_path / "latents")

    def start(size: int, samples: int) -> None:
        recipe = buckets_recipe(tmp_path / "run", latents, toy_tokenizer)
        recipe["data"]["init_args"]["batch_size"], recipe["max_samples"] = size, samples
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        main(["fit", "--config", str(tmp_path / "recipe.yaml")])

    start(8, 16)
    with pytest.raises(UserError, match="runs of 8 samples of one shape in a row, which 16 of a micro-batch do not"):
        start(16, 64)
    start(4, 32)  # which divides: the runs stay as they were
    assert checkpoint(tmp_path / "run")["LatentsModule"] == {"bucket_batch": 8}
