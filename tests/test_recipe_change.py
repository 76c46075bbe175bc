"""Changes that are allowed take effect at the next step, in every kind of module and on several ranks."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from toys.changed_runs import BATCH, LR, SEEN, begun, cosine, evidence, exact, logged, recipe, run, used
from toys.command_line import fit_here
from toys.recipes import ROOT, buckets_recipe, clip_recipe, codec_section
from toys.runs import last_checkpoint, run_training
from toys.shards import write_toy_buckets

from leam_mm.checkpoint import checkpoint_config, read_checkpoint
from leam_mm.errors import UserError

__all__ = ["begun", "exact", "recipe", "run"]


def test_an_allowed_learning_rate_takes_effect_at_the_next_step_and_is_recorded(
    run: Path, recipe: dict[str, Any], tmp_path: Path
) -> None:
    words = ["--max_samples=96", "--extend=schedule", f"--{LR}=0.001", "--allow-change", LR]
    fit_here(recipe, tmp_path, *words)
    rates = used(run)
    assert [rates[step] for step in range(6, 12)] == [cosine(BATCH * step, 96, full=0.001) for step in range(6, 12)]
    group = last_checkpoint(run)["optimizer_states"][0]["param_groups"][0]
    assert group["initial_lr"] == 0.001
    recorded = {change["key"]: change for change in evidence(run)["changes"]}
    assert recorded[LR]["from"] == "0.003" and recorded[LR]["to"] == "0.001" and recorded[LR]["samples"] == SEEN
    assert set(recorded) == {LR, "max_samples"}
    assert "allow_change" not in {name for name, value in checkpoint_config(read_checkpoint(run)).items() if value}
    fit_here(recipe, tmp_path, *words)  # the same command again, as a scheduler gives it
    with pytest.raises(UserError, match=LR):  # the run has the new rate now
        fit_here(recipe, tmp_path, "--max_samples=96")


def test_allowed_weight_decay_reaches_the_groups_and_leaves_those_without(
    run: Path, recipe: dict[str, Any], tmp_path: Path
) -> None:
    key = "model.init_args.optimizer.init_args.weight_decay"
    fit_here(recipe, tmp_path, "--max_samples=56", "--extend=schedule", f"--{key}=0.5", f"--allow-change={key}")
    groups = last_checkpoint(run)["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.5, 0.0]


def test_an_allowed_schedule_and_an_allowed_optimizer_take_effect(
    run: Path, recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe["model"]["init_args"]["schedule"] = {"warmup_steps": 2, "kind": "constant"}
    recipe["model"]["init_args"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}}
    allowed = ["--allow-change=model.init_args.schedule", "--allow-change=model.init_args.optimizer"]
    fit_here(recipe, tmp_path, "--max_samples=64", *allowed)
    assert {used(run)[step] for step in (6, 7)} == {0.01}
    assert last_checkpoint(run)["optimizer_states"][0]["state"] == {} and evidence(run)["samples_seen"] == 64


def test_an_allowed_change_of_width_that_does_not_fit_is_one_line_with_the_key(
    run: Path, recipe: dict[str, Any], tmp_path: Path
) -> None:
    key = "model.init_args.encoder.text.width"
    words = ["--max_samples=96", "--extend=schedule", f"--{key}=64", f"--allow-change={key}"]
    with pytest.raises(UserError, match=r"with the changed model\S+text\.width \(.*size mismatch") as caught:
        fit_here(recipe, tmp_path, *words)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_two_ranks_stop_together_and_end_at_the_same_sample(
    run: Path, recipe: dict[str, Any], tmp_path: Path, toy_shards: Path
) -> None:
    two = ["--config", str(ROOT / "configs" / "overlay_two_ranks.yaml")]
    refused = run_training(recipe, tmp_path / "a", *two, "--max_samples=96")
    assert refused.returncode == 2 and refused.stderr.count("--extend cooldown") == 1
    choice = ["--max_samples=88", "--extend=schedule", "--data.init_args.batch_size=16"]
    refused = run_training(recipe, tmp_path / "a", *two, *choice, f"--{LR}=0.001")
    assert refused.returncode == 2 and refused.stderr.count(f"--allow-change {LR}") == 1
    words = [*two, *choice, f"--{LR}=0.001", f"--allow-change={LR}"]
    done = run_training(recipe, tmp_path / "a", *words)
    assert done.returncode == 0 and done.stderr.count("resumes with changes") == 1, done.stderr
    assert evidence(run)["samples_seen"] == 88
    expected = [cosine(seen, 88, full=0.001) for seen in (48, 64, 80)]
    assert [logged(run)[step] for step in (6, 7, 8)] == pytest.approx(expected, rel=1e-6)
    again = run_training(recipe, tmp_path / "a", *words)
    assert again.returncode == 0, again.stderr
    kept = [f"--{LR}=0.001", "--data.init_args.batch_size=16"]
    uneven = run_training(recipe, tmp_path / "a", *two, *kept, "--max_samples=95", "--extend=constant")
    assert uneven.returncode == 2 and "do not share evenly" in uneven.stderr


@pytest.mark.slow
def test_sharded_runs_resume_with_changes(run: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    words = ["--config", str(ROOT / "configs" / "overlay_fsdp2.yaml"), "--max_samples=80", "--extend=schedule"]
    words += ["--data.init_args.batch_size=16", f"--{LR}=0.001", f"--allow-change={LR}"]
    done = run_training(recipe, tmp_path / "a", *words)
    assert done.returncode == 0, done.stderr
    expected = [cosine(seen, 80, full=0.001) for seen in (48, 64)]
    assert [logged(run)[step] for step in (6, 7)] == pytest.approx(expected, rel=1e-6)
    again = run_training(recipe, tmp_path / "a", *words)
    assert again.returncode == 0 and "resumes with changes" not in again.stderr, again.stderr


def test_ranks_that_a_scheduler_starts_stop_without_a_line_of_their_own(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "is_global_zero", False)
    with pytest.raises(SystemExit) as caught:
        fit_here(recipe, tmp_path, "--max_samples=96")
    assert caught.value.code == 2


def test_a_run_with_buckets_keeps_its_runs_of_one_shape(tmp_path: Path, toy_tokenizer: Path) -> None:
    latents = write_toy_buckets(tmp_path / "latents")
    recipe = buckets_recipe(tmp_path / "run", latents, toy_tokenizer)
    recipe["max_samples"] = 48
    fit_here(recipe, tmp_path)
    recipe["data"]["init_args"]["batch_size"] = 4
    fit_here(recipe, tmp_path, "--max_samples=64", "--extend=constant")
    assert evidence(tmp_path / "run")["samples_seen"] == 64
    rates = used(tmp_path / "run")
    assert {rates[step] for step in range(6, 10)} == {rates[5]}


@pytest.mark.parametrize("adversarial", [False, True])
def test_codecs_resume_with_changes(adversarial: bool, tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    recipe = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer, max_samples=32)
    recipe["model"] = codec_section()
    recipe["model"]["init_args"]["schedule"] = {"warmup_steps": 0}
    if adversarial:
        network = {"class_path": "leam_mm.codecs.codec_losses.PatchDiscriminator", "init_args": {"width": 8}}
        recipe["model"]["init_args"]["adversarial"] = {"discriminator": network}
    fit_here(recipe, tmp_path)
    words = ["--max_samples=48", "--extend=schedule", f"--{LR}=0.02", f"--allow-change={LR}"]
    fit_here(recipe, tmp_path, *words, "--data.init_args.batch_size=4")
    rates = used(tmp_path / "run")
    expected = [cosine(32 + 4 * n, 48, full=0.02, warmup=0) for n in range(4)]
    assert [rates[step] for step in range(4, 8)] == pytest.approx(expected, rel=1e-12)
    assert evidence(tmp_path / "run")["samples_seen"] == 48
