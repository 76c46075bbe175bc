"""The doctor's report: a table by host for people, and a JSON file for programs."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from leam_mm.launch.check_result import WORST_FIRST, CheckResult, Verdict, worst
from leam_mm.launch.rank_comparison import UNKNOWN_HOST, RankReport, by_host

FORMAT = 1  # of the JSON file
SHOWN_HOSTS = 4  # of more hosts, those without a finding get one line
STYLES = {"pass": "green", "warn": "yellow", "fail": "red", "not run": "dim"}


@dataclass(frozen=True)
class DoctorReport:
    """Results of a job.

    Args:
        reports: Reports of the ranks that answered, and of missing ones what is known.
        job: Results about the job as a whole.
        world: Number of ranks.
        cluster: Name of the profile, or "".
        exclude: Option of sbatch that excludes slow hosts, or "".
        seconds: Duration.
    """

    reports: Sequence[RankReport]
    job: Sequence[CheckResult]
    world: int
    cluster: str
    exclude: str
    seconds: float

    def results(self) -> list[CheckResult]:
        """Return all results."""
        return [*self.job, *(result for report in self.reports for result in report.results)]

    def exit_code(self) -> int:
        """Return 1 if something failed, else 0."""
        return int(worst(self.results()) == "fail")

    def to_json(self) -> dict[str, Any]:
        """Return the content of the JSON file."""
        listed = [{"host": r.host, "rank": r.rank, **asdict(result)} for r in self.reports for result in r.results]
        return {
            "format": FORMAT,
            "verdict": worst(self.results()),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(self.seconds, 1),
            "cluster": self.cluster or None,
            "ranks": self.world,
            "hosts": list(by_host(self.reports)),
            "exclude": self.exclude or None,
            "results": [{"host": None, "rank": None, **asdict(result)} for result in self.job] + listed,
        }


def print_report(report: DoctorReport, console: Console) -> None:
    """Print the tables, the fixes and a line with the verdict."""
    hosts = by_host(report.reports)
    for host, ranks in hosts.items():
        everything = [result for one in ranks for result in one.results]
        if len(hosts) > SHOWN_HOSTS and worst(everything) in ("pass", "not run"):
            console.print(f"[bold]{escape(host)}[/]: no finding in {len(everything)} results")
            continue
        _print_table(f"{host}, {_ranks(ranks)}", _grouped(ranks), console)
    if report.job:
        _print_table("all ranks", [("", result) for result in report.job], console)
    fixes = dict.fromkeys((r.verdict, r.name, r.fix) for r in report.results() if r.fix and r.verdict != "pass")
    for verdict, name, fix in sorted(fixes, key=lambda one: WORST_FIRST.index(one[0])):
        console.print(f"[{STYLES[verdict]}]{verdict}[/] {escape(name)}: {escape(fix)}")
    if report.exclude:
        console.print(f"slow hosts: sbatch {escape(report.exclude)}")
    counts = {verdict: sum(r.verdict == verdict for r in report.results()) for verdict in WORST_FIRST}
    words = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    ranks_word = "1 rank" if report.world == 1 else f"{report.world} ranks"
    known = len(hosts.keys() - {UNKNOWN_HOST})
    hosts_word = "1 host" if known == 1 else f"{known} hosts"
    console.print(f"{words}; {ranks_word} on {hosts_word}, {report.seconds:.0f} s")


def _print_table(title: str, rows: Sequence[tuple[str, CheckResult]], console: Console) -> None:
    table = Table(title=escape(title), title_justify="left", pad_edge=False)
    for name in ("check", "ranks", "found", "verdict", "notes"):
        table.add_column(name, overflow="fold")
    for ranks, result in rows:
        notes = [result.reason, f"expected: {result.expected}" if result.expected else ""]
        found = _found(result)
        verdict = f"[{STYLES[result.verdict]}]{result.verdict}[/]"
        table.add_row(escape(result.name), ranks, escape(found), verdict, escape("; ".join(filter(None, notes))))
    console.print(table)


def _found(result: CheckResult) -> str:
    if result.value is None:
        return "" if result.verdict == "not run" else "not measured"
    return f"{_value(result.value)} {result.unit}".strip()


def _value(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _ranks(reports: Sequence[RankReport]) -> str:
    numbers = sorted({report.rank for report in reports})
    return f"rank {numbers[0]}" if len(numbers) == 1 else f"ranks {_numbers(numbers)}"


def _numbers(numbers: Sequence[int]) -> str:
    whole = list(numbers) == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) > 2
    return f"{numbers[0]}-{numbers[-1]}" if whole else ", ".join(map(str, numbers))


def _grouped(ranks: Sequence[RankReport]) -> list[tuple[str, CheckResult]]:
    """Return one row for the results of a name and verdict on one host; numbers become a range."""
    groups: dict[tuple[str, Verdict], list[tuple[int, CheckResult]]] = {}
    for report in ranks:
        for result in report.results:
            groups.setdefault((result.name, result.verdict), []).append((report.rank, result))
    rows = []
    for found in groups.values():
        first = found[0][1]
        values = [result.value for _, result in found]
        value = first.value
        if len(set(values)) > 1:
            numbers = [v for v in values if isinstance(v, float | int)]
            value = f"{_value(min(numbers))} to {_value(max(numbers))}" if len(numbers) == len(values) else ", ".join(
                dict.fromkeys("not measured" if v is None else _value(v) for v in values))  # fmt: skip
        rows.append((_numbers(sorted({rank for rank, _ in found})), CheckResult(
            first.name, value, first.unit, first.expected, first.verdict, first.reason, first.fix)))  # fmt: skip
    return rows
