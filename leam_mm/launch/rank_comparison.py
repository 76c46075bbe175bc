"""Comparisons between the ranks of a job: shared cores, slow devices, different versions, missing ranks."""

import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from leam_mm.launch.check_result import CheckResult, Verdict

OUTLIER = 0.15  # below the median by more than this share: one slow rank slows down all
UNKNOWN_HOST = "unknown host"


@dataclass(frozen=True)
class RankReport:
    """Results of one rank.

    Args:
        rank: The rank.
        host: Its host.
        results: Results of its checks.
    """

    rank: int
    host: str
    results: Sequence[CheckResult] = field(default_factory=tuple)

    def find(self, name: str) -> CheckResult | None:
        """Return the result of a name."""
        return next((result for result in self.results if result.name == name), None)


def shared_cores(reports: Sequence[RankReport], needed: int | None = None) -> Iterator[RankReport]:
    """Compare the cores of the ranks of each host.

    Args:
        reports: Reports of all ranks.
        needed: Cores of each task in the profile; None if not known.

    Yields:
        A result for each host with several ranks, as one of its first rank.
    """
    for host, ranks in by_host(reports).items():
        cores = {r.rank: set(found.data["cores"]) for r in ranks if (found := r.find("cpu affinity")) and found.data}
        if len(cores) < 2:
            continue
        together, each = set().union(*cores.values()), sum(map(len, cores.values()))
        share = len(together) / len(cores)
        verdict: Verdict = "pass"
        reason = "each rank has cores of its own"
        if each > len(together):
            names = ", ".join(map(str, sorted(cores)))
            reason = f"ranks {names} share {len(together)} cores, {share:g} a rank"
            few = share < (needed or 2)
            bound = any(one != together for one in cores.values())
            verdict = "fail" if share < 1 or (needed and few) or (bound and few) else "warn" if few else "pass"
        fix = "bind each rank to cores of its own: --cpus-per-task with SRUN_CPUS_PER_TASK, or the profile's cpu_bind"
        fix = fix if verdict != "pass" else ""
        result = CheckResult("cores of ranks", round(share, 2), "cores a rank", "no shared cores", verdict, reason, fix)
        yield RankReport(min(cores), host, [result])


def slow_devices(reports: Sequence[RankReport]) -> tuple[list[RankReport], str]:
    """Find ranks whose matrix product is slower than the median of all ranks by more than ``OUTLIER``.

    Returns:
        A result for each slow rank; and the option of sbatch that excludes their hosts, or "" if there is none or no
        host would be left.
    """
    products = [(report, report.find("matrix product")) for report in reports]
    speeds = [(report, found, float(found.value)) for report, found in products if found and found.value is not None]
    if len(speeds) < 2:
        return [], ""
    median = statistics.median(speed for _, _, speed in speeds)
    slow: list[RankReport] = []
    hosts: set[str] = set()
    for report, found, speed in speeds:
        if speed >= (1 - OUTLIER) * median:
            continue
        gpu = found.data.get("device") != "cpu"  # processes on a CPU share cores and caches
        hosts |= {report.host} if gpu else set()
        result = CheckResult(
            "slow device",
            speed,
            found.unit,
            f"at least {(1 - OUTLIER) * median:.3g}; the median is {median:.3g}",
            "fail" if gpu else "warn",
            f"rank {report.rank} on {report.host} slows down all ranks",
            f"sbatch {exclude_option([report.host])}" if gpu else "look for other processes on the CPU",
        )
        slow.append(RankReport(report.rank, report.host, [result]))
    left = {report.host for report in reports} - hosts
    return slow, exclude_option(hosts) if left else ""


def exclude_option(hosts: Iterable[str]) -> str:
    """Return ``--exclude=n3,n7`` for sbatch, or "" without hosts."""
    names = ",".join(sorted(set(hosts)))
    return f"--exclude={names}" if names else ""


def different_versions(reports: Sequence[RankReport]) -> CheckResult | None:
    """Compare the versions that the ranks report; None if they agree."""
    found: dict[str, dict[Any, list[int]]] = {}
    for report in reports:
        result = report.find("versions")
        for name, version in (result.data.get("versions", {}) if result else {}).items():
            found.setdefault(name, {}).setdefault(version, []).append(report.rank)
    differ = {name: versions for name, versions in found.items() if len(versions) > 1}
    if not differ:
        return None
    words = "; ".join(
        f"{name}: " + ", ".join(f"{version} on ranks {_few(ranks)}" for version, ranks in versions.items())
        for name, versions in differ.items()
    )
    return CheckResult("same versions", len(differ), "differ", "0", "fail", words, "use one environment on all hosts",
                       json.loads(json.dumps(differ)))  # fmt: skip


def missing_ranks(
    world: int, hosts: dict[int, str], last: dict[int, str], answered: Iterable[int], seconds: float
) -> list[RankReport]:
    """Name the ranks without results.

    Args:
        world: Number of ranks.
        hosts: Host of each rank that joined.
        last: Name of the last check that a rank started.
        answered: Ranks with results.
        seconds: How long they were waited for.

    Returns:
        One failed result for each missing rank.
    """
    found = []
    for rank in sorted(set(range(world)) - set(answered)):
        host = hosts.get(rank, UNKNOWN_HOST)
        where = f"its last check was {last[rank]}" if rank in last else "it did not join"
        fix = "compare scontrol show hostnames with the hosts of this report, and exclude the missing one"
        if rank in hosts:
            fix = f"read its log; if it stays, sbatch {exclude_option([host])}"
        reason = f"rank {rank} on {host} did not answer within {seconds:g} s; {where}"
        found.append(RankReport(rank, host, [CheckResult("answer", None, "", "", "fail", reason, fix)]))
    return found


def by_host(reports: Iterable[RankReport]) -> dict[str, list[RankReport]]:
    """Return reports by host, in their order."""
    hosts: dict[str, list[RankReport]] = {}
    for report in reports:
        hosts.setdefault(report.host, []).append(report)
    return hosts


def _few(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks[:4])) + (f" and {len(ranks) - 4} more" if len(ranks) > 4 else "")
