"""Slurm's commands: submit, look up and signal jobs."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from leam_mm.errors import UserError

PATIENCE = 120  # seconds for an answer of Slurm


@dataclass(frozen=True)
class SlurmJob:
    """A job as squeue lists it.

    Args:
        number: Its id; ``12_3`` for the third job of an array.
        state: PENDING, RUNNING, COMPLETING and so on.
        reason: Why it waits, or empty.
        nodes: Its nodes, or empty.
        end: Its time limit as Slurm prints it, or ``N/A``.
    """

    number: str
    state: str
    reason: str
    nodes: str
    end: str


def available() -> bool:
    """Return whether this machine has Slurm's commands."""
    return shutil.which("sbatch") is not None


def call(command: Iterable[str | Path]) -> str:
    """Run a command of Slurm and return what it prints.

    Raises:
        UserError: It is missing, refuses, or does not answer.
    """
    words = [str(word) for word in command]
    # What a surrounding job sets for its own tasks would change the new one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_") or name in KEPT}
    try:
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    except FileNotFoundError:
        raise UserError(
            f"{words[0]} is not installed here: use a login node of the cluster; --dry-run of submit works everywhere"
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{words[0]} did not answer in {PATIENCE} s: try again later, or see the site's status"
        ) from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise UserError(f"{words[0]} refuses: {said or f'exit code {done.returncode}'}")
    return done.stdout if done.stdout.strip() else done.stderr


KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")


def test_only(script: Path) -> str:
    """Let sbatch check a script without submitting it; return its answer."""
    return " ".join(call(["sbatch", "--test-only", script]).split())


def submit(script: Path, *options: str) -> str:
    """Submit a script and return the id of the job."""
    answer = call(["sbatch", "--parsable", *options, script])
    number = answer.strip().partition(";")[0]
    if not re.fullmatch(r"\d+", number):
        raise UserError(f"sbatch printed {answer.strip()!r} in place of a job id: see squeue for the job")
    return number


def jobs_named(name: str) -> list[SlurmJob]:
    """Return the waiting and running jobs of this user with a name."""
    user = ["--user", str(os.getuid())]
    lines = call(["squeue", "--noheader", *user, "--name", name, "--format", "%i|%T|%r|%N|%e"]).splitlines()
    parts = [line.strip().split("|") for line in lines if line.count("|") == 4]
    return [SlurmJob(one[0], one[1], "" if one[2] == "None" else one[2], one[3], one[4]) for one in parts]


def submit_chain(script: Path, jobs: int) -> list[str]:
    """Submit a script once, or several times to run one job after another; return the ids."""
    if jobs == 1:
        return [submit(script)]
    return [submit(script, "--dependency=singleton") for _ in range(jobs)]


def cancel(number: str) -> None:
    """Cancel a job that waits."""
    call(["scancel", number])


def signal_job(number: str) -> None:
    """Send USR1 to the tasks of a running job, which then saves and exits."""
    call(["scancel", "--signal=USR1", number])
