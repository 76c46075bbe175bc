"""Records name no folder of the machine that wrote them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluate
from leam_mm.audits.audit import AuditResult, Threshold
from leam_mm.evaluators.finished_evaluators import input_digests
from leam_mm.evaluators.recorded_paths import recorded_path, without_machine_paths
from leam_mm.evaluators.results import append_results, settings
from leam_mm.release.stage_facts import recorded_recipe


class Setting:
    def __init__(self, *paths: Path) -> None:
        self.paths, self.address = list(paths), str(paths[0])


def test_a_path_in_the_working_folder_is_relative_and_another_one_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "runs").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert recorded_path(tmp_path / "here" / "runs") == "runs" and recorded_path(tmp_path / "other") == "other"
    assert recorded_path("../other") == "../other" and recorded_path("/") == "/"
    given = {
        str(tmp_path / "other"): [f"read from {tmp_path}/here/runs; {tmp_path / 'other'}, twice {tmp_path / 'other'}."],
        "kept": [f"https://example.org{tmp_path / 'other'}", "a/b and/or 1/2", "/no/such/file", 3, None],
    }
    assert without_machine_paths(given) == {
        "other": ["read from runs; other, twice other."], "kept": given["kept"]
    }  # fmt: skip


def test_two_inputs_of_one_name_keep_their_digests(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.csv").write_text(name)
    given = Setting(tmp_path / "a" / "x.csv", tmp_path / "b" / "x.csv")
    found = input_digests(given)
    assert list(found) == ["x.csv", "x.csv (2)"] and len(set(found.values())) == 2
    assert settings(given) == {"paths": ["x.csv", "x.csv"], "address": "x.csv"}


def test_a_result_of_an_audit_names_no_folder(tmp_path: Path) -> None:
    result = AuditResult("x", 1, 1, 1, "count", 1, Threshold(most=2), {str(tmp_path): 1}, f"of {tmp_path}")
    append_results(tmp_path, [result], {"checkpoints": {"clip": {"path": str(tmp_path), "data": {str(tmp_path): "r"}}}})
    assert str(tmp_path) not in (tmp_path / "results.jsonl").read_text()


def test_a_command_with_absolute_paths_writes_none(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("real", "generated"):
        (tmp_path / name).mkdir()
        for number in range(12):
            pixels = random.integers(0, 256, (16, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    folders = [f"--{name}={tmp_path / name}" for name in ("real", "generated")]
    evaluate.main(["images", *folders, f"--output={tmp_path / 'found'}", "--features=efficientnet"])
    lines = [json.loads(line) for line in (tmp_path / "found" / "results.jsonl").read_text().splitlines()]
    assert any("real" in str(line["settings"]) for line in lines)
    for file in (tmp_path / "found").rglob("*"):
        assert file.is_dir() or str(tmp_path).encode() not in file.read_bytes(), file


def test_a_release_names_no_folder_of_the_machine(built_release: Path) -> None:
    for file in built_release.rglob("*"):
        assert file.is_dir() or str(built_release.parent).encode() not in file.read_bytes(), file
    recipe = "a: /data/clip\nb:\n- '/data/shards'\nc: //x y/z\nd: a/b\ntext: 'x: /y'\n"
    assert recorded_recipe(recipe) == "a: clip\nb:\n- 'shards'\nc: z\nd: a/b\ntext: 'x: /y'\n"
