"""A job: what runs, on which nodes, and for how long."""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from leam_mm.errors import UserError
from leam_mm.planning.cluster_profile import ClusterProfile

ROOT = Path(__file__).resolve().parents[2]  # the repository
SCRIPT, RECORD, LOGS, STOPPED, SUBMITTING = "job.sh", "launch.json", "logs", "stopped", "launch.lock"
PARTS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
PLAIN = re.compile(r"[\w.,@:/+=\[\]-]+")  # of a value on a line for sbatch


@dataclass(frozen=True)
class Job:
    """A job of Slurm.

    Args:
        profile: The machine.
        run: Run folder, absolute: script, logs and record of the job lie in it.
        directory: Where the job starts, absolute: relative paths of its command are relative to it.
        words: The command after the interpreter: ``train.py fit --config ...``, or a program of data_tools.
        nodes: Nodes.
        seconds: Time limit.
        tasks_per_node: Tasks in each node.
        cpus_per_task: Cores of each task.
        gpus_per_node: Devices of each node, 0 for none.
        python: Words of the interpreter, as bash reads them.
        kind: ``train`` for train.py, which saves on a signal, or ``program`` for one that continues when started again.
        account: Project that pays.
        partition: Partition.
        qos: Quality of service.
        licences: Value of --licenses.
        exclude: Nodes to avoid.
        requeue: Whether the job may requeue itself.
        chain: Number of jobs that are submitted to run one after another.
        array: Words appended in each job of an array; empty for a single job.
        at_a_time: Jobs of an array that run at a time; 0 for all.
        cluster: Name of the profile, or its absolute path if it is none of configs/clusters.
        commit: Commit of the repository, or ``unknown``.
        root: The repository.
    """

    profile: ClusterProfile
    run: Path
    directory: Path
    words: tuple[str, ...]
    nodes: int
    seconds: int
    tasks_per_node: int
    cpus_per_task: int | None
    gpus_per_node: int
    python: str
    kind: Literal["train", "program"] = "train"
    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    licences: str | None = None
    exclude: str | None = None
    requeue: bool = True
    chain: int = 1
    array: tuple[tuple[str, ...], ...] = field(default=())
    at_a_time: int = 0
    cluster: str = ""
    commit: str = "unknown"
    root: Path = ROOT

    def __post_init__(self) -> None:
        """Check what becomes a line for sbatch."""
        for name in ("account", "partition", "qos", "licences", "exclude"):
            value = getattr(self, name)
            if value is not None and not PLAIN.fullmatch(value):
                raise UserError(f"--{name} is {value!r}: give letters, digits and . , - _ @ : / + = [ ]")
        if "%" in str(self.run) or not str(self.run).isprintable():
            raise UserError(f"{self.run}: Slurm replaces % in names of logs: give a run folder without it")

    @property
    def name(self) -> str:
        """Name of the job: that of the run folder, and a digest of its path, so that it is the run's alone."""
        plain = re.sub(r"[^\w.-]+", "-", self.run.name)[:40] or "run"
        return f"{plain}-{hashlib.sha256(str(self.run).encode()).hexdigest()[:6]}"

    @property
    def devices(self) -> int:
        """Devices of all nodes, 0 for none."""
        return self.nodes * self.gpus_per_node

    @property
    def cpu_bind(self) -> str | None:
        """Value of srun's --cpu-bind; masks only for as many tasks in a node as there are masks."""
        found = self.profile.software.cpu_bind.value
        masks = found.count(",") + 1 if found and found.startswith("mask") else self.tasks_per_node
        return found if masks == self.tasks_per_node and self.kind == "train" else None

    @property
    def hours(self) -> float:
        """Time limit in hours."""
        return self.seconds / 3600


def parse_time(text: str) -> int:
    """Return the seconds of ``24h``, ``90m``, ``1d12h``, ``1-12:00:00``, ``12:00:00``, or minutes such as ``30``.

    Raises:
        UserError: It is none of these, or less than a minute.
    """
    seconds = 0
    if match := re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip()):
        seconds = sum(int(number or 0) * PARTS[unit] for number, unit in zip(match.groups(), "dhms", strict=True))
    if match := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d{2}):(\d{2})", text.strip()):
        seconds = sum(int(number or 0) * PARTS[unit] for number, unit in zip(match.groups(), "dhms", strict=True))
    if text.strip().isdigit():
        seconds = int(text) * 60
    if seconds < 60:
        raise UserError(f"--time is {text!r}: give at least a minute, such as 24h, 90m, 1d12h or 12:00:00")
    return seconds


def slurm_time(seconds: int) -> str:
    """Return a time limit as Slurm writes it: D-HH:MM:SS."""
    days, rest = divmod(seconds, 86400)
    return f"{days}-{rest // 3600:02}:{rest % 3600 // 60:02}:{rest % 60:02}"
