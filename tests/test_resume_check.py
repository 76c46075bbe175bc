"""A changed recipe of a resumed run: what is free, what is refused, and where the run ends."""

import itertools
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from toys.changed_runs import BATCH, LR, SEEN, begun, cosine, evidence, exact, logged, recipe, run, stop, used
from toys.command_line import fit_here
from toys.runs import assert_equal, assert_same_run, step_losses
from toys.shards import write_toy_shards

from leam_mm.checkpoint import read_checkpoint
from leam_mm.errors import UserError

__all__ = ["begun", "exact", "recipe", "run"]


def test_another_length_without_a_choice_stops_in_one_line_that_names_three(
    run: Path, recipe: dict[str, Any], tmp_path: Path
) -> None:
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    with pytest.raises(UserError, match=r"--extend schedule .*--extend cooldown .*--extend constant") as caught:
        fit_here(recipe, tmp_path, "--max_samples=96")
    assert "\n" not in str(caught.value) and "max_samples is 96 and was 48" in str(caught.value)
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before and len(step_losses(run)) == 6


def test_extend_schedule_is_the_closed_form_of_the_new_length(
    run: Path, recipe: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        fit_here(recipe, tmp_path, "--max_samples=96", "--extend=schedule")
    rates = used(run)
    assert [rates[step] for step in range(6, 12)] == [cosine(BATCH * step, 96) for step in range(6, 12)]
    last = logged(run)[5]
    assert last == pytest.approx(cosine(5 * BATCH, SEEN), rel=1e-6)  # the past stays
    assert "key" in caplog.text and "max_samples" in caplog.text
    assert f"| {last:.4g}" in caplog.text and f"| {rates[6]:.4g}" in caplog.text  # the jump is said
    assert evidence(run)["samples_seen"] == 96


def test_extend_constant_keeps_the_rate_of_the_last_step(run: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    fit_here(recipe, tmp_path, "--max_samples=80", "--extend=constant")
    rates = used(run)
    assert {rates[step] for step in range(6, 10)} == {cosine(5 * BATCH, SEEN)}
    # The same command, and the recipe alone, resume the extended run.
    for words in (["--extend=constant"], []):
        before = read_checkpoint(run)
        fit_here(recipe, tmp_path, "--max_samples=80", *words)
        assert_equal(before["state_dict"], read_checkpoint(run)["state_dict"], "state_dict")
    with pytest.raises(UserError, match="--extend schedule"):  # each further length is a choice again
        fit_here(recipe, tmp_path, "--max_samples=96")


def test_extend_cooldown_falls_over_the_stated_last_part(run: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    fit_here(recipe, tmp_path, "--max_samples=112", "--extend=cooldown", "--cooldown-samples=32")
    rates = used(run)
    kept = cosine(5 * BATCH, SEEN)
    assert {rates[step] for step in range(6, 10)} == {kept}
    assert [rates[step] for step in range(10, 14)] == pytest.approx([kept * (1 - (n / 4) ** 0.5) for n in range(4)])
    assert evidence(run)["schedule"]["hold"]["fall"] == 32
    fit_here(recipe, tmp_path, "--max_samples=152", "--extend=cooldown")
    assert evidence(run)["schedule"]["hold"]["fall"] == 8  # the last fifth of 40


def test_an_extended_run_that_is_interrupted_equals_one_that_is_not(
    run: Path, recipe: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "other")
    words = ["--max_samples=96", "--extend=cooldown", f"--data.init_args.batch_size={2 * BATCH}"]
    fit_here(recipe, tmp_path, *words)
    other = {**recipe, "trainer": {**recipe["trainer"], "default_root_dir": str(tmp_path / "other")}}
    stop(other, 7, tmp_path, *words)
    assert 48 < evidence(tmp_path / "other")["samples_seen"] < 96
    fit_here(other, tmp_path, *words)
    assert_same_run(run, tmp_path / "other")


def test_shorter_runs_are_said_and_never_go_back(
    run: Path, recipe: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match="has seen 48 samples, and max_samples is 24: nothing is left to train"):
        fit_here(recipe, tmp_path, "--max_samples=24")
    fit_here(recipe, tmp_path, "--max_samples=96", "--extend=schedule")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        fit_here(recipe, tmp_path, "--max_samples=96")
    assert "resumes with changes" not in caplog.text


@pytest.mark.parametrize(("batch", "samples", "sizes"), [(4, 64, [4] * 4), (16, 96, [16] * 3), (16, 88, [16, 16, 8])])
def test_another_batch_size_ends_at_exactly_max_samples(
    batch: int, samples: int, sizes: list[int], run: Path, recipe: dict[str, Any], tmp_path: Path
) -> None:
    words = [f"--max_samples={samples}", "--extend=schedule", f"--data.init_args.batch_size={batch}"]
    fit_here(recipe, tmp_path, *words)
    assert evidence(run)["samples_seen"] == samples
    seen = logged(run, "samples_seen")
    found = [seen[step] for step in sorted(seen)][5:]
    assert [int(after - before) for before, after in itertools.pairwise(found)] == sizes
    rates, first = used(run), SEEN
    for step, size in enumerate(sizes, start=6):  # the schedule follows the samples, whatever the batch
        assert rates[step] == pytest.approx(cosine(first, samples), rel=1e-12)
        first += size
    fit_here(recipe, tmp_path, *words)  # finished
    assert evidence(run)["samples_seen"] == samples


def test_another_batch_size_alone_needs_no_choice(run: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    stop(recipe, 8, tmp_path, "--max_samples=96", "--extend=schedule")
    seen = evidence(run)["samples_seen"]
    fit_here(recipe, tmp_path, "--max_samples=96", "--data.init_args.batch_size=4")
    assert evidence(run)["samples_seen"] == 96
    steps, rates = int(seen) // BATCH, used(run)
    assert rates[steps] == pytest.approx(cosine(seen, 96), rel=1e-12)
    assert rates[steps + 1] == pytest.approx(cosine(seen + 4, 96), rel=1e-12)


def test_a_free_key_changes_no_bit(
    run: Path, recipe: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(run, tmp_path / "other")
    words = ["--max_samples=96", "--extend=schedule"]
    fit_here(recipe, tmp_path, *words)
    recipe["trainer"]["default_root_dir"] = str(tmp_path / "other")
    recipe["trainer"]["callbacks"] = [{"class_path": "leam_mm.callbacks.gradient_norms.GradientNorms"}]
    recipe["data"]["init_args"]["loading"]["workers"] = 1
    with caplog.at_level(logging.INFO):
        fit_here(recipe, tmp_path, *words, "--trainer.enable_progress_bar=true")
    assert_same_run(run, tmp_path / "other")
    assert "data.init_args.loading.workers" in caplog.text and "free: speed" in caplog.text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (LR, "0.001"),
        ("model.init_args.optimizer.init_args.weight_decay", "0.5"),
        ("model.init_args.schedule.kind", "constant"),
        ("data.init_args.seed", "6"),
        ("data.init_args.captions.per_image", "2"),
        ("data.init_args.image.crop_scale", "[0.5, 1.0]"),
        ("trainer.precision", "bf16-mixed"),
        ("trainer.gradient_clip_val", "1.0"),
        ("model.init_args.loss.init_args.label_smoothing", "0.1"),
        ("model.init_args.encoder.text.width", "64"),
        ("seed_everything", "2"),
    ],
)
def test_what_changes_the_result_is_refused_by_name(
    key: str, value: str, run: Path, recipe: dict[str, Any], tmp_path: Path
) -> None:
    resolved = key.replace("image.", "image.init_args.").replace("encoder.", "encoder.init_args.")
    with pytest.raises(UserError, match=rf"{resolved} .*--allow-change {resolved}") as caught:
        fit_here(recipe, tmp_path, "--max_samples=96", "--extend=schedule", f"--{key}={value}")
    assert "\n" not in str(caught.value)
    assert len(step_losses(run)) == 6


def test_a_key_that_does_not_exist_is_refused(recipe: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--allow-change model\.init_args\.learning_rate: no such key"):
        fit_here(recipe, tmp_path, "--allow-change=model.init_args.learning_rate")


def test_data_are_compared_by_their_merkle_root(
    run: Path, recipe: dict[str, Any], toy_shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(toy_shards, tmp_path / "moved")
    recipe["data"]["init_args"]["train"] = str(tmp_path / "moved")
    with caplog.at_level(logging.INFO):
        fit_here(recipe, tmp_path, "--max_samples=56", "--extend=schedule")
    assert "free: the same data (Merkle root)" in caplog.text
    write_toy_shards(tmp_path / "others", samples=80)
    recipe["data"]["init_args"]["train"] = str(tmp_path / "others")
    words = ["--max_samples=64", "--extend=schedule"]
    with pytest.raises(UserError, match=r"data\.init_args\.train"):
        fit_here(recipe, tmp_path, *words)
    fit_here(recipe, tmp_path, *words, "--allow-change=data.init_args.train")
    recorded = [change for change in evidence(run)["changes"] if change["effect"].startswith("allowed")]
    assert {change["key"] for change in recorded} >= {"data.init_args.train"}
    assert recorded[0]["samples"] == 56
    # Both data sets stay in the evidence: this model was trained on either.
    data = evidence(run)["data"]
    assert next(iter(data)) == str(tmp_path / "others") and len(set(data.values())) == 2
    fit_here(recipe, tmp_path, "--max_samples=72", "--extend=schedule")
    assert evidence(run)["data"] == data
    shutil.rmtree(tmp_path / "others")
    write_toy_shards(tmp_path / "others", samples=60)  # other content at the same path
    with pytest.raises(UserError, match=r"data\.init_args\.train \w{12} -> \w{12}"):
        fit_here(recipe, tmp_path, "--max_samples=72")
    words = ["--max_samples=80", "--extend=schedule", "--allow-change=data.init_args.train"]
    fit_here(recipe, tmp_path, *words)
    assert len(set(evidence(run)["data"].values())) == 3


def test_a_moved_tokenizer_is_free_and_another_one_is_not(
    run: Path, recipe: dict[str, Any], toy_tokenizer: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(toy_tokenizer, tmp_path / "tokenizer")
    recipe["model"]["init_args"]["tokenizer"] = str(moved)
    recipe["data"]["init_args"]["captions"]["tokenizer"] = str(moved)
    fit_here(recipe, tmp_path)
    file = next(path for path in sorted(moved.iterdir()) if path.suffix == ".json")
    file.write_text(file.read_text() + "\n")
    with pytest.raises(UserError, match=r"model\.init_args\.tokenizer"):
        fit_here(recipe, tmp_path)


def test_a_named_checkpoint_is_compared_as_the_last_one(run: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["ckpt_path"] = str(run / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match="--allow-change data"):
        fit_here(recipe, tmp_path, "--data.init_args.seed=6")


def test_a_checkpoint_of_an_earlier_version_resumes(run: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    path = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    for name in ("steps", "schedule", "changes"):
        del checkpoint["leam_mm"][name]
    lines = checkpoint["leam_mm"]["config"].splitlines(keepends=True)
    kept = [line for line in lines if "max_scale" not in line and not line.startswith(("extend", "allow", "cooldown"))]
    assert len(kept) <= len(lines) - 2
    checkpoint["leam_mm"]["config"] = "".join(kept)
    torch.save(checkpoint, path)
    fit_here(recipe, tmp_path, "--max_samples=96", "--extend=schedule")
    assert used(run)[6] == cosine(SEEN, 96)
    with pytest.raises(UserError, match=r"max_scale"):
        torch.save(checkpoint, path)
        fit_here(recipe, tmp_path, "--model.init_args.max_scale=50", "--max_samples=96", "--extend=schedule")
