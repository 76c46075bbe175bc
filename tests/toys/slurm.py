"""A private Slurm cluster of two virtual nodes on this machine, for the tests of job scripts.

Each node is a slurmd in namespaces of its own: its host name is the node's name, its /etc/hosts resolves the names of
the nodes, and to kill its first process is to cut its power. Nothing outside a temporary folder is changed. The nodes
claim 32 cores and four GPUs each, whatever this machine has; no job gets a device.
"""

import os
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from toys.recipes import ROOT

NODES = ("n1", "n2")
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "sinfo", "squeue")
NEEDED += ("unshare", "setpriv")
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")

# AuthInfo: a requeued job waits for cred_expire before it starts again, two minutes by default.
CONFIG = """
    ClusterName=test
    FirstJobId={first}
    SlurmctldHost={host}(127.0.0.1)
    SlurmctldPort={controller}
    SlurmctldTimeout=60
    SlurmdTimeout=300
    AuthType=auth/munge
    AuthInfo=socket={folder}/munge.socket,cred_expire=5
    CredType=cred/munge
    SlurmUser=root
    SlurmdUser=root
    StateSaveLocation={folder}/state
    SlurmdSpoolDir={folder}/spool-%n
    SlurmctldPidFile={folder}/slurmctld.pid
    SlurmdPidFile={folder}/slurmd-%n.pid
    ProctrackType=proctrack/linuxproc
    TaskPlugin=task/none
    MpiDefault=none
    SelectType=select/cons_tres
    SelectTypeParameters=CR_Core
    SlurmdParameters=config_overrides
    ReturnToService=2
    JobRequeue=1
    KillWait=5
    MinJobAge=3600
    PreemptType=preempt/partition_prio
    PreemptMode=REQUEUE
    JobAcctGatherType=jobacct_gather/none
    AccountingStorageType=accounting_storage/none
    SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
    GresTypes=gpu
    NodeName=n1 NodeAddr=127.0.0.1 Port={n1} CPUs=32 RealMemory=4000 Gres=gpu:4 State=UNKNOWN
    NodeName=n2 NodeAddr=127.0.0.1 Port={n2} CPUs=32 RealMemory=4000 Gres=gpu:4 State=UNKNOWN
    PartitionName=test Nodes=n[1-2] Default=YES MaxTime=3-00:00:00 PriorityTier=1 GraceTime=60 State=UP
    PartitionName=urgent Nodes=n[1-2] MaxTime=3-00:00:00 PriorityTier=9 PreemptMode=OFF State=UP
"""
# "i" is the suffix of the second network of each node, as on the machines in Juelich.
HOSTS = "127.0.0.1 localhost {host} n1 n1i n2 n2i\n"
ALONE = ["setpriv", "--pdeathsig", "KILL"]  # ends with the tests, however they end
NODE = "mount --bind {folder}/hosts /etc/hosts && hostname {name} && exec slurmd -D -N {name}"


class Cluster:
    """Two nodes, n1 and n2, and two partitions: jobs in "urgent" preempt those in "test", the default."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))},
            "SLURM_CONF": str(folder / "slurm.conf"),
        }
        self._processes: dict[str, subprocess.Popen] = {}

    def call(self, *command: str, **more: str) -> str:
        """Run a command of Slurm in the repository and return what it prints."""
        done = subprocess.run(
            command, env={**self.environment, **more}, cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """Return the fields of ``scontrol show job``."""
        return dict(part.split("=", 1) for part in self.call("scontrol", "show", "job", number).split() if "=" in part)

    def end(self, number: str, seconds: float = 300) -> str:
        """Wait until a job is over, through all its requeues, and return its state."""
        self.wait_for_job(number, "is over", lambda job: job["JobState"] in OVER, seconds)
        return self.job(number)["JobState"]

    def restarted(self, number: str, restarts: int, seconds: float = 120) -> None:
        """Wait until a job runs again after so many requeues."""
        wanted = (str(restarts), "RUNNING")
        words = f"runs after {restarts} requeues"
        self.wait_for_job(number, words, lambda job: (job["Restarts"], job["JobState"]) == wanted, seconds)

    def wait_for_job(self, number: str, what: str, found: Callable[[dict[str, str]], bool], seconds: float) -> None:
        """Wait for a state of a job; on failure show the job and the ends of the daemons' logs."""
        try:
            wait_for(f"job {number}: {what}", lambda: found(self.job(number)), self.folder, seconds)
        except AssertionError as error:
            job = self.call("scontrol", "show", "job", number)
            raise AssertionError(f"{error}\n{job}\n{self.call('sinfo', '-N', '-l')}") from None

    def start(self, name: str, command: list[str]) -> None:
        """Start a daemon whose output is appended to NAME.log."""
        with open(self.folder / f"{name}.log", "a") as log:
            self._processes[name] = subprocess.Popen(
                [*ALONE, *command], env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def start_node(self, name: str) -> None:
        """Start a node."""
        own = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self.start(name, [*own, "sh", "-c", NODE.format(folder=shlex.quote(str(self.folder)), name=name)])

    def wait_until_idle(self) -> None:
        """Wait until jobs can run on all nodes."""
        sinfo = ("sinfo", "-h", "-N", "-p", "test", "-o", "%T")
        wait_for("idle nodes", lambda: self.call(*sinfo).split() == ["idle"] * len(NODES), self.folder, seconds=120)

    def kill_node(self, name: str) -> None:
        """End slurmd and all tasks of a node at once, as a power failure does."""
        self._processes[name].send_signal(signal.SIGKILL)  # --kill-child: the kernel then ends the whole PID namespace
        self._processes.pop(name).wait()

    def clear(self) -> None:
        """Cancel all jobs and start the nodes that were killed."""
        self.call("scancel", "--user=root")
        wait_for("an empty queue", lambda: not self.call("squeue", "-h").strip(), self.folder, seconds=60)
        for name in NODES:
            if name not in self._processes:
                self.start_node(name)
        self.wait_until_idle()

    def stop(self) -> None:
        """Stop all daemons; what runs on the nodes ends with them."""
        for name in [name for name in NODES if name in self._processes]:
            self.kill_node(name)
        for process in reversed(self._processes.values()):
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
        self._processes.clear()


def wait_for(what: str, found: Callable[[], bool], folder: Path, seconds: float = 300) -> None:
    """Wait for an event; on failure show the ends of the logs in a folder."""
    limit = time.monotonic() + seconds
    while not found():
        if time.monotonic() > limit:
            logs = "\n".join(f"--- {path}\n{path.read_text(errors='replace')[-2000:]}" for path in folder.glob("*.log"))
            raise AssertionError(f"waited {seconds} s for {what}\n{logs}")
        time.sleep(0.3)


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def missing_parts() -> str:
    """Return what this machine lacks for a private cluster; empty if nothing."""
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        return f"Slurm (apt-get install slurm-wlm munge): no {', '.join(missing)}"
    if os.geteuid() != 0:
        return "root"
    isolated = ["unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "true"]
    done = subprocess.run(isolated, capture_output=True, text=True)
    return "" if done.returncode == 0 else f"namespaces ({done.stderr.strip()})"


def prepare(folder: Path) -> None:
    """Write the configuration and the keys of a cluster."""
    folder.chmod(0o755)
    for name in ("state", *[f"spool-{node}" for node in NODES]):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(256))
    key.chmod(0o400)
    host = socket.gethostname().split(".")[0]
    ports = {name: free_port() for name in ("controller", *NODES)}
    first = int.from_bytes(os.urandom(2)) % 9000 + 1  # ports of jobs follow their ids: two clusters may share a machine
    (folder / "slurm.conf").write_text(textwrap.dedent(CONFIG).format(folder=folder, host=host, first=first, **ports))
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    for number in range(4):
        os.mknod(folder / f"gpu{number}", stat.S_IFCHR | 0o666, os.makedev(1, 3))  # /dev/null by another name
    (folder / "gres.conf").write_text(f"AutoDetect=off\nNodeName=n[1-2] Name=gpu File={folder}/gpu[0-3]\n")
    (folder / "hosts").write_text(HOSTS.format(host=host))


@pytest.fixture(scope="session")
def two_nodes() -> Iterator[Cluster]:
    """The cluster of this process, started once."""
    if missing := missing_parts():
        pytest.skip(f"a private Slurm cluster needs {missing}")
    folder = Path(tempfile.mkdtemp(prefix="leam-slurm-", dir="/tmp"))  # a socket's path must be short
    prepare(folder)
    made = Cluster(folder)
    munge = ["munged", "--foreground", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket"]
    munge += [f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")]
    try:
        made.start("munged", munge)
        wait_for("munged", (folder / "munge.socket").exists, folder, seconds=60)
        made.start("slurmctld", ["slurmctld", "-D"])
        answers = ["scontrol", "ping"]
        wait_for(
            "slurmctld",
            lambda: "is UP" in subprocess.run(answers, env=made.environment, capture_output=True, text=True).stdout,
            folder,
            seconds=60,
        )
        for name in NODES:
            made.start_node(name)
        made.wait_until_idle()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(two_nodes: Cluster) -> Iterator[Cluster]:
    """An idle cluster."""
    yield two_nodes
    two_nodes.clear()
