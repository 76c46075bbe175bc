"""Averages of other widths, computed from a run's snapshots, as checkpoints for every program."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback
from safetensors.torch import load_file
from toys.generators import power_average
from toys.pages import metric_row
from toys.recipes import clip_recipe, codec_section, generator_section
from toys.releases import BUILD

from leam_mm.callbacks.ema_snapshots import FOLDER, read_snapshots
from leam_mm.checkpoint import EVIDENCE, find_checkpoint, load_module, read_checkpoint
from leam_mm.cli import main as train
from leam_mm.diffusion_module import LatentDiffusionModule
from leam_mm.errors import UserError
from leam_mm.files import file_sha256
from leam_mm.release import reconstruct_ema
from leam_mm.release.__main__ import main as release
from leam_mm.release.release_folder import write_release

SEEN: list[np.ndarray] = []
WEIGHT = "model.blocks.0.attention.img_qkv_proj.weight"


class Trajectory(Callback):
    """Records a weight after each step."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        SEEN.append(pl_module.denoiser.get_parameter(WEIGHT).detach().double().numpy().ravel().copy())


def fit(recipe: dict[str, Any], folder: Path) -> Path:
    run = Path(recipe["trainer"]["default_root_dir"])
    folder.mkdir(exist_ok=True)
    path = folder / f"{run.name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    train(["fit", "--config", str(path)])
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, toy_shards: Path, toy_tokenizer: Path) -> Path:
    """A generator trained for 64 steps with 16 snapshots of two widths."""
    folder = tmp_path_factory.mktemp("reconstruct")

    def recipe(name: str, samples: int) -> dict[str, Any]:
        return clip_recipe(folder / name, toy_shards, toy_tokenizer, max_samples=samples)

    clip = fit(recipe("clip", 8), folder / "recipes")
    codec = fit({**recipe("codec", 8), "model": codec_section()}, folder / "recipes")
    made = {**recipe("generator", 512), "model": generator_section(clip, codec)}
    made["model"]["init_args"]["ema"] = {
        "class_path": "leam_mm.optim.power_ema.PowerFunction",
        "init_args": {"widths": [0.1, 0.05]},
    }
    snapshots = {"class_path": "leam_mm.callbacks.ema_snapshots.EmaSnapshots", "init_args": {"every_n_samples": 32}}
    made["trainer"]["callbacks"] = [snapshots, {"class_path": f"{__name__}.Trajectory"}]
    made["checkpoint"] = {"every_n_train_steps": 64}
    SEEN.clear()
    return fit(made, folder / "recipes")


def test_another_width_is_near_its_direct_average(run: Path) -> None:
    assert len(SEEN) == 64 and len(read_snapshots(run)) == 16
    written = reconstruct_ema.main(["--run", str(run), "--widths", "0.075", "0.1"])
    assert [path.name for path in written] == ["width-0.075.ckpt", "width-0.1.ckpt"]
    last = SEEN[-1]
    for path, width, limit in zip(written, (0.075, 0.1), (0.02, 1e-4), strict=True):
        module = load_module(path, LatentDiffusionModule)
        found = module.denoiser.get_parameter(WEIGHT).detach().double().numpy().ravel()
        exact = power_average(np.stack(SEEN), width)
        assert np.linalg.norm(found - exact) < limit * np.linalg.norm(last - exact)


def test_the_checkpoint_loads_like_any_other(run: Path) -> None:
    (path,) = reconstruct_ema.main(["--run", str(run), "--widths", "0.1", "--output", str(run / "here")])
    before, module = load_module(run, LatentDiffusionModule), load_module(path, LatentDiffusionModule)
    assert module.ema is None and module.ema_denoiser() is module.denoiser
    # Width 0.1 is that of the first average, which the run itself samples.
    for (name, mine), theirs in zip(
        module.denoiser.named_parameters(), before.ema_denoiser().parameters(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7, msg=name)
    a, b = (made.sample(["a red square"], seed=1, steps=2) for made in (module, before))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    content, old = read_checkpoint(path), read_checkpoint(run)
    assert "optimizer_states" not in content and not any(name.startswith("ema.") for name in content["state_dict"])
    evidence = content[EVIDENCE]
    assert evidence["samples_seen"] == 512 and evidence["frozen"] == old[EVIDENCE]["frozen"]
    assert evidence["reconstructed"]["width"] == 0.1 and len(evidence["reconstructed"]["snapshots"]) == 16
    assert "power-function profile of width 0.1" in evidence["config"].splitlines()[0]


def test_it_can_be_released(run: Path, tmp_path: Path) -> None:
    (path,) = reconstruct_ema.main(["--run", str(run), "--widths", "0.07", "--output", str(tmp_path)])
    facts = write_release(tmp_path / "release", "toy", "Apache-2.0", run.parent / "clip", path, None, [], [])
    assert [stage.kind for stage in facts.stages] == ["clip", "generator", "codec"]
    released = load_file(tmp_path / "release" / "transformer" / "diffusion_pytorch_model.safetensors")
    module = load_module(path, LatentDiffusionModule)
    assert torch.equal(released[WEIGHT.removeprefix("model.")], module.denoiser.get_parameter(WEIGHT))
    config = (tmp_path / "release" / "configs" / "generator.yaml").read_text(encoding="utf-8")
    assert "profile of width 0.07" in config


def test_a_release_takes_an_average_of_another_width(run: Path, tmp_path: Path) -> None:
    words = [*BUILD, "--clip", str(run.parent / "clip"), "--generator", str(run), "--name", "toy", "--output"]
    release([*words, str(tmp_path / "other"), "--average", "0.07"])
    (path,) = reconstruct_ema.main(["--run", str(run), "--widths", "0.07", "--output", str(tmp_path)])
    stage = json.loads((tmp_path / "other" / "leam_mm_release.json").read_text())["stages"]["generator"]
    assert stage["weights"] == "average with the power-function profile of width 0.07, from 16 snapshots"
    assert stage["checkpoint_sha256"] == file_sha256(path)  # so that results of that checkpoint belong to the release
    made = load_file(tmp_path / "other" / "transformer" / "diffusion_pytorch_model.safetensors")
    same = load_module(path, LatentDiffusionModule).denoiser.get_parameter(WEIGHT)
    assert torch.equal(made[WEIGHT.removeprefix("model.")], same)
    assert not [left for left in tmp_path.iterdir() if ".tmp-" in left.name]


def test_a_release_of_the_last_weights_refuses_results_of_the_average(run: Path, tmp_path: Path) -> None:
    words = [*BUILD, "--generator", str(run), "--name", "toy", "--average", "none", "--output", str(tmp_path / "last")]
    release(words)
    stages = json.loads((tmp_path / "last" / "leam_mm_release.json").read_text())["stages"]
    assert stages["generator"]["weights"] == "last weights; the average of the run is not released"
    made = load_file(tmp_path / "last" / "transformer" / "diffusion_pytorch_model.safetensors")
    module = load_module(run, LatentDiffusionModule)
    assert torch.equal(made[WEIGHT.removeprefix("model.")], module.denoiser.get_parameter(WEIGHT))
    assert not torch.equal(made[WEIGHT.removeprefix("model.")], module.ema_denoiser().get_parameter(WEIGHT))
    digest = file_sha256(find_checkpoint(run))
    row = metric_row("fid") | {"checkpoints": {"generator": {"sha256": digest}}}
    (tmp_path / "results.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="was measured on the average of generator, which is not released"):
        release([*words, "--results", str(tmp_path / "results.jsonl")])


@pytest.mark.parametrize(("average", "reason"), [("half", "give trained, none, or a width"), ("0.4", "not in")])
def test_averages_that_do_not_exist_are_refused(run: Path, tmp_path: Path, average: str, reason: str) -> None:
    words = ["build", "--generator", str(run), "--name", "toy", "--output", str(tmp_path / "r"), "--average", average]
    with pytest.raises(UserError, match=reason):
        release(words)
    with pytest.raises(UserError, match="give its folder as --generator"):
        release(["build", "--clip", str(run.parent / "clip"), *words[3:-1], "0.1"])
    assert not (tmp_path / "r").exists()


def test_an_earlier_end_takes_the_snapshots_until_then(run: Path) -> None:
    words = ["--run", str(run), "--widths", "0.1", "--output", str(run / "early")]
    (path,) = reconstruct_ema.main([*words, "--samples", "256"])
    content = read_checkpoint(path)[EVIDENCE]
    assert content["samples_seen"] == 256 and content["reconstructed"]["updates"] == 32
    found = load_module(path, LatentDiffusionModule).denoiser.get_parameter(WEIGHT).detach().double().numpy().ravel()
    exact = power_average(np.stack(SEEN[:32]), 0.1)
    assert np.linalg.norm(found - exact) < 1e-4 * np.linalg.norm(SEEN[31] - exact)
    with pytest.raises(UserError, match=r"no snapshot at sample 250: give one of \[32, 64"):
        reconstruct_ema.main([*words, "--samples", "250"])


def test_input_that_does_not_fit_is_refused(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = ["--run", str(run), "--output", str(tmp_path), "--widths"]
    with pytest.raises(UserError, match="relative width"):
        reconstruct_ema.main([*words, "0.4"])
    reconstruct_ema.main([*words, "0.28"])
    assert "the profile has an error of" in caplog.text
    from leam_mm.callbacks.ema_snapshots import Snapshot, write_snapshot

    other = write_snapshot(run / FOLDER, Snapshot(8, 1, (0.05,)), {"0.weight": torch.ones(2)})
    with pytest.raises(UserError, match="does not fit the network"):
        reconstruct_ema.main([*words, "0.1"])
    other.unlink()


def test_help_names_the_program(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["reconstruct_ema", "--help"])
    with pytest.raises(SystemExit):
        reconstruct_ema.main()
    assert "leam_mm.release.reconstruct_ema" in capsys.readouterr().out
