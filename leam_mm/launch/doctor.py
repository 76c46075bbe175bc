"""Examine a node, or all nodes of an allocation, before a training run starts.

    python -m leam_mm.launch doctor
    python -m leam_mm.launch doctor --cluster lumi_g --run runs/clip --json doctor.json
    srun python -m leam_mm.launch doctor --cluster lumi_g --run runs/clip      (one process a GPU)
    torchrun --nproc-per-node 4 -m -- leam_mm.launch doctor --run runs/clip    (torchrun has a --run of its own)

Each check has a hard time limit. Rank 0 collects the results, names ranks that do not answer, prints a table by host
and ends with 0 if nothing failed and 1 if something did; a wrong command line ends with 2.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from rich.console import Console

from leam_mm.command_line import Range, parse_settings
from leam_mm.errors import UserError, run
from leam_mm.files import write_json
from leam_mm.launch.check_process import Check, Target, run_check
from leam_mm.launch.check_result import CheckResult, results_from_json, results_to_json
from leam_mm.launch.device_checks import check_attention, check_matmul
from leam_mm.launch.doctor_meeting import RankMeeting
from leam_mm.launch.doctor_report import DoctorReport, print_report
from leam_mm.launch.group_checks import (
    ALL_REDUCE_FIX,
    SECOND_GROUP_FIX,
    check_all_reduce,
    check_clock,
    check_second_group,
    check_shared_folder,
)
from leam_mm.launch.network_checks import check_interfaces, check_ipv6, check_master_address
from leam_mm.launch.node_checks import (
    check_affinity,
    check_decoding,
    check_energy,
    check_environment,
    check_gpus,
    check_memory_limit,
    check_versions,
)
from leam_mm.launch.rank_comparison import RankReport, different_versions, missing_ranks, shared_cores, slow_devices
from leam_mm.launch.rank_environment import RankEnvironment, rank_environment
from leam_mm.launch.storage_checks import check_file_operations, check_run_folder, check_tmp, check_writing
from leam_mm.planning.cluster_profile import ClusterProfile, load_profile

DISK = "the file system does not answer: report it to the site, or use another folder"
DRIVER = "the GPU does not answer: exclude the node and report it to the site"
START = 15  # seconds in which all ranks must start a check that they run together
NAMES = "the name service does not answer: give MASTER_ADDR as a number"
CHECKS = (
    Check("affinity", check_affinity, 10),
    Check("memory", check_memory_limit, 10, per_host=True),
    Check("versions", check_versions, 30, DRIVER),
    Check("gpus", check_gpus, 60, DRIVER),
    Check("environment", check_environment, 10, per_host=True),
    Check("interfaces", check_interfaces, 10),
    Check("ipv6", check_ipv6, 10, per_host=True),
    Check("master", check_master_address, 15, NAMES),
    Check("tmp", check_tmp, 15, DISK, per_host=True),
    Check("run_folder", check_run_folder, 15, DISK, per_host=True),
    Check("writing", check_writing, 45, DISK, per_host=True),
    Check("files", check_file_operations, 30, DISK, per_host=True),
    Check("matmul", check_matmul, 60, DRIVER),
    Check("attention", check_attention, 90, DRIVER, per_host=True),
    Check("decoding", check_decoding, 45, per_host=True),
    Check("energy", check_energy, 45, "the counter does not answer: report it to the site", per_host=True),
    Check("clock", check_clock, 30, ALL_REDUCE_FIX, together=True),
    Check("shared", check_shared_folder, 20, DISK, together=True),
    Check("all_reduce", check_all_reduce, 45, ALL_REDUCE_FIX, together=True),
    Check("second_group", check_second_group, 35, SECOND_GROUP_FIX, together=True),
)


@dataclass(frozen=True)
class DoctorSettings:
    """Settings of the doctor.

    Args:
        cluster: Name of a profile in configs/clusters, or path of a YAML file; without it nothing is expected.
        json: File for the results.
        run: Folder in which the run will write; created if missing.
        only: Names of checks to run; by default all.
        wait: Seconds in which the ranks must join and, after the last check of rank 0, answer.
    """

    cluster: str | None = None
    json: Path | None = None
    run: Path | None = None
    only: list[str] = field(default_factory=list)
    wait: Annotated[float, Range(above=0, most=3600)] = 60.0


def examine(settings: DoctorSettings, console: Console, checks: Sequence[Check] = CHECKS) -> int:
    """Run the checks on this rank; on rank 0 print and write the report of all ranks.

    Args:
        settings: What to examine.
        console: Where rank 0 prints.
        checks: All checks, the same on each rank.

    Returns:
        Exit code: 1 if something failed, else 0; other ranks than 0 return 0 once their results are delivered.
    """
    began = time.monotonic()
    unknown = sorted(set(settings.only) - {check.name for check in checks})
    if unknown:
        raise UserError(f"--only {unknown[0]}: give one of {', '.join(check.name for check in checks)}")
    profile = load_profile(settings.cluster) if settings.cluster else ClusterProfile("", "unknown cluster")
    ranks = rank_environment()
    checks = [check for check in checks if not settings.only or check.name in settings.only]
    target = Target(ranks, profile, settings.run)
    job: list[CheckResult] = []
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # a refused connection prints its stack otherwise
    try:
        import torch  # noqa: F401  (once, before the checks are forked)

        meeting = RankMeeting(ranks, settings.wait) if ranks.world > 1 else None
    except (ImportError, OSError) as error:
        job.append(_failed("torch", f"cannot be imported: {_line(error)}", "install it, or load the site's module"))
        meeting = None
    except RuntimeError as error:
        reason = f"rank {ranks.rank} does not reach rank 0 at {ranks.address}:{ranks.port} ({_line(error)})"
        job.append(_failed("meeting", reason, f"{ALL_REDUCE_FIX}; or the port is in use: set MASTER_PORT"))
        meeting = None
    if meeting is None:
        if job and ranks.local_rank:
            return 1
        results = [result for check in checks if not (job and check.together) for result in _one(check, target)]
        return _finish(settings, console, [RankReport(ranks.rank, ranks.host, results)], job, target, began)
    try:
        return _together(settings, console, checks, target, meeting, began)
    except RuntimeError as error:
        reason = f"rank {ranks.rank} on {ranks.host} lost rank 0 at {ranks.address}:{ranks.port}"
        print(f"error: {reason} ({_line(error)}): read the log of rank 0", file=sys.stderr)
        return 1


def _together(
    settings: DoctorSettings, console: Console, checks: Sequence[Check], target: Target, meeting: RankMeeting,
    began: float,
) -> int:  # fmt: skip
    ranks = target.ranks
    meeting.say("host", ranks.host)
    meeting.say("local_rank", str(ranks.local_rank))
    results: list[CheckResult] = []
    for check in checks:
        if not check.together:
            meeting.say("check", check.name)
            results += _one(check, target)
    meeting.say("ready", "1")
    absent = _absent(meeting, ranks, settings.wait, began)
    for check in (check for check in checks if check.together):
        meeting.say("check", check.name)
        if absent:
            reason = f"rank {', '.join(map(str, absent[:8]))} does not answer"
            results.append(CheckResult(check.name, None, verdict="not run", reason=reason))
            continue
        meeting.start_together(f"start-{check.name}", START)
        results += _one(check, target)
    meeting.say("results", results_to_json(results))
    if ranks.rank:
        return 0
    texts = meeting.hear("results", settings.wait, set(range(ranks.world)) - set(absent))
    hosts, last = meeting.hear("host", 0), meeting.hear("check", 0)
    reports = [RankReport(rank, hosts[rank], results_from_json(text)) for rank, text in sorted(texts.items())]
    reports += missing_ranks(ranks.world, hosts, last, texts, settings.wait)
    return _finish(settings, console, reports, [], target, began)


def _absent(meeting: RankMeeting, ranks: RankEnvironment, seconds: float, began: float) -> list[int]:
    """Return the ranks that did not finish their own checks in time; rank 0 decides for all."""
    if ranks.rank == 0:
        joined = meeting.hear("host", max(0.0, seconds - (time.monotonic() - began)))
        ready = meeting.hear("ready", seconds, joined)
        absent = sorted(set(range(ranks.world)) - set(ready))
        meeting.announce("absent", json.dumps(absent))
        return absent
    longest = sum(check.seconds for check in CHECKS)
    return json.loads(meeting.announced("absent", longest + 2 * seconds) or "[0]")


def _one(check: Check, target: Target) -> list[CheckResult]:
    if check.per_host and target.ranks.local_rank:
        return []
    if target.ranks.rank == 0 and sys.stderr.isatty():
        print(f"check {check.name} ...", file=sys.stderr)
    return run_check(check, target)


def _finish(
    settings: DoctorSettings, console: Console, reports: list[RankReport], job: list[CheckResult], target: Target,
    began: float,
) -> int:  # fmt: skip
    """Compare the ranks, print and write the report, and return the exit code."""
    slow, exclude = slow_devices(reports)
    reports = [*reports, *shared_cores(reports, target.profile.slurm.cpus_per_task.value), *slow]
    versions = different_versions(reports)
    job += [versions] if versions else []
    report = DoctorReport(reports, job, target.ranks.world, settings.cluster or "", exclude, time.monotonic() - began)
    print_report(report, console)
    if settings.json:
        write_json(settings.json, report.to_json())
    return report.exit_code()


def _failed(name: str, reason: str, fix: str) -> CheckResult:
    return CheckResult(name, None, verdict="fail", reason=reason, fix=fix)


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def doctor(settings: DoctorSettings) -> None:
    """Run the doctor and end the process with its exit code."""
    code = examine(settings, Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 160))
    sys.stdout.flush()
    raise SystemExit(code)


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    doctor(parse_settings(DoctorSettings, __doc__, args, program="python -m leam_mm.launch doctor"))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    run(main)
