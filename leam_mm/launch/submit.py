"""Submit a training run, or a program of data_tools, to a cluster.

    python -m leam_mm.launch submit --cluster lumi_g --nodes 16 --time 24h --account PROJECT configs/clip_vit_b16.yaml
    python -m leam_mm.launch submit --cluster lumi_g --dry-run RECIPE.yaml --config configs/overlay_fsdp2.yaml
    python -m leam_mm.launch submit --cluster lumi_g --program data_tools/encode_latents.py -- --shards S ...

Prints what the job costs at most, checks what can be checked before it waits in the queue, writes job.sh into the run
folder and submits it. All words after the recipe that are no options below go to train.py. With --dry-run nothing is
written or submitted, and Slurm is not needed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from leam_mm.command_line import PositiveFloat, parse_settings
from leam_mm.errors import UserError, one_line
from leam_mm.files import write_text
from leam_mm.launch import slurm_client
from leam_mm.launch.cost_lines import cost_lines, cost_values
from leam_mm.launch.energy_words import energy_words
from leam_mm.launch.job import LOGS, ROOT, SCRIPT, STOPPED, SUBMITTING, Job
from leam_mm.launch.job_script import render
from leam_mm.launch.job_settings import JobSettings, make_job
from leam_mm.launch.preflight import (
    Finding,
    check_account,
    check_git,
    check_internet,
    check_nodes,
    check_paths,
    check_queue,
    check_software,
    check_space,
)
from leam_mm.launch.programs import Program, find_program, option, uses_devices, with_processes
from leam_mm.launch.recipe_checks import check_batch, check_models, check_shards
from leam_mm.launch.resolved_recipe import ResolvedRecipe, resolve, train_words
from leam_mm.launch.run_record import add_jobs, read_commit
from leam_mm.launch.submit_words import split_words
from leam_mm.planning.cluster_profile import ClusterProfile, load_profile
from leam_mm.run_lock import run_lock

if TYPE_CHECKING:
    from leam_mm.planning.cost_plan import Plan

PROGRAM = "python -m leam_mm.launch submit"
MARKS = {"ok": "green", "failed": "red", "warning": "yellow", "not checked": "dim"}
OF_MACHINE = ("account", "queue", "nodes", "space", "software", "git", "slurm")
CHECKS = (*OF_MACHINE, "batch", "shards", "models", "internet", "paths")


@dataclass(frozen=True)
class SubmitSettings(JobSettings):
    """Settings of submit.

    Args:
        program: Python file to run in place of train.py, such as data_tools/encode_latents.py; its arguments follow --.
        calibration: File of `python -m leam_mm.planning calibrate`, whose measured speed the plan takes.
        quota: Granted device hours, to print the share that the run takes.
    """

    program: str | None = None
    calibration: Path | None = None
    quota: PositiveFloat | None = None


def main(args: list[str]) -> None:
    """Run the program."""
    own, recipe, rest = split_words(SubmitSettings, args)
    settings = parse_settings(SubmitSettings, __doc__, own, program=PROGRAM)
    console = Console(soft_wrap=True, highlight=False)
    if settings.program is not None:
        if recipe is not None:
            raise UserError(f"{recipe}: write the arguments of {settings.program} after --")
        submit_program(settings, rest, console)
    elif recipe is None:
        raise UserError(f"name a recipe, such as configs/clip_vit_b16.yaml; see {PROGRAM} --help")
    else:
        profile = load_profile(settings.cluster)
        found = resolve(recipe, rest, settings.run, Path.cwd())
        plan = plan_recipe(found, profile, settings, console)
        more = [*energy_words(profile.site, found), *rest]
        job = make_job(settings, found.run, train_words(recipe, more, settings.run), hours=whole_hours(plan))
        launch(job, recipe_findings(job, found), settings, console, plan=plan)


def plan_recipe(
    recipe: ResolvedRecipe, profile: ClusterProfile, settings: SubmitSettings, console: Console
) -> "Plan | None":
    """Return the plan of the whole run, or None with a remark where the planner does not know the recipe's parts."""
    from leam_mm.planning.cost_plan import plan_run  # imports torch
    from leam_mm.planning.plan_command import measured_mfu

    mfu = measured_mfu(settings.calibration, profile) if settings.calibration is not None else None
    quota, now = settings.quota, datetime.now()
    try:
        return plan_run(recipe.settings, profile, settings.nodes, mfu=mfu, quota_gpu_hours=quota, start=now)
    except UserError as error:
        console.print(f"no plan of the whole run: {escape(one_line(error))}")
        return None


def whole_hours(plan: "Plan | None") -> float | None:
    """Return the longest estimate of a run's wall time, in hours; None if not known."""
    hours = [one.hours for one in plan.estimates if one.hours is not None] if plan is not None else []
    return max(hours, default=None)


def recipe_findings(job: Job, recipe: ResolvedRecipe) -> Iterator[Finding]:
    """Yield the findings that a recipe allows."""
    yield from check_batch(recipe, job)
    yield from check_shards(recipe)
    yield from check_models(recipe)
    paths = {key: recipe.directory / text for key, text in recipe.inputs() if (recipe.directory / text).exists()}
    yield from check_paths(job, paths | {"the run folder": job.run, "the repository": ROOT})


def submit_program(settings: SubmitSettings, words: list[str], console: Console) -> None:
    """Submit a program of data_tools."""
    assert settings.program is not None
    load_profile(settings.cluster)
    name, program = find_program(settings.program)
    output = option(words, "--output")
    if settings.run is None and output is None:
        raise UserError(f"{name} has no --output: give --run FOLDER for script and logs")
    run = Path(settings.run or f"{str(output).rstrip('/')}.launch").resolve()
    devices = uses_devices(words, program)
    command = (str(Path(settings.program).resolve()), *words)
    if program.slices and settings.nodes > 1:
        slices = tuple(("--slice", f"{number}/{settings.nodes}") for number in range(settings.nodes))
        single = JobSettings(**{**_fields(settings), "nodes": 1})
        array = make_job(single, run, command, "program", array=slices, devices=devices, one_task=True)
        last = make_job(single, run / "last", command, "program", devices=devices, one_task=True)
        launch(array, program_findings(array, program), settings, console, then=last)
        return
    if settings.nodes > 1:
        raise UserError(f"{name} runs on one node: leave out --nodes {settings.nodes}")
    job = make_job(settings, run, command, "program", devices=devices, one_task=True)
    words = list(with_processes(words, program, job.gpus_per_node, job.cpus_per_task))
    job = make_job(settings, run, (command[0], *words), "program", devices=devices, one_task=True)
    launch(job, program_findings(job, program), settings, console)


def _fields(settings: JobSettings) -> dict:
    return {name: getattr(settings, name) for name in JobSettings.__dataclass_fields__}


def program_findings(job: Job, program: Program) -> Iterator[Finding]:
    """Yield the findings that a program's arguments allow."""
    if program.internet:
        yield from check_internet(job)
    paths = {word: job.directory / word for word in job.words[1:] if "/" in word and (job.directory / word).exists()}
    yield from check_paths(job, paths | {"the run folder": job.run, "the repository": ROOT})


def machine_findings(job: Job) -> Iterator[Finding]:
    """Yield the findings about account, queue, nodes, disk and software."""
    yield from check_account(job)
    yield from check_queue(job)
    yield from check_nodes(job)
    yield from check_space(job)
    yield from check_software(job)
    yield from check_git(job, read_commit(ROOT).changed)


def launch(
    job: Job,
    findings: Iterable[Finding],
    settings: JobSettings,
    console: Console,
    then: Job | None = None,
    plan: "Plan | None" = None,
) -> None:
    """Print the plan and the findings, write the script and submit it.

    Args:
        job: The job.
        findings: Findings about what it runs.
        settings: What was given.
        console: Where to print.
        then: A job that starts when all jobs of the first one's array have ended.
        plan: Plan of the whole run, which may take several jobs.

    Raises:
        UserError: A check failed, or Slurm refuses.
    """
    skipped = {name.strip() for name in settings.skip.split(",") if name.strip()}
    if unknown := skipped - set(CHECKS):
        raise UserError(f"--skip {','.join(sorted(unknown))}: checks are {', '.join(CHECKS)}")
    if plan is not None:
        console.print(f"{escape(plan.table())}\n\nthis submission")
    for label, text in cost_lines(job):
        console.print(f"{label:12}{escape(text)}")
    console.print(f"{'run folder':12}{escape(str(job.run))}")
    script = render(job)
    failed = 0
    for finding in (one for group in (machine_findings(job), findings) for one in group):
        if finding.check not in skipped:
            _print(console, finding)
            failed += finding.verdict == "failed"
    if settings.dry_run:
        if not slurm_client.available():
            _print(console, Finding("slurm", "not checked", "sbatch is not installed on this machine"))
        console.print(f"\n--- {escape(str(job.run / SCRIPT))}\n{escape(script)}", end="")
        if then is not None:
            console.print(f"\n--- {escape(str(then.run / SCRIPT))}\n{escape(render(then))}", end="")
        refused = f"; submit would refuse: {failed} checks failed" if failed else ""
        console.print(f"\ndry run: nothing is written or submitted{refused}")
        return
    if failed:
        raise UserError(f"{failed} checks failed, see above: nothing is submitted; --skip CHECK leaves one out")
    if not slurm_client.available():
        raise UserError("sbatch is not installed here: use a login node of the cluster, or --dry-run")
    with run_lock(job.run / SUBMITTING, folder=job.run):
        submit_script(job, script, "slurm" not in skipped, then, console, plan)


def submit_script(
    job: Job, script: str, test: bool, then: Job | None, console: Console, plan: "Plan | None" = None
) -> None:
    """Write the script into the run folder, let Slurm test it, submit it and record its jobs."""
    for active in slurm_client.jobs_named(job.name):
        raise UserError(
            f"job {active.number} of {job.run} is {active.state}: python -m leam_mm.launch stop {job.run}, then resume"
        )
    numbers: list[str] = []
    for one, text in ((job, script), *([(then, render(then))] if then is not None else [])):
        (one.run / LOGS).mkdir(parents=True, exist_ok=True)
        write_text(one.run / SCRIPT, text)
        if test:
            _print(console, Finding("slurm", "ok", slurm_client.test_only(one.run / SCRIPT)))
    (job.run / STOPPED).unlink(missing_ok=True)
    numbers += slurm_client.submit_chain(job.run / SCRIPT, job.chain)
    if then is not None:
        numbers.append(slurm_client.submit(then.run / SCRIPT, f"--dependency=afterany:{numbers[-1]}"))
    costs = {name: value for name, (value, _) in cost_values(job).items()}
    add_jobs(job, numbers, costs, [asdict(one) for one in plan.estimates] if plan is not None else None)
    run = escape(str(job.run))
    console.print(f"submitted job {', '.join(numbers)}; python -m leam_mm.launch status {run}")


def _print(console: Console, finding: Finding) -> None:
    color = MARKS[finding.verdict]
    console.print(f"[{color}]{finding.verdict:12}[/{color}]{finding.check:10}{escape(finding.text)}")
