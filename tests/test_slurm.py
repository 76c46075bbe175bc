"""The Slurm script on a real Slurm: a private one is started on this machine, where it is installed."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import clip_recipe
from test_resume import ROOT, assert_same_run, checkpoint, losses

from leam_mm.cli import _follow_slurm
from leam_mm.errors import UserError

SCRIPT = ROOT / "configs" / "clusters" / "slurm.sh"
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "sinfo")
SLOW = """
    import time
    from lightning.pytorch import Callback

    class Slow(Callback):
        '''Leaves time for a signal.'''

        def on_train_batch_end(self, *args):
            time.sleep(0.2)
"""
CONFIG = """
    ClusterName=test
    SlurmctldHost={host}(127.0.0.1)
    SlurmctldPort={controller}
    AuthType=auth/munge
    AuthInfo=socket={folder}/munge.socket
    CredType=cred/munge
    SlurmUser=root
    SlurmdUser=root
    StateSaveLocation={folder}/state
    SlurmdSpoolDir={folder}/spool
    SlurmctldPidFile={folder}/slurmctld.pid
    SlurmdPidFile={folder}/slurmd.pid
    ProctrackType=proctrack/linuxproc
    TaskPlugin=task/none
    MpiDefault=none
    SelectType=select/cons_tres
    SelectTypeParameters=CR_Core
    SlurmdParameters=config_overrides
    ReturnToService=2
    JobRequeue=1
    KillWait=5
    JobAcctGatherType=jobacct_gather/none
    AccountingStorageType=accounting_storage/none
    SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
    GresTypes=gpu
    NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 Port={node} CPUs=2 RealMemory=1000 State=UNKNOWN
    PartitionName=test Nodes=localhost Default=YES MaxTime=00:30:00 State=UP
"""


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def wait_for(what: str, found: Callable[[], bool], folder: Path, seconds: float = 300) -> None:
    limit = time.monotonic() + seconds
    while not found():
        if time.monotonic() > limit:
            logs = "\n".join(f"--- {path}\n{path.read_text(errors='replace')[-2000:]}" for path in folder.glob("*.log"))
            raise AssertionError(f"waited {seconds} s for {what}\n{logs}")
        time.sleep(0.3)


class Cluster:
    """One node of two cores."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLURM")},
            "SLURM_CONF": str(folder / "slurm.conf"),
        }

    def call(self, *command: str, **more: str) -> str:
        done = subprocess.run(
            command, env={**self.environment, **more}, cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        return dict(part.split("=", 1) for part in self.call("scontrol", "show", "job", number).split() if "=" in part)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and Slurm (apt-get install slurm-wlm munge); missing: {missing or 'root'}")
    folder = Path(tempfile.mkdtemp(prefix="leam-slurm-", dir="/tmp"))  # a socket's path must be short
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(256))
    key.chmod(0o400)
    settings = {"host": socket.gethostname().split(".")[0], "controller": free_port(), "node": free_port()}
    (folder / "slurm.conf").write_text(textwrap.dedent(CONFIG).format(folder=folder, **settings))
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    made = Cluster(folder)
    munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")]
    processes: list[subprocess.Popen] = []

    def start(name: str, command: list[str]) -> None:
        with open(folder / f"{name}.log", "w") as log:
            processes.append(subprocess.Popen(command, env=made.environment, stdout=log, stderr=log))

    try:
        start("munged", munge)
        wait_for("munged", (folder / "munge.socket").exists, folder)
        start("slurmctld", ["slurmctld", "-D"])
        start("slurmd", ["slurmd", "-D", "-N", "localhost"])

        def idle() -> bool:
            answer = subprocess.run(["sinfo", "-h", "-o", "%t"], env=made.environment, capture_output=True, text=True)
            return answer.stdout.strip() == "idle"

        wait_for("an idle node", idle, folder)
        yield made
    finally:
        for process in reversed(processes):
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def test_the_script_is_sound_and_asks_for_a_recipe() -> None:
    assert subprocess.run(["bash", "-n", str(SCRIPT)]).returncode == 0
    empty = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True)
    assert empty.returncode == 2 and "name a recipe" in empty.stderr


def test_the_size_of_the_job_overrules_the_recipe() -> None:
    trainer = SimpleNamespace(devices=1, num_nodes=1, plugins=None)
    _follow_slurm(trainer, {})
    assert (trainer.num_nodes, trainer.devices) == (1, 1)
    job = {"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "leam_mm"}
    _follow_slurm(trainer, {**job, "SLURM_JOB_NAME": "interactive"})
    assert (trainer.num_nodes, trainer.devices) == (1, 1)
    _follow_slurm(trainer, job)
    assert (trainer.num_nodes, trainer.devices) == (2, 4)
    _follow_slurm(trainer, {**job, "SLURM_NTASKS_PER_NODE": "4"})
    assert (trainer.num_nodes, trainer.devices) == (2, 4)
    with pytest.raises(UserError, match="start it with srun"):
        _follow_slurm(trainer, {name: value for name, value in job.items() if name != "SLURM_STEP_ID"})
    trainer.plugins = [{"class_path": "lightning.pytorch.plugins.environments.SLURMEnvironment"}]
    with pytest.raises(UserError, match="leave it out"):
        _follow_slurm(trainer, {})


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_preempted_job_requeues_itself_and_ends_bit_equal(
    cluster: Cluster, tmp_path: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    (tmp_path / "slow.py").write_text(textwrap.dedent(SLOW))
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "LEAM_PYTHON": sys.executable}

    def recipe(name: str) -> str:
        made = clip_recipe(tmp_path / name, toy_shards, toy_tokenizer, max_samples=240)
        made["checkpoint"] = {"every_n_train_steps": 1000}
        made["trainer"]["callbacks"] = [{"class_path": "slow.Slow"}]
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(made))
        return str(path)

    size = ["--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1", "--time=20"]
    log = tmp_path / "job.log"
    submit = ["sbatch", "--parsable", *size, f"--output={log}", str(SCRIPT), recipe("stopped")]
    number = cluster.call(*submit, **environment).strip()
    run = tmp_path / "stopped"
    wait_for("the first steps", lambda: (run / "metrics.csv").is_file() and len(losses(run)) > 3, tmp_path)
    cluster.call("scancel", "--signal=USR1", number)
    wait_for("the requeue", lambda: cluster.job(number)["Restarts"] == "1", tmp_path)
    saved = checkpoint(run)["global_step"]
    assert 3 < saved < 30
    wait_for("the end of the first run", lambda: cluster.job(number)["JobState"] != "COMPLETING", tmp_path)
    # Slurm holds a requeued job back for two minutes; not at all would be too short for the node to forget the kill.
    time.sleep(5)
    cluster.call("scontrol", "update", f"jobid={number}", "StartTime=now")
    over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    wait_for("the end", lambda: cluster.job(number)["JobState"] in over, tmp_path, seconds=600)
    assert cluster.job(number)["JobState"] == "COMPLETED", log.read_text()[-3000:]
    assert f"requeue job {number}" in log.read_text()

    whole = [sys.executable, "train.py", "fit", "--config", recipe("whole")]
    whole += ["--config", "configs/overlay_two_ranks.yaml"]
    done = subprocess.run(
        whole, cwd=ROOT, env={**os.environ, **environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "whole")) == 30
    assert_same_run(tmp_path / "whole", run)
