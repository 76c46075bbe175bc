"""The script of a job: a readable file for sbatch that needs nothing but the repository and the site's software."""

import shlex
from collections.abc import Iterable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from leam_mm.errors import UserError
from leam_mm.launch.job import LOGS, SCRIPT, STOPPED, Job, slurm_time

LONGEST_WARNING = 300  # seconds between the signal and the end of the job
RETRIES = 3  # after the death of a rank
OFFLINE = (
    *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"),
)


def warning_seconds(job: Job) -> int:
    """Return how long before its end the job gets its signal: five minutes, less in a short job."""
    return max(60, min(LONGEST_WARNING, job.seconds // 4))


def directives(job: Job) -> list[str]:
    """Return the options of sbatch, in the order of the script."""
    slurm, network = job.profile.slurm, job.profile.network
    masks = (job.cpu_bind or "").startswith("mask")
    log = "%x-%A_%a.out" if job.array else "%x-%j.out"
    gpus = {"gres": "--gres=gpu:{}", "gpus-per-node": "--gpus-per-node={}"}.get(slurm.gpu_option.value or "")
    signal = "USR1" if job.kind == "train" else "TERM"
    at_a_time = f"%{job.at_a_time}" if job.at_a_time else ""
    found: list[str | None] = [
        f"--job-name={job.name}",
        f"--account={job.account}" if job.account else None,
        f"--partition={job.partition}" if job.partition else None,
        f"--qos={job.qos}" if job.qos else None,
        f"--nodes={job.nodes}",
        f"--ntasks-per-node={job.tasks_per_node}",
        f"--cpus-per-task={job.cpus_per_task}" if job.cpus_per_task else None,
        gpus.format(job.gpus_per_node) if gpus and job.gpus_per_node else None,
        "--exclusive" if slurm.whole_nodes.value or masks else None,
        f"--time={slurm_time(job.seconds)}",
        f"--signal={signal}@{warning_seconds(job)}",
        "--requeue" if job.requeue else "--no-requeue",
        f"--array=0-{len(job.array) - 1}{at_a_time}" if job.array else None,
        f"--network={network.single_node_network.value}"
        if job.nodes == 1 and network.single_node_network.known
        else None,
        f"--licenses={job.licences}" if job.licences else None,
        f"--exclude={job.exclude}" if job.exclude else None,
        *(slurm.extra.value or ()),
        "--open-mode=append",
        f"--output={shlex.quote(str(job.run / LOGS / log))}",
    ]
    return [one for one in found if one is not None]


def exports(job: Job) -> list[tuple[str, str]]:
    """Return the environment variables that the profile sets; values are in the form that bash expands."""
    network, software = job.profile.network, job.profile.software
    found: dict[str, str] = {}
    if network.socket_interface.known:
        found["NCCL_SOCKET_IFNAME"] = network.socket_interface.needed()
    if network.gloo_interface.known:
        found["GLOO_SOCKET_IFNAME"] = network.gloo_interface.needed()
    if network.ipv6.value is False:
        found |= {"NCCL_SOCKET_FAMILY": "AF_INET", "GLOO_USE_IPV6": "0"}
    for group in (software.exports, software.attention_exports):
        found |= group.value or {}
    if job.nodes == 1:
        found |= software.single_node_exports.value or {}
    return [(name, _double_quoted(value, f"exports.{name}")) for name, value in found.items()]


def _double_quoted(text: str, key: str) -> str:
    """Return a value in double quotes, in which bash expands variables only."""
    if any(letter in text for letter in '"`\\\n') or "$(" in text:
        raise UserError(f"{key} is {text!r}: quotes, backslashes and $( ) are not possible in a profile")
    return f'"{text}"'


def _words(words: Iterable[str]) -> str:
    return " ".join(shlex.quote(word) for word in words)


def command_lines(words: tuple[str, ...]) -> list[str]:
    """Return the quoted words of a command, with each option and its values on a line."""
    lines: list[str] = []
    for word in words:
        if lines and not word.startswith("--"):
            lines[-1] += " " + shlex.quote(word)
        else:
            lines.append(shlex.quote(word))
    return lines


def render(job: Job) -> str:
    """Return the text of the script."""
    software, slurm = job.profile.software, job.profile.slurm
    options = ["--kill-on-bad-exit=0", "--wait=60"]
    if job.cpu_bind is not None:
        options.append(f"--cpu-bind={job.cpu_bind}")
    options += slurm.srun_options.value or ()
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # a script, not a page; values pass shlex.quote
    )
    return environment.get_template(f"{SCRIPT}.jinja").render(
        job=job,
        directives=directives(job),
        exports=exports(job),
        offline=OFFLINE,
        modules=software.modules.value or (),
        container=software.container.value,
        folders=[_double_quoted(folder, "software.node_folders") for folder in software.node_folders.value or ()],
        suffix=job.profile.network.master_suffix.value,
        options=options,
        lines=command_lines(job.words),
        cases=[_words(words) for words in job.array],
        directory=shlex.quote(str(job.directory)),
        run=shlex.quote(str(job.run)),
        root=shlex.quote(str(job.root)),
        stopped=STOPPED,
        retries=RETRIES,
        warning=warning_seconds(job),
    )
