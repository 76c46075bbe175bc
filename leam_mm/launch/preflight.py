"""Checks before a job is submitted: each finds a fault that would otherwise cost a place in the queue.

A check returns findings. A failed one names what is wrong, where, and the fix; what cannot be checked says so.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Literal

from leam_mm.launch.job import Job, slurm_time
from leam_mm.planning.cluster_sections import Queue
from leam_mm.planning.fact import NOT_KNOWN

Verdict = Literal["ok", "failed", "warning", "not checked"]
LEAST_INODES, LEAST_BYTES = 1000, 10 << 30  # free for a run: logs, checkpoints and their temporary files


@dataclass(frozen=True)
class Finding:
    """Result of a check.

    Args:
        check: Name of the check, for --skip.
        verdict: ``failed`` keeps the job from being submitted.
        text: What was found, in one line; for a failure with the fix.
    """

    check: str
    verdict: Verdict
    text: str


def check_account(job: Job) -> Iterator[Finding]:
    """Check that an account is given where the site needs one."""
    required = job.profile.slurm.account_required
    if job.account:
        yield Finding("account", "ok", job.account)
    elif required.value:
        yield Finding("account", "failed", f"{job.profile.title} needs an account: give --account PROJECT")
    else:
        yield Finding("account", "not checked", f"none given; whether the site needs one is {required}")


def check_queue(job: Job) -> Iterator[Finding]:
    """Check time limit and nodes against partition and quality of service."""
    slurm = job.profile.slurm
    others = {queue.name: queue for queue in slurm.queues.value or ()}
    chosen = [others[name] for name in (job.qos, job.partition) if name in others]
    defaults = job.partition == slurm.partition.value and job.qos == slurm.qos.value
    if not chosen and not defaults:
        names = ", ".join(filter(None, (job.partition, job.qos)))
        yield Finding("queue", "not checked", f"the profile {job.profile.name} knows no limits of {names or 'it'}")
        return
    limits = chosen[0] if chosen else Queue(
        job.qos or job.partition or "the default partition", "partition", slurm.max_hours.value, slurm.max_nodes.value
    )  # fmt: skip
    faults = []
    if limits.max_hours is not None and job.seconds > limits.max_hours * 3600 + 60:
        longest = slurm_time(int(limits.max_hours * 3600))
        faults.append(f"{slurm_time(job.seconds)} is longer than {longest}: give --time {longest} or another queue")
    if limits.max_nodes is not None and job.nodes > limits.max_nodes:
        faults.append(f"{job.nodes} nodes are more than {limits.max_nodes}: give fewer --nodes or another queue")
    if limits.min_nodes is not None and job.nodes < limits.min_nodes:
        faults.append(f"{job.nodes} nodes are fewer than {limits.min_nodes}: give more --nodes or another queue")
    for fault in faults:
        more = ", ".join(f"--{queue.kind} {queue.name}" for queue in others.values() if queue != limits)
        yield Finding("queue", "failed", f"{limits.name}: {fault}" + (f" ({more})" if more else ""))
    if not faults:
        known = [f"at most {limits.max_hours:g} h"] if limits.max_hours is not None else []
        known += [f"at most {limits.max_nodes} nodes"] if limits.max_nodes is not None else []
        yield Finding("queue", "ok" if known else "not checked", f"{limits.name}: {', '.join(known) or NOT_KNOWN}")


def check_nodes(job: Job) -> Iterator[Finding]:
    """Check the number of nodes and the tasks in each against the machine."""
    node = job.profile.node
    if node.count.known and job.nodes > node.count.needed():
        yield Finding("nodes", "failed", f"--nodes {job.nodes}: {job.profile.title} has {node.count} such nodes")
        return
    cores = (job.cpus_per_task or 1) * job.tasks_per_node
    if node.usable_cores.known and cores > node.usable_cores.needed():
        yield Finding(
            "nodes",
            "failed",
            f"{job.tasks_per_node} tasks of {job.cpus_per_task} cores need {cores}, a node has {node.usable_cores}: "
            "give fewer --tasks-per-node or --cpus-per-task",
        )
        return
    yield Finding("nodes", "ok", f"{job.nodes} of {node.count}")


def check_paths(job: Job, paths: dict[str, Path]) -> Iterator[Finding]:
    """Check that compute nodes see the paths of the job.

    Args:
        job: The job.
        paths: What each path is -> its path.
    """
    hidden = job.profile.storage.login_only_paths.value or ()
    faults = 0
    for what, path in paths.items():
        for place in hidden:
            for seen in {path, path.resolve()}:
                if seen == Path(place) or Path(place) in seen.parents:
                    faults += 1
                    text = f"{what} is {seen}: compute nodes do not see {place}; move it to a file system that they see"
                    yield Finding("paths", "failed", text)
    if not faults:
        known = f"none below {', '.join(hidden)}" if hidden else f"paths that only login nodes see are {NOT_KNOWN}"
        yield Finding("paths", "ok" if hidden else "not checked", known)


def check_space(job: Job) -> Iterator[Finding]:
    """Check that the run folder can be written, and the free inodes and bytes where it will be."""
    place = job.run
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK) or os.statvfs(place).f_flag & os.ST_RDONLY:
        fault = "cannot be written" if place.is_dir() else "is no folder"
        yield Finding("space", "failed", f"{place} {fault}: give another --run, or make it a folder that you may write")
        return
    found = os.statvfs(place)
    free, bytes_free = found.f_favail, found.f_bavail * found.f_frsize
    limit = job.profile.storage.inode_limit
    quota = f"; the project may have {limit} files" if limit.known else ""
    if found.f_files and free < LEAST_INODES:
        yield Finding("space", "failed", f"{place} has {free} free inodes: remove files, or give another --run{quota}")
    elif bytes_free < LEAST_BYTES:
        gigabytes = bytes_free / 1e9
        yield Finding("space", "warning", f"{place} has {gigabytes:.1f} GB free: checkpoints may not fit")
    else:
        inodes = f"{free:,} inodes" if found.f_files else "inodes without limit"
        yield Finding("space", "ok", f"{inodes} and {bytes_free / 1e9:,.0f} GB free at {place}{quota}")


def check_software(job: Job) -> Iterator[Finding]:
    """Check that the container image of the profile is there."""
    pattern = os.environ.get("LEAM_CONTAINER") or job.profile.software.container.value
    if pattern is None or "LEAM_CONTAINER" not in job.python:
        yield Finding("software", "ok", f"started by {job.python}")
    elif images := sorted(glob(pattern)):
        yield Finding("software", "ok", images[-1])
    else:
        yield Finding(
            "software", "failed", f"no image matches {pattern}: set LEAM_CONTAINER to yours, or give --python"
        )


def check_internet(job: Job) -> Iterator[Finding]:
    """Check that compute nodes reach the internet, for a program that fetches from it."""
    internet = job.profile.network.internet
    if internet.value is False:
        text = f"compute nodes of {job.profile.title} reach no internet: run the program on a login or transfer node"
        yield Finding("internet", "failed", text)
    else:
        yield Finding("internet", "ok" if internet.value else "not checked", f"internet of compute nodes: {internet}")


def check_git(job: Job, changed: int) -> Iterator[Finding]:
    """Note the commit that runs, and changes that are in no commit."""
    if job.commit == "unknown":
        yield Finding("git", "not checked", "the code is in no git repository: its version is not recorded")
    elif changed:
        yield Finding("git", "warning", f"commit {job.commit[:12]} with {changed} changed files that are in no commit")
    else:
        yield Finding("git", "ok", f"commit {job.commit[:12]}")
