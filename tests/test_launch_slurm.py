"""The launcher on a private Slurm of two nodes: submit, status, stop and resume; a program; a sweep."""

import os
from pathlib import Path

import pytest
import yaml
from toys.launcher import Launcher
from toys.runs import last_checkpoint, step_losses
from toys.slurm import Cluster, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(2400)]


@pytest.fixture
def launcher(cluster: Cluster, tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> Launcher:
    if os.environ.get("LEAM_PYTHON"):
        pytest.skip("LEAM_PYTHON is set")
    return Launcher(cluster, tmp_path, toy_shards, toy_tokenizer)


def test_a_run_is_submitted_stopped_and_resumed(launcher: Launcher) -> None:
    run = str(launcher.run)
    launcher.run.mkdir()
    (launcher.run / "slow").touch()
    submit = ["submit", "--cluster", str(launcher.profile), "--nodes", "2", "--time", "10m", str(launcher.recipe)]
    said = launcher.call(*submit)
    assert "slurm" in said and "to start at" in said and "submitted job" in said, said
    log = launcher.run / "logs"
    wait_for("steps", lambda: (launcher.run / "metrics.csv").is_file() and len(step_losses(launcher.run)) > 2, log)
    status = launcher.call("status", run)
    assert "RUNNING on" in status and "samples seen of 1,600" in status and "none yet" in status, status
    again = launcher.call(*submit, "--skip", "models,shards", code=2)
    assert "is RUNNING: python -m leam_mm.launch stop" in again

    launcher.call("stop", run)
    launcher.wait("FAILED")
    assert launcher.job()["ExitCode"] == "75:0" and "stopped by hand" in launcher.log()
    saved = last_checkpoint(launcher.run)["global_step"]
    assert 2 < saved < 200
    status = launcher.call("status", run)
    assert "none waits or runs" in status and "code 75 (saved and stopped)" in status and "last.ckpt" in status, status
    assert "there is nothing to stop" in launcher.call("stop", run, code=2)

    (launcher.run / "slow").unlink()
    launcher.call("resume", run)
    launcher.wait("COMPLETED")
    assert len(launcher.numbers()) == 2 and last_checkpoint(launcher.run)["global_step"] == 200
    assert len(step_losses(launcher.run)) == 200
    assert "code 0 (finished)" in launcher.call("status", run)


def test_a_job_that_waits_is_cancelled_and_a_chain_ends_with_its_run(launcher: Launcher) -> None:
    run = str(launcher.run)
    submit = ["submit", "--cluster", str(launcher.profile), "--nodes", "2", "--time", "10m", str(launcher.recipe)]
    launcher.call(*submit, "--chain", "3")
    assert len(launcher.numbers()) == 3
    first = launcher.numbers()[0]
    assert launcher.cluster.job(launcher.numbers()[-1])["JobState"] == "PENDING"
    wait_for("the end", lambda: launcher.cluster.job(first)["JobState"] == "COMPLETED", launcher.run / "logs")
    launcher.wait("CANCELLED")
    assert "code 0 (finished)" in launcher.call("status", run)


def test_a_program_runs_and_a_sweep_gives_each_job_its_folder(launcher: Launcher, toy_shards: Path) -> None:
    site = ["--cluster", str(launcher.profile), "--time", "10m"]
    launcher.run = launcher.folder / "vetted.launch"
    rules = launcher.folder / "rules.yaml"
    rules.write_text("rules:\n- class_path: data_tools.vetting.exact_duplicates.ExactDuplicates\n")
    arguments = ["--", "--shards", str(toy_shards), "--rules", str(rules)]
    arguments += ["--output", str(launcher.folder / "vetted")]
    launcher.call("submit", *site, "--program", "data_tools/vet_shards.py", *arguments)
    wait_for("the end", lambda: launcher.job()["JobState"] in ("COMPLETED", "FAILED"), launcher.run / "logs")
    assert launcher.job()["JobState"] == "COMPLETED", launcher.log()
    assert (launcher.folder / "vetted" / "keep.parquet").is_file()

    launcher.run = launcher.folder / "sweep"
    lists = launcher.folder / "seeds.yaml"
    lists.write_text("- [--seed_everything, 1, --max_samples, 16]\n- [--seed_everything, 2, --max_samples, 16]\n")
    launcher.call("sweep", *site, "--run", str(launcher.run), "--overrides", str(lists), str(launcher.recipe))
    done = [launcher.run / f"{number:04}" / "checkpoints" / "last.ckpt" for number in range(2)]
    wait_for("both", lambda: all(path.exists() for path in done), launcher.run / "logs")
    seeds = [yaml.safe_load((path.parents[1] / "config.yaml").read_text())["seed_everything"] for path in done]
    assert seeds == [1, 2]
