"""Submitting: the command line, the checks, each failure in one line, and a dry run without Slurm."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from toys.recipes import ROOT, clip_recipe

from leam_mm.errors import UserError, one_line
from leam_mm.launch import preflight, recipe_checks
from leam_mm.launch.job import Job
from leam_mm.launch.job_settings import JobSettings, make_job
from leam_mm.launch.preflight import Finding
from leam_mm.launch.programs import PROGRAMS, option, with_processes
from leam_mm.launch.resolved_recipe import ResolvedRecipe
from leam_mm.launch.run_record import read_record
from leam_mm.launch.submit import SubmitSettings
from leam_mm.launch.submit_words import split_words
from leam_mm.launch.sweep import read_overrides


def made(cluster: str, run: Path, time: str = "12h", **more: object) -> Job:
    settings = JobSettings(cluster=cluster, time=time, **more)
    return make_job(settings, run, ("train.py", "fit", "--config", "recipe.yaml"))


def failures(findings: Iterable[Finding]) -> list[str]:
    return [one.text for one in findings if one.verdict == "failed"]


def test_own_options_may_stand_anywhere_and_the_rest_goes_to_train_py() -> None:
    given = "--cluster lumi_g --nodes=2 r.yaml --config o.yaml --model.lr 3 --dry_run --account a -- --nodes 5"
    words = given.split()
    own, recipe, rest = split_words(SubmitSettings, words)
    assert own == ["--cluster", "lumi_g", "--nodes=2", "--dry_run", "--account", "a"]
    assert recipe == "r.yaml" and rest == ["--config", "o.yaml", "--model.lr", "3", "--nodes", "5"]
    with pytest.raises(UserError, match="write the recipe"):
        split_words(SubmitSettings, ["--model.lr", "3", "r.yaml"])
    with pytest.raises(UserError, match="--account has no value"):
        split_words(SubmitSettings, ["r.yaml", "--account"])


@pytest.mark.parametrize(
    ("check", "cluster", "options", "message"),
    [
        ("account", "lumi_g", {}, "give --account PROJECT"),
        (
            "queue",
            "lumi_g",
            {"time": "49h"},
            "standard-g: 2-01:00:00 is longer than 2-00:00:00: give --time 2-00:00:00",
        ),
        ("queue", "lumi_g", {"nodes": 1025}, "standard-g: 1025 nodes are more than 1024"),
        ("queue", "lumi_g", {"partition": "dev-g", "time": "4h"}, "dev-g: 0-04:00:00 is longer than 0-03:00:00"),
        ("queue", "leonardo", {"qos": "boost_qos_lprod", "nodes": 9}, "boost_qos_lprod: 9 nodes are more than 8"),
        ("queue", "juwels_booster", {"partition": "largebooster", "nodes": 4}, "4 nodes are fewer than 257"),
        ("nodes", "claix", {"nodes": 52}, "has 51 such nodes"),
        ("nodes", "lumi_g", {"cpus_per_task": 8}, "8 tasks of 8 cores need 64, a node has 56"),
        ("software", "lumi_g", {}, "set LEAM_CONTAINER to yours, or give --python"),
        ("internet", "marenostrum5", {}, "reach no internet: run the program on a login or transfer node"),
    ],
)
def test_a_failed_check_is_one_line_with_the_fix(
    check: str, cluster: str, options: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LEAM_PYTHON", "LEAM_CONTAINER", "SBATCH_ACCOUNT"):
        monkeypatch.delenv(name, raising=False)
    found = failures(getattr(preflight, f"check_{check}")(made(cluster, tmp_path, **options)))
    assert len(found) == 1 and message in found[0] and "\n" not in found[0], found


def test_the_same_checks_pass_where_nothing_is_wrong(tmp_path: Path) -> None:
    job = made("lumi_g", tmp_path, nodes=16, account="project_1", time="48h", python="python3")
    for check in (preflight.check_account, preflight.check_queue, preflight.check_nodes, preflight.check_software):
        assert [one.verdict for one in check(job)] == ["ok"], check.__name__
    unknown = preflight.check_queue(made("capella", tmp_path, partition="other"))
    assert [one.verdict for one in unknown] == ["not checked"]


def test_paths_that_compute_nodes_do_not_see(tmp_path: Path) -> None:
    job = made("jupiter", Path("/p/project/runs"), account="a")
    (tmp_path / "link").symlink_to("/p/data")
    found = failures(preflight.check_paths(job, {"data": tmp_path / "link", "run": job.run, "code": Path("/e/code")}))
    assert len(found) == 2 and all("compute nodes do not see /p" in text for text in found), found


def test_a_full_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(tmp_path)
    job = made("lumi_g", tmp_path / "not" / "there")
    for inodes, size, verdict in ((5, 1 << 40, "failed"), (1 << 20, 1 << 20, "warning"), (1 << 20, 1 << 40, "ok")):
        values = [real.f_bsize, 1, size, size, size, 1 << 30, inodes, inodes, real.f_flag, real.f_namemax]
        monkeypatch.setattr(os, "statvfs", lambda _, values=values: os.statvfs_result(values))
        assert [one.verdict for one in preflight.check_space(job)] == [verdict]


def test_a_run_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    found = failures(preflight.check_space(made("cpu", tmp_path / "file" / "run")))
    assert found == [f"{tmp_path}/file is no folder: give another --run, or make it a folder that you may write"]
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root, who may write everywhere
    found = failures(preflight.check_space(made("cpu", tmp_path / "run")))
    assert len(found) == 1 and f"{tmp_path} cannot be written: give another --run" in found[0]


@pytest.mark.parametrize("record", ["{}", "[]", '{"name": "a", "cluster": "cpu", "jobs": []}', '{"name": "a"', "null"])
def test_a_damaged_record_is_one_line(tmp_path: Path, record: str) -> None:
    (tmp_path / "launch.json").write_text(record)
    with pytest.raises(UserError, match=r"launch.json cannot be read .*: restore it, or submit the run again"):
        read_record(tmp_path)


def recipe(tmp_path: Path, shards: Path, tokenizer: Path) -> ResolvedRecipe:
    return ResolvedRecipe(clip_recipe(tmp_path / "run", shards, tokenizer), tmp_path)


def test_checks_of_a_recipe(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    good = recipe(tmp_path, toy_shards, toy_tokenizer)
    job = made("cpu", good.run, nodes=2)
    findings = [*recipe_checks.check_batch(good, job), *recipe_checks.check_shards(good)]
    findings += recipe_checks.check_models(good)
    assert {one.verdict for one in findings} == {"ok"}, findings
    total = sum(json.loads(line)["samples"] for line in (toy_shards / "manifest.jsonl").read_text().splitlines())
    assert any(f"{total:,} samples in" in one.text for one in findings)
    uneven = failures(recipe_checks.check_batch(good, replace(job, nodes=3)))
    assert uneven == ["data.init_args.batch_size 8 is no multiple of 3 shares: give --nodes 2"]


def test_shards_that_are_missing_or_cut_off(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    (tmp_path / "shards").mkdir()
    for file in toy_shards.iterdir():
        (tmp_path / "shards" / file.name).write_bytes(file.read_bytes())
    tar = next((tmp_path / "shards").glob("*.tar"))
    with open(tar, "ab") as file:
        file.truncate(1000)
    found = failures(recipe_checks.check_shards(recipe(tmp_path, Path("shards"), toy_tokenizer)))
    assert len(found) == 1 and "has 1000 bytes, its manifest says" in found[0], found
    tar.unlink()
    found = failures(recipe_checks.check_shards(recipe(tmp_path, Path("shards"), toy_tokenizer)))
    assert len(found) == 1 and "copy it again" in found[0], found
    found = failures(recipe_checks.check_shards(recipe(tmp_path, Path("nowhere"), toy_tokenizer)))
    assert len(found) == 1 and "does not exist: make the shards first" in found[0], found


def test_models_that_are_not_on_this_machine(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    found = recipe(tmp_path, toy_shards, toy_tokenizer)
    found.settings["model"]["init_args"]["tokenizer"] = "google/not-a-model"
    found.settings["model"]["init_args"]["frozen"] = {"clip": "runs/not/there", "codec": str(tmp_path)}
    texts = failures(recipe_checks.check_models(found))
    assert len(texts) == 2 and all("does not exist" in text for text in texts), texts
    assert "download the model there while online" in texts[0] and "model.init_args.frozen.clip" in texts[1]


def test_a_published_model_is_looked_up_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "holds no model of that name" in (recipe_checks._missing(tmp_path / "a/b", "a/b") or "")
    (tmp_path / "models--a--b" / "snapshots" / "1").mkdir(parents=True)
    (tmp_path / "models--a--b" / "snapshots" / "1" / "config.json").touch()
    assert recipe_checks._missing(tmp_path / "a/b", "a/b") is None


def test_programs_get_a_process_for_each_device_or_core() -> None:
    words = ("--shards", "s", "--device", "cuda")
    assert with_processes(words, PROGRAMS["encode_latents"], 4, 32)[-2:] == ("--processes", "4")
    assert with_processes(words, PROGRAMS["vet_shards"], 0, 32)[-2:] == ("--processes", "32")
    assert with_processes(("--processes=2",), PROGRAMS["vet_shards"], 0, 32) == ("--processes=2",)
    assert with_processes(words, PROGRAMS["embed_shards"], 1, 32) == words
    assert option(("--output=a", "--output", "b"), "--output") == "b" and option((), "--output") is None


def test_lists_of_overrides(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("- [--seed_everything, 1]\n- [--max_samples, '64']\n")
    assert read_overrides(path) == [("--seed_everything", "1"), ("--max_samples", "64")]
    for wrong in ("a: 1", "[]", "- --seed", "- [{a: 1}]", "- ["):
        path.write_text(wrong)
        with pytest.raises(UserError) as found:
            read_overrides(path)
        assert str(path) in one_line(found.value)


def call(*words: str, cwd: Path = ROOT, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the launcher as a person does, without Slurm's commands unless a PATH is given."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "LEAM"))}
    environment |= {"PATH": path or "/nowhere", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "leam_mm.launch", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_dry_run_needs_no_slurm_and_writes_nothing(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    run = tmp_path / "run"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(clip_recipe(run, toy_shards, toy_tokenizer)))
    words = ["submit", "--cluster", "lumi_g", "--nodes", "2", "--time", "2h", str(tmp_path / "recipe.yaml")]
    done = call(*words, "--max_samples", "128", "--dry-run")
    assert done.returncode == 0, done.stderr
    for text in (
        *("4.0 node hours, 32.0 GPU hours", "GPU hours not known", "needs an account", "8 is no multiple of 16 shares"),
        *("sbatch is not installed on this machine", "#SBATCH --nodes=2", "--max_samples 128", "model FLOP"),
        "--energy.grams_per_kwh=79.2 ",
        *("dry run: nothing is written or submitted; submit would refuse: 3 checks failed", "samples in"),
    ):
        assert text in done.stdout, (text, done.stdout)
    assert not run.exists()
    wrong = call(*words, "--model.init_args.loss.class_path", "nothing.Loss")
    assert wrong.returncode == 2 and "train.py refuses" in wrong.stderr and len(wrong.stderr.splitlines()) == 1


def test_a_program_without_slurm(tmp_path: Path) -> None:
    program = str(ROOT / "data_tools" / "encode_latents.py")
    words = ["submit", "--cluster", "leonardo", "--account", "a", "--program", program]
    arguments = ["--", "--shards", "s", "--output", str(tmp_path / "latents"), "--device", "cuda"]
    shown = call(*words, "--dry-run", *arguments)
    assert shown.returncode == 0, shown.stderr
    assert "--processes 4" in shown.stdout and "--gres=gpu:4" in shown.stdout and "--cpus-per-task=32" in shown.stdout
    refused = call(*words, *arguments)
    assert refused.returncode == 2 and "sbatch is not installed here" in refused.stderr
    assert not list(tmp_path.iterdir())
    several = call(*words, "--nodes", "2", *arguments)
    assert several.returncode == 2 and "encode_latents runs on one node" in several.stderr


def test_a_download_is_an_array_and_a_last_job(tmp_path: Path) -> None:
    words = ["submit", "--cluster", "cpu", "--nodes", "3", "--program", str(ROOT / "data_tools" / "download_shards.py")]
    shown = call(*words, "--dry-run", "--", "--table", "t.parquet", "--output", str(tmp_path / "shards"))
    assert shown.returncode == 0, shown.stderr
    assert "#SBATCH --array=0-2" in shown.stdout and "2) more=(--slice 2/3)" in shown.stdout
    assert shown.stdout.count("#!/bin/bash") == 2 and f"{tmp_path}/shards.launch/last/job.sh" in shown.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fly"], "unknown command 'fly': the first word must be one of submit,"),
        (["submit", "--cluster", "lumi_g"], "name a recipe"),
        (["submit", "--cluster", "lumi", "--dry-run", "--program", "train.py"], "profiles are capella,"),
        (["submit", "--cluster", "cpu", "--program", "nothing.py"], "is no Python file"),
        (["submit", "--cluster", "cpu", "--program", "train.py", "--nodes", "0"], "--nodes is 0"),
        (["status", "runs/none"], "launch.json does not exist: give the run folder of a job"),
        (["clusters", "deep_thought"], "give the path of your own YAML"),
    ],
)
def test_wrong_words_are_one_line_and_exit_code_2(words: list[str], message: str) -> None:
    done = call(*words)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_each_command_has_help() -> None:
    for command in ("submit", "sweep", "status", "logs", "stop", "resume", "clusters"):
        done = call(command, "--help")
        assert done.returncode == 0 and "usage: python -m leam_mm.launch" in done.stdout, command
    assert "submit,sweep,status" in call("--help").stdout
