"""Checks of a node: cores and memory of the task, visible GPUs, versions, energy counters, decoding of images."""

import importlib.metadata
import io
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from leam_mm.launch.check_process import Target
from leam_mm.launch.check_result import CheckResult, Verdict, expected, not_run

CPUS_FIX = (
    "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK in the job script: srun does not read --cpus-per-task of sbatch "
    "since Slurm 22.05"
)
LOW_MEMORY = 8  # GB; torch, a model and a few loader workers of one task need about as much
NO_LIMIT = 1 << 60  # bytes; cgroup v1 writes a number near 2**63
HARMFUL = {  # on AMD GPUs
    "NCCL_NET_GDR_LEVEL": "jobs of several nodes hang with ROCm 7 (laifs-container-recipes #30, reported by users)"
}
PACKAGES = ("lightning", "diffusers", "transformers", "open_clip_torch", "xformers", "flash_attn")
DECODE_SECONDS = 0.7  # of each format
DECODE_SIDE, CROP_SIDE = 512, 256  # pixels


def check_affinity(target: Target) -> list[CheckResult]:
    """Compare the cores on which this task may run with the profile.

    The scheduler's variables are not read: SLURM_CPUS_PER_TASK keeps its value where the task gets one core.
    """
    cores, fact = sorted(os.sched_getaffinity(0)), target.profile.slurm.cpus_per_task
    verdict: Verdict = "pass"
    reason = fix = ""
    if len(cores) == 1 and (os.cpu_count() or 1) > 1:
        verdict, fix = "fail", CPUS_FIX
        reason = f"the task may use core {cores[0]} of {os.cpu_count()} only, so loader workers share it"
    elif fact.known and len(cores) < fact.needed():
        verdict, reason, fix = "fail", "fewer cores than a task of this cluster gets", CPUS_FIX
    data = {"cores": cores, "host_cores": os.cpu_count()}
    text = expected(fact, "cores", "at least") or "more than 1 core"
    return [CheckResult("cpu affinity", len(cores), "cores", text, verdict, reason, fix, data)]


def check_memory_limit(target: Target, root: Path = Path("/sys/fs/cgroup"), own: str = "") -> list[CheckResult]:
    """Read the memory limit of the cgroup, versions 1 and 2.

    Args:
        target: What is examined.
        root: Where cgroups are mounted.
        own: Content of /proc/self/cgroup; by default the file is read.
    """
    total = psutil.virtual_memory().total
    limit = min([total, *cgroup_limits(root, own or Path("/proc/self/cgroup").read_text())])
    share = limit / 1e9 / (target.ranks.local_world if limit == total else 1)
    low = share < LOW_MEMORY
    note = f"the host has {total / 1e9:.0f} GB" + ("" if limit < total else "; no limit of the job below it")
    return [
        CheckResult(
            "memory limit",
            round(limit / 1e9, 1),
            "GB",
            f"at least {LOW_MEMORY} GB for a task",
            "warn" if low else "pass",
            note,
            "ask for memory in the job: --mem=0 takes all of the node" if low else "",
            {"limit_bytes": limit, "host_bytes": total},
        )
    ]


def cgroup_limits(root: Path, own: str) -> list[int]:
    """Return all memory limits that apply to the process, in bytes; those of parents count, too."""
    found = []
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            bases, name = [root, root / "unified"], "memory.max"
        elif "memory" in controllers.split(","):
            bases, name = [root / "memory"], "memory.limit_in_bytes"
        else:
            continue
        for base in bases:
            folder = base / path.lstrip("/")
            while folder != base.parent:
                text = _text(folder / name)
                if text.isdigit() and int(text) < NO_LIMIT:
                    found.append(int(text))
                folder = folder.parent
    return found


def check_versions(target: Target) -> list[CheckResult]:
    """Collect versions; fail if torch has no kernels for the GPUs of this machine."""
    import torch

    nvidia = _text(Path("/proc/driver/nvidia/version")).split("\n")[0]
    amd = Path("/dev/kfd").exists()
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "nvidia driver": nvidia or None,
        "amdgpu driver": _text(Path("/sys/module/amdgpu/version")) or None,
        "nccl": _nccl_version(),
        "machine": platform.machine(),
        **{name: _version(name) for name in PACKAGES},
    }
    present = {name: value for name, value in versions.items() if value}
    built, seen = _built_for(), "nvidia" if nvidia else "amd" if amd else "none"
    whose, vendor = "this node", target.profile.gpu.vendor
    if seen == "none" and vendor.known:
        whose, seen = "the profile", vendor.needed()
    wrong = seen in ("nvidia", "amd") and built != seen
    pip = "a build for CUDA" if seen == "nvidia" else "a build for ROCm"
    fix = (
        f"install {pip} for {platform.machine()} from PyTorch's own index, or use the site's module or container; "
        "on aarch64 the wheels of PyPI were CPU-only up to torch 2.8 (pytorch#160162)"
    )
    listed = ", ".join(f"{name} {value}" for name, value in present.items() if name in ("cuda", "rocm", "nccl"))
    return [
        CheckResult(
            "versions",
            f"torch {torch.__version__}",
            "",
            f"a build for {seen} GPUs" if seen != "none" else "",
            "fail" if wrong else "pass",
            f"torch is built for {built}, the GPUs of {whose} are {seen}" if wrong else listed or f"built for {built}",
            fix if wrong else "",
            {"versions": present},
        )
    ]


def check_environment(target: Target, env: Mapping[str, str] = os.environ) -> list[CheckResult]:
    """Compare the variables that the profile exports with those of this process, and find harmful ones."""
    name, software = "environment", target.profile.software
    facts = [software.exports, software.attention_exports]
    if target.ranks.world == target.ranks.local_world:
        facts.append(software.single_node_exports)
    wanted = {key: value for fact in facts for key, value in (fact.value or {}).items()}
    # A value with a $ is expanded by the shell of the job, so only its presence is compared.
    missing = [f"{key}={value}" for key, value in wanted.items()
               if key not in env or ("$" not in value and env[key] != value)]  # fmt: skip
    harmful = {key: text for key, text in HARMFUL.items() if key in env and target.profile.gpu.vendor.value == "amd"}
    words = [f"differ from the profile: {', '.join(missing)}"] if missing else []
    words += [f"{key} is set: {text}" for key, text in harmful.items()]
    fixes = [f"export {' '.join(missing)}"] if missing else []
    fixes += [f"unset {key}" for key in harmful]
    count = f"{len(wanted) - len(missing)} of {len(wanted)}" if wanted else None
    if count is None and not harmful:
        return [not_run(name, "the profile exports nothing")]
    return [CheckResult(name, count, "exports", "as in the profile", "warn" if words else "pass", "; ".join(words),
                        "; ".join(fixes), {"wanted": wanted})]  # fmt: skip


def _built_for() -> str:
    import torch

    return "amd" if torch.version.hip else "nvidia" if torch.version.cuda else "CPUs only"


def _nccl_version() -> str | None:
    import torch

    if not torch.cuda.is_available() or not torch.distributed.is_nccl_available():
        return None
    found = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    return ".".join(map(str, found)) if isinstance(found, tuple) else str(found)


def check_gpus(target: Target) -> list[CheckResult]:
    """Count the GPUs that this task sees."""
    import torch

    count, fact = torch.cuda.device_count(), target.profile.gpu.per_node
    names = [torch.cuda.get_device_name(number) for number in range(count)]
    wanted = target.profile.gpu.vendor.value in ("nvidia", "amd")
    missing = wanted and count == 0
    return [
        CheckResult(
            "gpus",
            count,
            "",
            expected(fact, "in a node"),
            "fail" if missing else "pass",
            "no GPU is visible to this task" if missing else ", ".join(sorted(set(names))) or "checks run on the CPU",
            "ask for GPUs (--gres=gpu:N), start the container with --nv or --rocm, and look at "
            "CUDA_VISIBLE_DEVICES and ROCR_VISIBLE_DEVICES" if missing else "",
        )
    ]  # fmt: skip


def check_energy(target: Target, seconds: float = 1.1) -> list[CheckResult]:
    """Find the energy counter that a run will use, and read it over a second."""
    from leam_mm.callbacks.energy_counter import CounterUnavailable
    from leam_mm.callbacks.energy_meter import COUNTERS

    refused = []
    for build in COUNTERS:
        try:
            counter = build()
        except CounterUnavailable as reason:
            refused.append(str(reason))
            continue
        time.sleep(seconds)
        joules = counter.joules()
        still = not joules > 0
        return [
            CheckResult(
                "energy counter",
                round(joules / seconds, 1),
                "W",
                "more than 0",
                "fail" if still else "pass",
                f"{counter.source}; boundary: {counter.coverage}" + ("; it does not count" if still else ""),
                "report the counter to the site: a run records its energy as not measured" if still else "",
                {"source": counter.source, "coverage": counter.coverage, "joules": joules, "seconds": seconds},
            )
        ]
    fix = "the report of a run says `not measured`; ask the site for read rights on a counter"
    return [CheckResult("energy counter", None, verdict="warn", reason="no counter can be read", fix=fix,
                        data={"refused": refused})]  # fmt: skip


def check_decoding(target: Target, seconds: float = DECODE_SECONDS) -> list[CheckResult]:
    """Measure how many generated images of 512 x 512 pixels a core decodes and crops in a second of CPU time."""
    import numpy as np
    import torch

    from leam_mm.data.image_decoding import ImageDecoding

    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    decoding = ImageDecoding(CROP_SIDE, crop_scale=(0.5, 1.0))
    cores, rates = len(os.sched_getaffinity(0)), {}
    for form, content in encoded_images().items():
        decoding(content, generator)
        count, began = 0, time.process_time()
        while (spent := time.process_time() - began) < seconds:
            decoding(content, generator)
            count += 1
        rates[form] = count / spent
    parts = ", ".join(f"{form} {rate:.0f}" for form, rate in rates.items())
    feeds = rates["JPEG"] * cores
    note = f"images/s per core: {parts}; {cores} cores feed about {feeds:.0f} JPEG/s (estimate: rate x cores)"
    data = {"images_per_second_per_core": rates, "cores": cores, "fed_images_per_second": feeds}
    return [CheckResult("image decoding", round(rates["JPEG"], 1), "JPEG/s per core", reason=note, data=data)]


def encoded_images(side: int = DECODE_SIDE) -> dict[str, bytes]:
    """Return one image with edges and fine noise as JPEG, PNG and WebP; about as many bytes as a photograph."""
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[0:side, 0:side] / side
    waves = [np.sin(9 * x + 4 * y), np.cos(7 * y * x), np.sin(20 * x * x) * (y > 0.5)]
    noise = np.random.default_rng(0).normal(0, 6, (side, side, 3))
    image = Image.fromarray(np.clip(128 + 90 * np.stack(waves, -1) + noise, 0, 255).astype(np.uint8))
    found = {}
    for form in ("JPEG", "PNG", "WEBP"):
        content = io.BytesIO()
        image.save(content, form, **({} if form == "PNG" else {"quality": 90}))
        found[form] = content.getvalue()
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""
