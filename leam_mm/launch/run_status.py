"""Say where a run stands: its jobs in Slurm, samples seen, the newest checkpoint and log."""

import csv
import re
import time
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console
from rich.markup import escape

from leam_mm.command_line import parse_settings
from leam_mm.launch import slurm_client
from leam_mm.launch.job import STOPPED
from leam_mm.launch.run_logs import last_lines, newest_log
from leam_mm.launch.run_record import read_record

LAST = "last.ckpt"  # as in leam_mm/checkpoint.py, which imports torch
ENDED = re.compile(r"job (\d+), exit code (\d+), (\S+)")
MEANINGS = {0: "finished", 2: "refused its settings", 75: "saved and stopped", 76: "a rank died or was stuck"}


@dataclass(frozen=True)
class StatusSettings:
    """Settings of status.

    Args:
        run: Run folder.
    """

    run: Path


def status_lines(run: Path) -> list[tuple[str, str]]:
    """Return label and text of each line."""
    record = read_record(run)
    found = [("run", f"{run.resolve()} on {record['cluster']}")]
    jobs = slurm_client.jobs_named(record["name"]) if slurm_client.available() else []
    for job in jobs:
        where = f" on {job.nodes}, until {job.end}" if job.nodes else f" ({job.reason})" if job.reason else ""
        found.append(("job", f"{job.number} {job.state}{where}"))
    if not slurm_client.available():
        found.append(("job", f"not known: squeue is not installed here; last submitted {record['jobs'][-1]['id']}"))
    elif not jobs:
        found.append(("job", f"none waits or runs; last submitted {record['jobs'][-1]['id']}{_last_end(run)}"))
    if (run / STOPPED).exists():
        found.append(("stopped", f"by hand: python -m leam_mm.launch resume {run}"))
    found += [("progress", _progress(run)), ("checkpoint", _checkpoint(run))]
    log = newest_log(run)
    found.append(("log", str(log) if log else "none yet"))
    return found


def _last_end(run: Path) -> str:
    log = newest_log(run)
    ends = [match for line in (last_lines(log, 40) if log else []) if (match := ENDED.match(line))]
    if not ends:
        return ""
    number, code, at = ends[-1].groups()
    meaning = MEANINGS.get(int(code))
    return f"; job {number} ended at {at} with code {code}" + (f" ({meaning})" if meaning else "")


def _progress(run: Path) -> str:
    """Return the samples seen in the last row of metrics.csv that has them, and those of the whole run."""
    path = run / "metrics.csv"
    try:
        with open(path, newline="") as file:
            rows = [row["samples_seen"] for row in csv.DictReader(file) if row.get("samples_seen")]
        seen = f"{float(rows[-1]):,.0f}"
    except (OSError, ValueError, IndexError):
        return "not known: no samples seen are in metrics.csv yet"
    total = _length(run)
    share = f" of {total:,} ({float(rows[-1]) / total:.1%})" if total else ""
    return f"{seen} samples seen{share}, {_age(path)} ago"


def _length(run: Path) -> int | None:
    try:
        found = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")).get("max_samples")
    except (OSError, yaml.YAMLError, AttributeError):
        return None
    return found if isinstance(found, int) and found > 0 else None


def _checkpoint(run: Path) -> str:
    path = run / "checkpoints" / LAST
    if not path.exists():
        return "none yet"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(path.stat().st_mtime))
    return f"{path}, written at {when}, {_age(path)} ago"


def _age(path: Path) -> str:
    seconds = max(0, time.time() - path.stat().st_mtime)
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def main(args: list[str]) -> None:
    """Run the program."""
    program = "python -m leam_mm.launch status"
    settings = parse_settings(StatusSettings, __doc__, args, positional=("run",), program=program)
    console = Console(soft_wrap=True, highlight=False)
    for label, text in status_lines(settings.run):
        console.print(f"{label:12}{escape(text)}")
