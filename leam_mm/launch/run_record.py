"""launch.json in a run folder: which jobs were submitted for the run, when, and with which settings."""

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leam_mm.errors import UserError
from leam_mm.files import write_json
from leam_mm.json_text import parse_object
from leam_mm.launch.job import RECORD, Job


@dataclass(frozen=True)
class Commit:
    """State of the repository.

    Args:
        sha: Commit, or ``unknown`` outside git.
        changed: Number of files with changes that are not committed.
    """

    sha: str
    changed: int


def read_commit(root: Path) -> Commit:
    """Return the state of the repository; a copy without git is ``unknown``."""
    git = ["git", "-C", str(root)]
    try:
        sha = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=60, check=True).stdout
        short = [*git, "status", "--porcelain"]
        changes = subprocess.run(short, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return Commit("unknown", 0)
    return Commit(sha.strip(), len(changes.splitlines()))


def read_record(run: Path) -> dict[str, Any]:
    """Return the record of a run folder.

    Raises:
        UserError: No job was submitted for the folder, or its record is damaged.
    """
    path = run / RECORD
    try:
        found = parse_object(path.read_bytes())
        if not isinstance(found["name"], str) or not isinstance(found["cluster"], str) or not found["jobs"][-1]["id"]:
            raise ValueError("it names no run, cluster or job")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} does not exist: give the run folder of a job that the launcher submitted") from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore it, or submit the run again") from None
    return found


def add_jobs(job: Job, numbers: list[str], costs: dict[str, Any], plan: list[dict[str, Any]] | None) -> None:
    """Record the jobs of a submission, after those of earlier ones.

    Args:
        job: The job.
        numbers: Ids that Slurm gave.
        costs: What the job uses until its time limit.
        plan: Estimates of the whole run; None if there are none.
    """
    path = job.run / RECORD
    before = read_record(job.run)["jobs"] if path.is_file() else []
    record = {
        "name": job.name,
        "cluster": job.cluster,
        "directory": str(job.directory),
        "command": list(job.words),
        "nodes": job.nodes,
        "seconds": job.seconds,
        "chain": job.chain,
        "commit": job.commit,
        "costs_until_the_time_limit": costs,
        "plan_of_the_run": plan,
        "jobs": [*before, *(entry(number, "submit") for number in numbers)],
    }
    write_json(path, record)


def add_resumed(run: Path, numbers: list[str]) -> None:
    """Record jobs that continue a run."""
    record = read_record(run)
    write_json(run / RECORD, record | {"jobs": [*record["jobs"], *(entry(number, "resume") for number in numbers)]})


def entry(number: str, by: str) -> dict[str, str]:
    """Return the line of a job."""
    return {"id": number, "by": by, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
