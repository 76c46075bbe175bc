"""Settings that every submission has, and the job that they make with the profile of the machine."""

import math
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from leam_mm.command_line import PositiveInt
from leam_mm.errors import UserError
from leam_mm.launch.job import ROOT, Job, parse_time
from leam_mm.launch.run_record import read_commit
from leam_mm.planning.cluster_profile import ClusterProfile, load_profile, profile_names

CHAIN, LONGEST_CHAIN = 4, 20  # jobs, where the site does not let a job requeue itself


@dataclass(frozen=True)
class JobSettings:
    """Settings of a job.

    Args:
        cluster: Name of a profile in configs/clusters, such as lumi_g, or path of your own.
        nodes: Nodes.
        time: Time limit of a job, such as 24h, 90m, 1d12h or 12:00:00. A run may take several jobs.
        run: Run folder; by default the recipe's trainer.default_root_dir.
        account: Project that pays; by default SBATCH_ACCOUNT.
        partition: Partition; by default the profile's.
        qos: Quality of service; by default the profile's.
        tasks_per_node: Tasks in each node; by default the profile's, one a device.
        cpus_per_task: Cores of each task; by default the profile's.
        licences: Value of sbatch's --licenses; by default the profile's.
        exclude: Nodes to avoid, added to the profile's.
        python: How Python is started on the nodes; by default LEAM_PYTHON, or the profile's command.
        chain: Jobs submitted to run one after another, for sites where a job cannot requeue itself.
        skip: Checks to leave out, between commas.
        dry_run: Print plan, checks and script; submit and write nothing.
    """

    cluster: str
    nodes: PositiveInt = 1
    time: str = "12h"
    run: str | None = None
    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    tasks_per_node: PositiveInt | None = None
    cpus_per_task: PositiveInt | None = None
    licences: str | None = None
    exclude: str | None = None
    python: str | None = None
    chain: PositiveInt | None = None
    skip: str = ""
    dry_run: bool = False


def interpreter(given: str | None, profile: ClusterProfile) -> str:
    """Return the words that start Python on the nodes.

    The profile's plain ``python`` is the interpreter of this program if that belongs to a virtual environment.
    """
    command = given or os.environ.get("LEAM_PYTHON") or profile.software.command.value or "python"
    if any(letter in command for letter in '"`\\\n') or "$(" in command:
        raise UserError(f"--python is {command!r}: quotes, backslashes and $( ) are not possible; write a small script")
    if command == "python" and sys.prefix != sys.base_prefix:
        return shlex.quote(sys.executable)
    return command


def make_job(
    settings: JobSettings,
    run: Path,
    words: tuple[str, ...],
    kind: Literal["train", "program"] = "train",
    array: tuple[tuple[str, ...], ...] = (),
    at_a_time: int = 0,
    devices: bool = True,
    one_task: bool = False,
    hours: float | None = None,
) -> Job:
    """Return the job of a submission.

    Args:
        settings: What was given.
        run: Run folder, absolute.
        words: The command after the interpreter.
        kind: ``train`` or ``program``.
        array: Words appended in each job of an array.
        at_a_time: Jobs of an array that run at a time, 0 for all.
        devices: Whether the job uses the devices of its nodes.
        one_task: Run one task on each node, which gets all cores that the profile gives to the tasks of a node.
        hours: Wall time of the whole run, for the length of a chain; None if not known.
    """
    profile = load_profile(settings.cluster)
    slurm, node = profile.slurm, profile.node
    requeue = slurm.requeue.value is not False and settings.chain is None
    if array and settings.chain:
        raise UserError("--chain is not possible for an array: leave it out")
    tasks = settings.tasks_per_node or slurm.tasks_per_node.value or 1
    cores = settings.cpus_per_task or slurm.cpus_per_task.value
    if one_task:
        cores = settings.cpus_per_task or node.usable_cores.value or (cores * tasks if cores else None)
        tasks = settings.tasks_per_node or 1
    per_node = profile.gpu.per_node.value or 0
    if not one_task and settings.tasks_per_node and per_node:
        per_node = min(per_node, settings.tasks_per_node)
    seconds = parse_time(settings.time)
    needed = CHAIN if hours is None else min(LONGEST_CHAIN, math.ceil(hours * 3600 / seconds))
    excluded = [names for names in (slurm.exclude_nodes.value, settings.exclude) if names]
    return Job(
        profile=profile,
        run=run,
        directory=Path.cwd(),
        words=words,
        nodes=settings.nodes,
        seconds=seconds,
        tasks_per_node=tasks,
        cpus_per_task=cores,
        gpus_per_node=per_node if devices else 0,
        python=interpreter(settings.python, profile),
        kind=kind,
        account=settings.account or os.environ.get("SBATCH_ACCOUNT") or None,
        partition=settings.partition or slurm.partition.value,
        qos=settings.qos or slurm.qos.value,
        licences=settings.licences or slurm.licences.value,
        exclude=",".join(excluded) or None,
        requeue=requeue,
        chain=1 if requeue or array else settings.chain or max(1, needed),
        array=array,
        at_a_time=at_a_time,
        cluster=profile.name if settings.cluster in profile_names() else str(Path(settings.cluster).resolve()),
        commit=read_commit(ROOT).sha,
    )
