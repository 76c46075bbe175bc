"""The doctor: real checks on this machine, on one process and on two ranks."""

import faulthandler
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from toys.doctor_ranks import chosen, free_port, rank_one_dies, rank_one_is_ahead, run_ranks, stuck_second_group

from leam_mm.launch import check_process
from leam_mm.launch.check_process import Check, Target, run_check
from leam_mm.launch.check_result import CheckResult
from leam_mm.launch.doctor import CHECKS, DoctorSettings, examine
from leam_mm.launch.rank_environment import RankEnvironment

ALONE = RankEnvironment(0, 1, 0, 1, "here", "", 0, "none")
ROOT = Path(__file__).resolve().parents[1]
several_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")


def only(results: list[CheckResult]) -> CheckResult:
    assert len(results) == 1
    return results[0]


def program(*options: str, pin: str = "") -> "subprocess.CompletedProcess[str]":
    command = [*pin.split(), sys.executable, "-m", "leam_mm.launch", "doctor", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def named(report: dict[str, Any], name: str, rank: int | None = None) -> dict[str, Any]:
    found = [one for one in report["results"] if one["name"] == name and rank in (None, one["rank"])]
    assert found, f"{name} is not in {[one['name'] for one in report['results']]}"
    return found[0]


@several_cores
def test_two_ranks(tmp_path: Path) -> None:
    """A rank pinned to one core is named; ranks reduce, compare clocks, and share a folder with its lock."""
    settings = DoctorSettings(json=tmp_path / "doctor.json", run=tmp_path / "run", wait=60)
    checks = [*chosen("affinity", "master", "clock", "shared", "all_reduce"), stuck_second_group(2)]
    first = min(os.sched_getaffinity(0))
    report, text, codes = run_ranks(tmp_path, settings, checks, pinned={1: {first}})
    assert codes == [1, 0] and report["seconds"] < 60 and report["verdict"] == "fail" and report["ranks"] == 2
    pinned = named(report, "cpu affinity", 1)
    assert pinned["verdict"] == "fail" and pinned["value"] == 1 and "SRUN_CPUS_PER_TASK" in pinned["fix"]
    assert named(report, "cores of ranks")["verdict"] == "fail"
    reduced = named(report, "all-reduce")
    assert reduced["value"] > 0 and reduced["data"]["backend"] == "gloo" and reduced["verdict"] == "pass"
    assert named(report, "clock")["verdict"] == "pass"
    assert named(report, "shared folder", 1)["verdict"] == "pass"
    hung = named(report, "second_group", 0)
    assert hung["verdict"] == "fail" and "FI_MR_CACHE_MONITOR=userfaultfd" in hung["fix"]
    assert "ranks 0, 1" in text and "SRUN_CPUS_PER_TASK" in text
    assert not list((tmp_path / "run").iterdir())  # nothing is left behind


def test_missing_rank_is_named_in_time(tmp_path: Path) -> None:
    settings = DoctorSettings(json=tmp_path / "doctor.json", wait=3)
    report, text, codes = run_ranks(tmp_path, settings, chosen("affinity", "all_reduce"), world=3)
    assert codes[0] == 1 and report["seconds"] < 20
    missing = named(report, "answer", 2)
    assert missing["verdict"] == "fail" and "rank 2" in missing["reason"] and "did not join" in missing["reason"]
    assert named(report, "all_reduce")["verdict"] == "not run"
    assert "rank 2" in text


def test_rank_that_dies_is_named_with_its_check(tmp_path: Path) -> None:
    settings = DoctorSettings(json=tmp_path / "doctor.json", wait=2)
    report, _, codes = run_ranks(tmp_path, settings, [Check("deadly", rank_one_dies, 10), *chosen("all_reduce")])
    assert codes == [1, -9] and report["seconds"] < 20
    assert "last check was deadly" in named(report, "answer", 1)["reason"]
    assert "--exclude=" in named(report, "answer", 1)["fix"]
    assert named(report, "all_reduce", 0)["verdict"] == "not run"


def test_clock_of_another_host(tmp_path: Path) -> None:
    settings = DoctorSettings(json=tmp_path / "doctor.json")
    clock = Check("clock", rank_one_is_ahead, 20, together=True)
    report, text, _ = run_ranks(tmp_path, settings, [clock], local=0)  # both ranks lead a host
    found = named(report, "clock")
    assert found["verdict"] == "warn" and abs(found["value"] - 5) < 0.5 and "rank 1" in found["reason"]
    assert "synchronize the clock" in text


def test_rank_without_rank_zero_reports_itself(tmp_path: Path) -> None:
    settings = DoctorSettings(json=tmp_path / "doctor.json", wait=1)
    # Its host has no rank 0, so its first rank reports.
    report, _, codes = run_ranks(tmp_path, settings, chosen("affinity", "all_reduce"), started=(1,), port=9, local=0)
    assert codes == [1]
    assert "127.0.0.1:9" in named(report, "meeting")["reason"]
    assert named(report, "cpu affinity")["verdict"] == "pass"


@several_cores
def test_program(tmp_path: Path) -> None:
    """One process that is pinned to one core: table, JSON and exit code."""
    out, core = tmp_path / "doctor.json", min(os.sched_getaffinity(0))
    names = ["affinity", "tmp", "writing", "files", "run_folder", "interfaces", "memory", "clock"]
    done = program("--json", str(out), "--run", str(tmp_path / "run"), "--only", *names, pin=f"taskset -c {core}")
    report = json.loads(out.read_text())
    assert done.returncode == 1 and report["verdict"] == "fail" and "SRUN_CPUS_PER_TASK" in done.stdout, done.stderr
    assert report["format"] == 1 and report["ranks"] == 1 and report["exclude"] is None and report["cluster"] is None
    for one in report["results"]:
        assert set(one) == {"host", "rank", "name", "value", "unit", "expected", "verdict", "reason", "fix", "data"}
        assert one["verdict"] in ("pass", "warn", "fail", "not run")
        assert one["verdict"] in ("pass", "not run") or one["fix"]
        assert one["name"] in done.stdout or one["verdict"] == "not run"
    assert named(report, "write and rename")["value"] > 0
    assert named(report, "flock")["verdict"] == named(report, "atomic rename")["verdict"] == "pass"
    assert named(report, "clock")["verdict"] == "not run" and named(report, "clock")["reason"]
    assert named(report, "cpu affinity")["value"] == 1


def test_exit_code_of_passed_checks(tmp_path: Path) -> None:
    settings = DoctorSettings(only=["ipv6", "interfaces"])
    with open(tmp_path / "log", "w") as file:
        assert examine(settings, Console(file=file, width=160)) == 0
    assert "2 pass" not in (tmp_path / "log").read_text() and "4 pass" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("options", [("--only", "nothing"), ("--cluster", "no-such-machine"), ("--wait", "-1")])
def test_usage_errors(options: tuple[str, ...]) -> None:
    done = program(*options)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def sleeps(target: Target) -> list[CheckResult]:
    subprocess.Popen(["sleep", "61.75"])
    print("before the sleep", flush=True)
    time.sleep(60)
    return []


def raises(target: Target) -> list[CheckResult]:
    raise ValueError("the first line\nthe second")


def crashes(target: Target) -> list[CheckResult]:
    faulthandler.disable()
    os.kill(os.getpid(), signal.SIGSEGV)
    return []


def test_hanging_check_is_cut_off() -> None:
    began = time.monotonic()
    result = only(run_check(Check("sleeps", sleeps, 1.0, "the fix"), Target(ALONE)))
    assert time.monotonic() - began < 5
    assert result.verdict == "fail" and "1 s" in result.reason and result.fix == "the fix"
    assert "before the sleep" in result.reason
    left = subprocess.run(["pgrep", "-f", "sleep 61.75"], capture_output=True, text=True).stdout
    assert not left  # its children are killed, too


def test_raising_and_crashing_checks_fail() -> None:
    result = only(run_check(Check("raises", raises, 10), Target(ALONE)))
    assert result.verdict == "fail" and result.reason == "ValueError: the first line"
    result = only(run_check(Check("crashes", crashes, 10), Target(ALONE)))
    assert result.verdict == "fail" and "SIGSEGV" in result.reason


def test_every_check_is_known() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert all(0 < check.seconds <= 90 and re.fullmatch(r"[a-z0-9_]+", check.name) for check in CHECKS)
    assert check_process.TAIL > 0


@pytest.mark.slow
def test_whole_program_under_torchrun(tmp_path: Path) -> None:
    out = tmp_path / "doctor.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    command += ["-m", "--", "leam_mm.launch", "doctor", "--json", str(out), "--run", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    report = json.loads(out.read_text())
    assert (done.returncode == 0) == (report["verdict"] != "fail"), done.stdout + done.stderr
    assert {one["rank"] for one in report["results"]} == {0, 1}
    assert named(report, "second process group")["verdict"] == "pass"
    assert named(report, "all-reduce")["value"] > 0 and named(report, "attention")["verdict"] == "pass"


def on_two_nodes(cluster: Any, folder: Path, names: str, script: str = "DOCTOR") -> tuple[dict[str, Any], int]:
    """Run the doctor as one task on each of two nodes; return the JSON file and srun's exit code."""
    doctor = f"{sys.executable} -m leam_mm.launch doctor --json {folder}/doctor.json --run {folder}/run --only {names}"
    command = ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--time=10", "--kill-on-bad-exit=0"]
    command += ["bash", "-c", script.replace("DOCTOR", doctor)]
    done = subprocess.run(command, env=cluster.environment, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert (folder / "doctor.json").exists(), done.stdout + done.stderr
    return json.loads((folder / "doctor.json").read_text()), done.returncode


@pytest.mark.slurm
def test_two_nodes_of_slurm(cluster: Any, tmp_path: Path) -> None:
    report, code = on_two_nodes(cluster, tmp_path, "affinity master clock shared all_reduce second_group")
    assert report["hosts"] == ["n1", "n2"] and report["ranks"] == 2
    assert named(report, "clock")["data"]["host"] == "n2" and abs(named(report, "clock")["value"]) < 1
    assert named(report, "shared folder", 1)["verdict"] == "pass"
    assert named(report, "second process group", 1)["verdict"] == "pass"
    # The virtual nodes share this machine's loopback; the doctor does not know that.
    assert named(report, "master address")["verdict"] == "fail" and code == 1


@pytest.mark.slurm
def test_run_folder_of_one_node_only(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    mounted = f"[ $SLURM_PROCID = 0 ] || mount -t tmpfs none {tmp_path}/run; DOCTOR; code=$?; "
    mounted += f"[ $SLURM_PROCID = 0 ] || umount {tmp_path}/run; exit $code"
    report, code = on_two_nodes(cluster, tmp_path, "shared", mounted)
    found = named(report, "shared folder", 1)
    assert found["verdict"] == "fail" and "n2" in found["reason"] and code == 1


@pytest.mark.slurm
def test_node_whose_task_is_missing(cluster: Any, tmp_path: Path) -> None:
    report, code = on_two_nodes(cluster, tmp_path, "affinity all_reduce --wait 5", "[ $SLURM_PROCID = 1 ] || DOCTOR")
    assert "did not join" in named(report, "answer", 1)["reason"] and code == 1


@pytest.mark.gpu
def test_checks_of_gpus(tmp_path: Path) -> None:
    """NCCL or RCCL on one device, the matrix product, and torch's attention kernels with their gradients."""
    names = ["versions", "gpus", "matmul", "attention", "all_reduce", "second_group"]
    done = program("--json", str(tmp_path / "doctor.json"), "--only", *names)
    report = json.loads((tmp_path / "doctor.json").read_text())
    assert done.returncode == 0, done.stdout + done.stderr
    assert named(report, "gpus")["value"] > 0
    product = named(report, "matrix product")
    assert product["data"]["device"] == "cuda" and product["value"] > 1
    attention = named(report, "attention")
    assert attention["verdict"] == "pass" and attention["data"]["default_error"] < 0.05
    import torch

    if torch.cuda.device_count() > 1:
        settings = DoctorSettings(json=tmp_path / "ranks.json")
        report, _, _ = run_ranks(tmp_path, settings, chosen("matmul", "all_reduce", "second_group"))
        assert named(report, "all-reduce")["data"]["backend"] == "nccl" and named(report, "all-reduce")["value"] > 1
        assert named(report, "second process group")["verdict"] == "pass"
