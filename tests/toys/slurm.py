"""A Slurm cluster of one node on this machine, for the tests of job scripts."""

import os
import shutil
import socket
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from toys.recipes import ROOT


class Cluster:
    """A cluster of one node with two cores."""

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


def wait_for(what: str, found: Callable[[], bool], folder: Path, seconds: float = 300) -> None:
    limit = time.monotonic() + seconds
    while not found():
        if time.monotonic() > limit:
            logs = "\n".join(f"--- {path}\n{path.read_text(errors='replace')[-2000:]}" for path in folder.glob("*.log"))
            raise AssertionError(f"waited {seconds} s for {what}\n{logs}")
        time.sleep(0.3)


NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "sinfo")


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


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
