"""Options of a training together: bfloat16 beside float32, several ranks beside one, compiled blocks after a kill."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from toys.recipes import ROOT, clip_recipe, stable_recipe
from toys.runs import (
    assert_same_run,
    assert_same_training,
    last_checkpoint,
    loss_curve,
    run_recorded,
    run_training,
    seen_keys,
    step_losses,
    with_kill,
)

from leam_mm.cli import main

DTYPES: list[torch.dtype] = []


class LossType(Callback):
    """Notes in which precision the loss is."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):  # type: ignore[no-untyped-def]
        DTYPES.append(outputs["loss"].dtype)


def test_bfloat16_stays_close_to_float32(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    DTYPES.clear()
    for precision in ("32-true", "bf16-mixed"):
        made = clip_recipe(tmp_path / precision, toy_shards, toy_tokenizer, max_samples=80)
        made["trainer"] |= {"precision": precision, "callbacks": [{"class_path": f"{__name__}.LossType"}]}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(made))
        main(["fit", "--config", str(tmp_path / "recipe.yaml")])
    whole, half = ([float(loss) for _, loss in step_losses(tmp_path / name)] for name in ("32-true", "bf16-mixed"))
    assert half == pytest.approx(whole, rel=3e-2) and half != whole
    assert whole[-1] < 0.9 * whole[0] and set(DTYPES) == {torch.float32}
    weights = last_checkpoint(tmp_path / "bf16-mixed")["state_dict"].values()
    assert {weight.dtype for weight in weights if weight.is_floating_point()} == {torch.float32}


def everything(recipe: dict[str, Any]) -> dict[str, Any]:
    """Stages, patch dropout, layer-wise rates and a cool-down."""
    model = recipe["model"]["init_args"]
    model["encoder"]["vision"] |= {"patch_dropout": 0.25, "layers": 2}
    model["layer_decay"] = {"image": 0.7, "text": 0.9}
    model["schedule"] |= {"kind": "constant", "cooldown": {"steps": 3, "shape": "sqrt"}}
    recipe["data"]["init_args"]["stages"] = [
        {"samples": 0, "image_size": [8, 16], "text_length": 5},
        {"samples": 24, "image_size": 24, "patch_dropout": 0.5},
    ]
    return recipe


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("overlay", ["overlay_two_ranks.yaml", "overlay_fsdp2.yaml"])
def test_all_of_them_on_two_ranks_are_those_on_one(
    overlay: str, tmp_path: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    checkpointing = tmp_path / "checkpointing.yaml"
    entry = {"class_path": "leam_mm.callbacks.gradient_checkpointing.GradientCheckpointing"}
    checkpointing.write_text(yaml.safe_dump({"trainer": {"callbacks+": [entry]}}))
    runs = []
    for name, overlays in (("one", ()), ("two", (str(checkpointing), overlay))):
        recipe = everything(stable_recipe(tmp_path / name, toy_shards, toy_tokenizer, max_samples=64))
        runs.append(run_recorded(recipe, *overlays))
    assert seen_keys(runs[0]) == seen_keys(runs[1]) and len(loss_curve(runs[0])) == 8
    assert_same_training(*runs)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("compiler")
def test_compiled_blocks_go_on_bit_for_bit_after_a_kill(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    def recipe(name: str) -> dict[str, Any]:
        return everything(clip_recipe(tmp_path / name, toy_shards, toy_tokenizer, max_samples=64))

    overlay = f"--config={ROOT / 'configs' / 'overlay_compile.yaml'}"
    whole = run_training(recipe("whole"), tmp_path / "a", overlay)
    assert whole.returncode == 0 and "torch.compile is not used" not in whole.stderr, whole.stderr
    assert run_training(with_kill(recipe("broken"), 5), tmp_path / "b", overlay).returncode == -signal.SIGKILL
    resumed = run_training(recipe("broken"), tmp_path / "b", overlay, "--data.init_args.loading.workers=2")
    assert resumed.returncode == 0, resumed.stderr
    assert len(step_losses(tmp_path / "whole")) == 8
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
