"""Stop a run so that it can be resumed, and resume it."""

import time
from dataclasses import dataclass
from pathlib import Path

from leam_mm.command_line import parse_settings
from leam_mm.errors import UserError
from leam_mm.files import write_text
from leam_mm.launch import slurm_client
from leam_mm.launch.job import SCRIPT, STOPPED, SUBMITTING
from leam_mm.launch.run_record import add_resumed, read_record
from leam_mm.run_lock import run_lock

STOP = """Save a checkpoint and end the jobs of a run, which are not started again until it is resumed.

Waiting jobs are cancelled. A running one gets USR1: it saves at the end of its step and exits."""
RESUME = """Submit the script of a run again; training continues from its last checkpoint."""


@dataclass(frozen=True)
class StopSettings:
    """Settings of stop.

    Args:
        run: Run folder.
    """

    run: Path


@dataclass(frozen=True)
class ResumeSettings:
    """Settings of resume.

    Args:
        run: Run folder.
    """

    run: Path


def main(args: list[str]) -> None:
    """Stop a run."""
    program = "python -m leam_mm.launch stop"
    run = parse_settings(StopSettings, STOP, args, positional=("run",), program=program).run.resolve()
    name = read_record(run)["name"]
    jobs = slurm_client.jobs_named(name)
    if not jobs:
        raise UserError(f"{run} has no job that waits or runs: there is nothing to stop")
    # Before the signal: the script looks for the file after the end of its step.
    write_text(run / STOPPED, f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}\n")
    for job in sorted(jobs, key=lambda one: one.state != "PENDING"):
        if job.state == "PENDING":
            slurm_client.cancel(job.number)
            print(f"job {job.number} waited and is cancelled")
        else:
            slurm_client.signal_job(job.number)
            print(f"job {job.number} saves and exits; python -m leam_mm.launch status {run}")


def resume(args: list[str]) -> None:
    """Resume a run."""
    program = "python -m leam_mm.launch resume"
    run = parse_settings(ResumeSettings, RESUME, args, positional=("run",), program=program).run.resolve()
    record = read_record(run)
    script = run / SCRIPT
    if not script.is_file():
        raise UserError(f"{script} does not exist: submit the run again")
    for job in slurm_client.jobs_named(record["name"]):
        raise UserError(f"job {job.number} of {run} is {job.state}: it continues by itself")
    with run_lock(run / SUBMITTING, folder=run):
        (run / STOPPED).unlink(missing_ok=True)
        numbers = slurm_client.submit_chain(script, int(record.get("chain", 1)))
        add_resumed(run, numbers)
    print(f"submitted job {', '.join(numbers)}; python -m leam_mm.launch status {run}")
