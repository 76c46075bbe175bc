"""What job.sh does on a private Slurm of two nodes when a job ends early; slices of a download; followed logs."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toys.images import encoded_image, two_coloured_image
from toys.launcher import Launcher
from toys.recipes import ROOT
from toys.runs import assert_same_run, last_checkpoint, step_losses
from toys.servers import Server
from toys.slurm import Cluster, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(2400)]
ROWS = 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if os.environ.get("LEAM_PYTHON"):
        pytest.skip("LEAM_PYTHON is set")
    return tmp_path


def submit(launcher: Launcher) -> str:
    """Submit the recipe on two nodes and return the number of the job."""
    site = ["--cluster", str(launcher.profile), "--nodes", "2", "--time", "20m"]
    launcher.call("submit", *site, str(launcher.recipe))
    return launcher.numbers()[-1]


def advance(launcher: Launcher) -> None:
    """Wait for a few more steps."""
    metrics = launcher.run / "metrics.csv"
    goal = (len(step_losses(launcher.run)) if metrics.is_file() else 0) + 3
    wait_for(
        f"step {goal}", lambda: metrics.is_file() and len(step_losses(launcher.run)) >= goal, launcher.run / "logs"
    )


def test_preemption_and_a_node_without_power_are_requeued_by_the_script(
    cluster: Cluster, folder: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    (folder / "whole").mkdir()
    (folder / "cut").mkdir()
    whole = Launcher(cluster, folder / "whole", toy_shards, toy_tokenizer, save_every=5)
    assert cluster.end(submit(whole), 900) == "COMPLETED", whole.log()

    cut = Launcher(cluster, folder / "cut", toy_shards, toy_tokenizer, save_every=5)
    cut.run.mkdir()
    (cut.run / "slow").touch()
    number = submit(cut)
    advance(cut)
    urgent = ["--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    assert cluster.end(cluster.call("sbatch", *urgent).strip()) == "COMPLETED"
    cluster.restarted(number, 1)
    assert last_checkpoint(cut.run)["global_step"] >= 3 and "exit code 75" in cut.log()

    advance(cut)
    cluster.kill_node("n2")
    wait_for("the script's requeue", lambda: "exit code 76" in cut.log(), folder)
    cluster.start_node("n2")
    cluster.restarted(number, 2)
    (cut.run / "slow").unlink()
    assert cluster.end(number, 900) == "COMPLETED", cut.log()
    assert cut.log().count(f"requeue job {number}") >= 1 and "code 0 (finished)" in cut.call("status", str(cut.run))
    assert not list(cut.run.glob("failures-*"))
    assert_same_run(whole.run, cut.run)


def test_an_array_of_slices_downloads_the_bytes_of_one_process(
    cluster: Cluster, folder: Path, toy_shards: Path, toy_tokenizer: Path, server: Server
) -> None:
    for row in range(ROWS):
        server.answers[f"/{row}.png"] = (200, {}, encoded_image(two_coloured_image(8 + row % 5, 9)))
    table = {
        "url": [f"{server.url}/{row}.png" for row in range(ROWS)],
        "caption": [f"image {row}" for row in range(ROWS)],
    }
    pq.write_table(pa.table(table), folder / "links.parquet")
    words = [
        "--table",
        str(folder / "links.parquet"),
        "--allow-private",
        "127.0.0.1",
        "--threads",
        "2",
        "--processes",
        "1",
    ]
    launcher = Launcher(cluster, folder, toy_shards, toy_tokenizer)
    launcher.run = folder / "sliced.launch"
    site = ["--cluster", str(launcher.profile), "--nodes", "2", "--time", "10m"]
    program = ["--program", "data_tools/download_shards.py", "--", *words]
    launcher.call("submit", *site, *program, "--output", str(folder / "sliced"))
    sealed = folder / "sliced" / "download.json"
    wait_for("the last job", sealed.is_file, launcher.run / "logs", seconds=600)
    assert len(server.requests) == ROWS  # the array fetched each image once

    plain = [sys.executable, "-m", "data_tools.download_shards", *words, "--output", str(folder / "plain")]
    assert subprocess.run(plain, cwd=ROOT, capture_output=True, timeout=280).returncode == 0
    for name in ("manifest.jsonl", "download.json"):
        assert (folder / "sliced" / name).read_bytes() == (folder / "plain" / name).read_bytes()


def test_logs_are_followed_until_they_are_left(
    cluster: Cluster, folder: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    launcher = Launcher(cluster, folder, toy_shards, toy_tokenizer)
    launcher.run.mkdir()
    (launcher.run / "slow").touch()
    number = submit(launcher)
    advance(launcher)
    environment = {**cluster.environment, "PYTHONPATH": f"{folder}:{ROOT}"}
    command = [sys.executable, "-m", "leam_mm.launch", "logs", str(launcher.run), "--follow"]
    with open(folder / "followed", "w") as output:
        follower = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, start_new_session=True)
        try:
            followed = folder / "followed"
            wait_for("the log", lambda: f"job {number}, start 0" in followed.read_text(), folder, seconds=120)
            assert "exit code" not in followed.read_text()
            launcher.call("stop", str(launcher.run))
            wait_for("its last lines", lambda: "exit code 75" in followed.read_text(), folder, seconds=300)
        finally:
            os.killpg(follower.pid, 2)
    assert follower.wait(30) == 130
    assert cluster.end(number) == "FAILED"
