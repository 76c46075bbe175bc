"""Prediction beside measurement of a finished run; what was not measured stays empty."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from toys.calibrations import CALIBRATION
from toys.command_line import fit_here
from toys.recipes import clip_recipe

from leam_mm.checkpoint import EVIDENCE, find_checkpoint, read_checkpoint
from leam_mm.checkpoint_file import write_with_digest
from leam_mm.errors import UserError
from leam_mm.planning.__main__ import main
from leam_mm.planning.calibration import Cost
from leam_mm.planning.cluster_profile import load_profile
from leam_mm.planning.plan_comparison import ComparedValue, Measured, Predicted, compare, node_watts, read_measured

MEASURED = Measured(
    seconds=7200.0, samples=72_000, cpu_seconds=3600.0, devices=8, nodes=2, on_gpus=True, kwh=11.0, coverage="node",
    measured_share=1.0, source="Cray pm_counters energy",
)  # fmt: skip


def by_name(values: list[ComparedValue]) -> dict[str, ComparedValue]:
    return {value.name: value for value in values}


def test_same_boundary_on_both_sides() -> None:
    profile = load_profile("jupiter")  # 3,000 W a node, 680 W a superchip, PUE 1.1, 381 g/kWh, 0.1902 euro/kWh
    assert node_watts(profile, "node") == 3000 and node_watts(profile, "gpu") == 0.75 * 4 * 680
    assert node_watts(profile, "cpu") is None and node_watts(None, "node") is None
    values = by_name(compare(Predicted(3600.0, None, 3000.0, "plan"), MEASURED, profile))
    assert values["time"].ratio == 2 and values["rate"].measured == 10 and values["rate"].predicted == 20
    assert values["GPU hours"].predicted == 8 and values["GPU hours"].measured == 16
    assert values["energy"].predicted == pytest.approx(6.0) and values["energy"].measured == 11.0
    assert "node" in values["energy"].note
    carbon = values["carbon, grid"]
    assert carbon.predicted == pytest.approx(6 * 1.1 * 0.381) and carbon.measured == pytest.approx(11 * 1.1 * 0.381)
    assert values["carbon, market"].predicted is None  # the profile knows no contract
    assert values["electricity"].measured == pytest.approx(11 * 1.1 * 0.1902)
    assert values["core hours"].predicted is None and values["core hours"].measured == 1


def test_energy_of_a_part_is_compared_with_that_part() -> None:
    half = dataclasses.replace(MEASURED, measured_share=0.5)
    energy = by_name(compare(Predicted(7200.0, None, 3000.0, "plan"), half, load_profile("jupiter")))["energy"]
    assert energy.predicted == pytest.approx(6.0) and "50%" in energy.note


def test_not_measured_is_not_zero() -> None:
    bare = dataclasses.replace(MEASURED, kwh=None, coverage="not measured", measured_share=0.0, on_gpus=False)
    values = by_name(compare(Predicted(7200.0, 3600.0, 3000.0, "plan"), bare, load_profile("jupiter")))
    for name in ("energy", "carbon, grid", "electricity"):
        assert values[name].measured is None and values[name].ratio is None and values[name].predicted
    assert "GPU hours" not in values and values["core hours"].ratio == 1
    unknown = by_name(compare(Predicted(None, None, None, "nothing"), bare, None))
    assert all(value.predicted is None and value.ratio is None for value in unknown.values())


def test_checkpoint_without_a_record_is_refused() -> None:
    with pytest.raises(UserError, match="no record of time and energy"):
        read_measured({"callbacks": {}}, {})


@pytest.fixture(scope="module")
def finished(toy_shards: Path, toy_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    fit_here(clip_recipe(folder / "run", toy_shards, toy_tokenizer, max_samples=80), folder)
    return folder / "run"


def test_finished_run_beside_its_calibration(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = read_checkpoint(finished)["callbacks"]["EnergyRecord"]
    batch = Cost(record["seconds"] / 10, record["cpu_seconds"] / 10)
    none = Cost(0.0, 0.0)
    exact = dataclasses.replace(CALIBRATION, batch_size=8, batch=batch, first=none, save=none, callbacks={})
    exact.write(tmp_path / "c.json")
    main(["compare", str(finished), "--calibration", str(tmp_path / "c.json")])  # ends normally: exit code 0
    printed = capsys.readouterr().out
    assert "not known" in printed and "predicted" in printed
    result = json.loads((finished / "comparison.json").read_text())
    found = {value["name"]: value for value in result["values"]}
    assert found["time"]["measured"] == record["seconds"] and found["time"]["ratio"] == pytest.approx(1)
    assert found["core hours"]["ratio"] == pytest.approx(1)
    assert found["rate"]["measured"] == pytest.approx(80 / record["seconds"])
    if record["joules"] is None:
        assert found["energy"]["measured"] is None and "not measured" in printed


def test_cluster_comes_from_the_submitted_job(finished: Path, tmp_path: Path) -> None:
    (finished / "launch.json").write_text(json.dumps({"cluster": "jupiter"}))
    try:
        main(["compare", str(finished), "--output", str(tmp_path / "out.json")])
    finally:
        (finished / "launch.json").unlink()
    result = json.loads((tmp_path / "out.json").read_text())
    assert "jupiter.yaml" in result["predicted_from"] and result["values"][0]["predicted"] > 0
    main(["compare", str(finished), "--output", str(tmp_path / "out.json")])
    assert json.loads((tmp_path / "out.json").read_text())["values"][0]["predicted"] is None


def test_plan_of_the_submission_is_the_prediction(finished: Path, tmp_path: Path) -> None:
    estimates = [
        {"name": "low", "hours": 4.0},
        {"name": "mid", "hours": 2.0, "mfu": 0.3},
        {"name": "high", "hours": 1.0},
    ]
    record = finished / "launch.json"
    record.write_text(json.dumps({"cluster": "jupiter", "plan_of_the_run": estimates}))
    try:
        main(["compare", str(finished), "--output", str(tmp_path / "out.json")])
        result = json.loads((tmp_path / "out.json").read_text())
        assert result["values"][0]["predicted"] == 7200 and "submitted" in result["predicted_from"]
        record.write_text("{")
        with pytest.raises(UserError, match="cannot be read"):
            main(["compare", str(finished), "--output", str(tmp_path / "out.json")])
    finally:
        record.unlink()


def test_measured_energy_of_a_checkpoint(finished: Path, tmp_path: Path) -> None:
    checkpoint: dict[str, Any] = read_checkpoint(finished)
    checkpoint["callbacks"]["EnergyRecord"] |= {
        "joules": 7.2e6, "coverage": "gpu", "source": "NVML", "node_seconds": 100.0, "measured_node_seconds": 90.0,
    }  # fmt: skip
    path = tmp_path / "last.ckpt"
    with open(path, "xb+") as file:
        write_with_digest(checkpoint, file)
    main(["compare", str(path), "--cluster", "jupiter", "--output", str(tmp_path / "out.json")])
    found = {value["name"]: value for value in json.loads((tmp_path / "out.json").read_text())["values"]}
    assert found["energy"]["measured"] == pytest.approx(2.0) and "gpu, 90%" in found["energy"]["note"]
    assert "GPU hours" in found and find_checkpoint(path) == path
    assert yaml.safe_load(checkpoint[EVIDENCE]["config"])["max_samples"] == 80
