"""Calibration: a short real run is measured, its file is checked, and the time of whole runs follows from it."""

import copy
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from toys.calibrations import CALIBRATION
from toys.recipes import clip_recipe

from leam_mm.errors import UserError
from leam_mm.planning.__main__ import main
from leam_mm.planning.calibration import estimate_run, load_calibration
from leam_mm.planning.calibration_run import measure_loading, summarize, timed_recipe

RECIPE: dict[str, Any] = {
    "max_samples": 32_000,
    "model": {"class_path": CALIBRATION.model_class},
    "data": {"class_path": "leam_mm.data.pairs_module.PairsModule", "init_args": {"batch_size": 32, "validation": "v"}},
    "trainer": {
        "val_check_interval": 300,
        "callbacks": [{"class_path": "x.SampleGrid", "init_args": {"every_n_steps": 400}}],
    },
    "checkpoint": {"every_n_train_steps": 300},
}


def test_file_keeps_every_value(tmp_path: Path) -> None:
    CALIBRATION.write(tmp_path / "c.json")
    assert load_calibration(tmp_path / "c.json") == CALIBRATION
    assert CALIBRATION.samples_per_second == 64 and CALIBRATION.sustained_tflops == pytest.approx(0.064)
    assert CALIBRATION.save_bytes_per_second == 4_000_000
    assert dataclasses.replace(CALIBRATION, model_flops_per_sample=None).sustained_tflops is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("batch", {"seconds": -1, "cpu_seconds": 1}, "batch.seconds"),
        ("batch", {"seconds": 0.0, "cpu_seconds": 1}, "batch.seconds is 0"),
        ("batch", 3, "batch is 3"),
        ("batch_size", 0, "batch_size is 0"),
        ("batch_size", True, "batch_size is True"),
        ("gemm_tflops", float("nan"), "gemm_tflops is nan"),
        ("recipe", "a.yaml", "recipe is"),
        ("callbacks", {"x": {}}, "callbacks.x.seconds is None"),
        ("version", 7, "version is 7"),
        ("model_class", None, "model_class is None"),
    ],
)
def test_damaged_files_are_refused_by_name_key_and_value(tmp_path: Path, key: str, value: Any, message: str) -> None:
    path = tmp_path / "c.json"
    CALIBRATION.write(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(UserError, match=message) as caught:
        load_calibration(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_key_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    CALIBRATION.write(path)
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "save"}))
    with pytest.raises(UserError, match="save is missing"):
        load_calibration(path)
    path.write_text("[1]")
    with pytest.raises(UserError, match="no calibration"):
        load_calibration(path)
    with pytest.raises(UserError, match="cannot be read"):
        load_calibration(tmp_path / "nothing.json")


def test_whole_run_is_the_sum_of_its_parts() -> None:
    estimate = estimate_run(CALIBRATION, RECIPE)
    # 1,000 steps: 3 validations, 2 grids, saves after 300, 600 and 900 and at the end.
    assert estimate.seconds == pytest.approx(1000 * 0.5 + 10 + 3 * 2 + 2 * 3 + 4 * 0.25)
    assert estimate.cpu_seconds == pytest.approx(1000 * 0.4 + 9 + 3 * 1.5 + 2 * 2.5 + 4 * 0.125)
    assert estimate_run(CALIBRATION, RECIPE, samples=3200).parts["batches"].seconds == 50
    two = copy.deepcopy(RECIPE)
    two["trainer"]["devices"] = 2
    parts = estimate_run(dataclasses.replace(CALIBRATION, batch_size=16), two).parts
    assert (parts["batches"].seconds, parts["batches"].cpu_seconds) == pytest.approx((500, 800))  # twice the batches
    bare = estimate_run(dataclasses.replace(CALIBRATION, validation=None, callbacks={}), RECIPE)
    assert bare.missing == ("validation", "SampleGrid")
    with pytest.raises(UserError, match="calibrate with this recipe"):
        estimate_run(CALIBRATION, {**RECIPE, "model": {"class_path": "leam_mm.codec_module.LatentCodecModule"}})


def test_times_are_split_into_parts() -> None:
    # Batches of 1 s (0.75 s CPU with a worker), a start of 20 s, a grid of 5 s every 30 steps, one compilation of 9 s.
    steps = [[number, 1.0 if number else 21.0, 0.5] for number in range(70)]
    steps[29][1], steps[59][1], steps[40][1] = 6.0, 6.0, 10.0
    steps[29][2] = steps[59][2] = 4.5
    cpu = 70 * 0.75 + 15 + 2 * 4 + 1.5
    times = {
        "steps": steps, "warm_steps": 10, "warm_cpu_seconds": 10 * 0.75 + 15, "cpu_seconds": cpu,
        "validations": [[2.0, 1.5]],
    }  # fmt: skip
    batch, first, callbacks = summarize(times, RECIPE)
    assert (batch.seconds, batch.cpu_seconds) == pytest.approx((1.0, 0.75))
    assert first.seconds == pytest.approx(20 + 9) and first.cpu_seconds == pytest.approx(15)
    grid = callbacks.pop("SampleGrid")
    assert (grid.seconds, grid.cpu_seconds) == pytest.approx((5.0, 4.0)) and not callbacks
    with pytest.raises(UserError, match="--seconds"):
        summarize({**times, "steps": steps[:12]}, RECIPE)


def test_timed_recipe_keeps_the_work_and_leaves_the_run_alone(tmp_path: Path) -> None:
    recipe = copy.deepcopy(RECIPE)
    recipe["trainer"] |= {"devices": 4, "num_nodes": 2, "strategy": "ddp", "default_root_dir": "runs/mine"}
    recipe["ckpt_path"] = "last"
    before = json.dumps(recipe)
    timed = timed_recipe(recipe, tmp_path, 5.0)
    assert json.dumps(recipe) == before  # not changed
    assert timed["data"]["init_args"]["batch_size"] == 4  # of one device
    assert timed["trainer"]["default_root_dir"] == str(tmp_path) and timed["ckpt_path"] is None
    assert timed["trainer"]["devices"] == 1 and timed["model"] == recipe["model"]


def test_loader_is_measured_alone(toy_shards: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    recipe = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer)
    rate = measure_loading(recipe, 8, 0.2)
    assert rate is not None and 10 < rate < 1e6
    foreign = {**recipe, "data": {"class_path": "my_lab.data.Module", "init_args": {}}}
    assert measure_loading(foreign, 8, 0.2) is None


@pytest.mark.slow
def test_calibrate_measures_a_real_run(toy_shards: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    recipe = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer, max_samples=800)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    main(["calibrate", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "c.json"), "--seconds", "1"])
    found = load_calibration(tmp_path / "c.json")
    assert found.batch_size == 8 and found.batches >= 30 and found.device == "cpu"
    assert 0 < found.batch.seconds < 10 and 0 < found.batch.cpu_seconds < 10
    assert found.checkpoint_bytes > 1000 and found.save.seconds > 0
    assert found.model_flops_per_sample and found.gemm_tflops and found.load_samples_per_core_second
    assert found.allreduce_bytes_per_second is None and found.ranks == 1
    assert not (tmp_path / "run").exists()
    assert estimate_run(found, recipe).seconds > 100 * found.batch.seconds


@pytest.mark.slow
def test_faulty_recipe_is_one_line(toy_tokenizer: Path, tmp_path: Path) -> None:
    recipe = clip_recipe(tmp_path / "run", tmp_path / "no_shards", toy_tokenizer)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(UserError, match="fails on this machine") as caught:
        main(["calibrate", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "c.json"), "--seconds", "1"])
    assert "\n" not in str(caught.value) and not (tmp_path / "c.json").exists()


@pytest.mark.slow
def test_two_ranks_measure_an_all_reduce() -> None:
    code = "from leam_mm.planning.allreduce_speed import measure_allreduce; print(*measure_allreduce(2**20, 2))"
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29683"}
    command = [sys.executable, "-c", code]
    started = [
        subprocess.Popen(command, env={**common, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in started:
        bandwidth, ranks, backend = process.communicate(timeout=600)[0].split()[-3:]
        assert process.returncode == 0 and float(bandwidth) > 1e5 and (ranks, backend) == ("2", "gloo")


def test_plan_takes_the_measured_utilization(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.json"
    dataclasses.replace(CALIBRATION, model_flops_per_sample=1e12).write(file)  # 64 TFLOP/s
    words = ["plan", "configs/clip_vit_b32.yaml", "--calibration", str(file), "--cluster"]
    main([*words, "juwels_booster"])
    assert f"{64 / 312:.1%}" in capsys.readouterr().out
    with pytest.raises(UserError, match="not known"):
        main([*words, "cpu"])
    dataclasses.replace(CALIBRATION, model_flops_per_sample=1e14).write(file)
    with pytest.raises(UserError, match="more than the peak"):
        main([*words, "juwels_booster"])


def test_simulate_takes_measured_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    CALIBRATION.write(tmp_path / "c.json")
    output = tmp_path / "table.json"
    recipe = "configs/clip_vit_b32.yaml"
    calibration = ["--calibration", str(tmp_path / "c.json")]
    main(["simulate", recipe, "--cluster", "jupiter", *calibration, "--output", str(output)])
    table = json.loads(output.read_text())
    assert [point["nodes"] for point in table["points"]][:3] == [1, 2, 4] and table["estimate"] is True
    assert any("measured" in note for note in table["notes"]) and "Jülich" in capsys.readouterr().out
    main(["simulate", recipe, "--all-clusters", "--at-nodes", "16", "--output", str(output)])
    names = {point["cluster"] for point in json.loads(output.read_text())["points"]}
    assert {"jupiter", "lumi_g", "leonardo"} <= names
    with pytest.raises(UserError, match="calibrate"):
        main(["simulate", recipe, "--cluster", "cpu"])
