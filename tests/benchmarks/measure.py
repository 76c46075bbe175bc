"""Time two ways of doing the same work, in turns, and write what was found.

Ours and the peer's run alternately, and every pair changes who goes first: a machine that slows down slows both. Beside
the wall clock stands the processor time of this process and its finished children, which other people's programs on the
machine disturb far less.
"""

import argparse
import functools
import math
import os
import platform
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from leam_mm import files
from leam_mm.errors import UserError

FOLDER = Path("runs/bench")
TESTS = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "open_clip_torch", "diffusers", "transformers", "webdataset", "img2dataset", "lightning", "pillow")
PACKAGES += ("litdata", "mosaicml-streaming")
if str(TESTS) not in sys.path:
    sys.path.append(str(TESTS))  # so that a benchmark run as a program can import what tests build, from toys
Settings = argparse.Namespace
Main = Callable[..., list[Path]]  # takes the words of a command line
QUIET = 0.1  # share of the machine that others may take in a measurement that is called quiet


@dataclass
class Timing:
    """Seconds of every repeat of one side, in order.

    Args:
        wall: By the clock on the wall.
        cpu: Of all processors, of this process and its finished children, user and system.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """Both sides' timings, and the share of the machine's processors that others took meanwhile, in [0, 1]."""

    ours: Timing
    peer: Timing
    others_share: float


def cpu_seconds() -> float:
    """Processor seconds of this process and its finished children until now."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def _machine() -> tuple[float, float]:
    """Busy and total processor seconds of the whole machine until now."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    return sum(times[:8]) - idle, sum(times[:8])  # the last two fields are parts of the first two


def _run(work: Callable[[], object], device: str, timing: Timing) -> None:
    wall, cpu = time.perf_counter(), cpu_seconds()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    timing.wall.append(time.perf_counter() - wall)
    timing.cpu.append(cpu_seconds() - cpu)


def time_pairs(
    ours: Callable[[], object], peer: Callable[[], object], repeats: int, warmup: int = 1, device: str = "cpu"
) -> Comparison:
    """Run both sides ``repeats`` times in turns, after ``warmup`` turns that are not counted."""
    for _ in range(warmup):
        _run(ours, device, Timing())
        _run(peer, device, Timing())
    found = {"ours": Timing(), "peer": Timing()}
    (busy, total), own = _machine(), cpu_seconds()
    for number in range(repeats):
        sides = [("ours", ours), ("peer", peer)]
        for name, work in sides if number % 2 == 0 else reversed(sides):
            _run(work, device, found[name])
    busy_after, total_after = _machine()
    others = (busy_after - busy - (cpu_seconds() - own)) / max(total_after - total, 1e-9)
    return Comparison(found["ours"], found["peer"], min(1.0, max(0.0, others)))


def median_interval(values: list[float], level: float = 0.95) -> tuple[float, float, float]:
    """Interval of the median from order statistics, which assumes nothing of the distribution.

    Args:
        values: At least one.
        level: Wanted confidence; few values cannot reach it, then the whole range is given.

    Returns:
        Low, high, and the confidence that the interval has.
    """
    ordered, count = sorted(values), len(values)
    best, tail = (ordered[0], ordered[-1], 1 - 2 * 0.5**count), 0.5**count
    for rank in range(1, (count + 1) // 2):
        tail += math.comb(count, rank) * 0.5**count  # chance that at most `rank` of the values lie below the median
        if 1 - 2 * tail < level:
            break
        best = (ordered[rank], ordered[-1 - rank], 1 - 2 * tail)
    return best


def require_same(what: str, difference: float, limit: float) -> dict[str, Any]:
    """The entry of ``same_work``; raises when the sides do different work, whose times would mean nothing."""
    if not difference <= limit:
        raise UserError(
            f"{what}: ours and the peer's differ by {difference:.3g}, more than {limit:g}: nothing is timed"
        )
    return {"compared": what, "difference": difference, "limit": limit}


def parse_arguments(
    program: str, description: str, args: list[str] | None, repeats: int, options: dict[str, tuple] | None = None
) -> Settings:
    """Read the options of all benchmarks and this one's own; ``.command`` keeps the command that repeats it.

    Args:
        program: Name of the benchmark, kept in ``.program``.
        description: Its docstring.
        args: Words of the command line; None takes those of this process.
        repeats: Default of ``--repeats``.
        options: Of `benchmark`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    common: dict[str, tuple] = {
        "device": ("cpu", "device that both sides run on", {"choices": ("cpu", "cuda")}),
        "repeats": (repeats, "pairs that are timed"),
        "threads": (1, "threads of torch's kernels on a CPU"),
        "output": (FOLDER, "folder of the results"),
    }
    for name, (default, text, *further) in (common | (options or {})).items():
        given: dict[str, Any] = dict(*further)
        if default is False:
            given["action"] = "store_true"
        elif isinstance(default, type):
            given |= {"type": default, "default": argparse.SUPPRESS}
            parser.set_defaults(**{name: None})
        elif isinstance(default, list):
            given |= {"type": type(default[0]), "nargs": "+", "default": default}
        else:
            given |= {"type": Path if isinstance(default, Path) else type(default), "default": default}
        parser.add_argument(f"--{name.replace('_', '-')}", help=text, **given)
    settings = parser.parse_args(args)
    if settings.repeats < 1 or settings.threads < 1:
        raise UserError("--repeats and --threads must be at least 1")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no such device here; choose --device cpu")
    words = sys.argv[1:] if args is None else args
    settings.program = program
    settings.command = shlex.join(["python", f"tests/benchmarks/{program}.py", *words])
    torch.set_num_threads(settings.threads)
    return settings


def benchmark(
    repeats: int, devices: tuple[str, ...] = ("cpu",), **options: tuple
) -> Callable[[Callable[[Settings], list[Path]]], Main]:
    """Make a function of the settings the main function of a benchmark.

    Args:
        repeats: Default of ``--repeats``.
        devices: What it can be measured on; one without "cuda" is not a GPU benchmark and refuses that device.
        options: Further options by name: a default (or a type, where there is no default), a help text and, if needed,
            further arguments of ``add_argument``. False makes a flag, a list an option of several values.
    """

    def wrap(main: Callable[[Settings], list[Path]]) -> Main:
        @functools.wraps(main)
        def parse_and_run(args: list[str] | None = None) -> list[Path]:
            program = Path(main.__globals__["__file__"]).stem
            settings = parse_arguments(program, main.__globals__["__doc__"], args, repeats, options)
            if settings.device not in devices:
                raise UserError(f"--device {settings.device}: {program} is not a GPU benchmark; choose --device cpu")
            return main(settings)

        return parse_and_run

    return wrap


def hardware(device: str) -> dict[str, Any]:
    """What the numbers were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {
        "processor": model or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "device": gpu or "cpu",
        "niceness": os.nice(0),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_result(
    content: dict[str, Any], settings: Settings, table: Table | None = None, name: str = "", message: str = ""
) -> Path:
    """Write a result with the circumstances of its measurement, and print it.

    Args:
        content: JSON object; ``circumstances`` in it are added to those of the hardware.
        settings: Of `parse_arguments`.
        table: Printed.
        name: Of the JSON file; default is the benchmark's.
        message: Printed after the table.
    """
    name = name or settings.program
    circumstances = {
        "hardware": hardware(settings.device) | content.pop("circumstances", {}),
        "command": settings.command,
        "versions": _versions(),
        "repeats": settings.repeats,
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    path = settings.output / f"{name}.json"
    files.write_json(path, {"name": name} | content | circumstances)
    console = Console()
    for part in (table, message):
        if part:
            console.print(part, soft_wrap=isinstance(part, str))
    console.print(f"wrote {path}\n", soft_wrap=True)
    return path


def write_comparison(
    name: str,
    labels: tuple[str, str],
    found: Comparison,
    work: tuple[float, str],
    same_work: list[dict[str, Any]],
    settings: Settings,
    notes: str = "",
    further: dict[str, Any] | None = None,
) -> Path:
    """Print the table and write ``name.json``.

    Args:
        name: Of the case.
        labels: What ours and the peer's are.
        found: The timings.
        work: How many units one repeat does, and the unit's name.
        same_work: Entries of `require_same`.
        settings: Of `parse_arguments`.
        notes: What the reader must know to read the numbers rightly.
        further: Other numbers of this measurement, by name.
    """
    units, unit = work
    content: dict[str, Any] = dict(further or {})
    table = Table("", f"{unit}/s", f"{unit}/s of CPU", "ms", "CPU ms", title=name)
    for side, label, timing in (("ours", labels[0], found.ours), ("peer", labels[1], found.peer)):
        wall, cpu = statistics.median(timing.wall), statistics.median(timing.cpu)
        content[side] = {
            "label": label,
            "unit": unit,
            "units_per_repeat": units,
            "per_second": units / wall,
            "per_cpu_second": units / cpu,
            "median_seconds": wall,
            "median_cpu_seconds": cpu,
            "seconds": timing.wall,
            "cpu_seconds": timing.cpu,
        }
        table.add_row(label, *(f"{value:,.4g}" for value in (units / wall, units / cpu, wall * 1e3, cpu * 1e3)))
    for key, kind in (("ratio", "wall"), ("cpu_ratio", "cpu")):
        ratios = [b / a for a, b in zip(getattr(found.ours, kind), getattr(found.peer, kind), strict=True)]
        low, high, confidence = median_interval(ratios)
        content |= {key: statistics.median(ratios), f"{key}s": ratios}
        content[f"{key}_interval"] = {"low": low, "high": high, "confidence": confidence}
    content |= {"ratio_means": "peer's seconds over ours: above 1 ours is faster", "same_work": same_work}
    content |= {"notes": notes, "circumstances": {"others_share": found.others_share}}
    content["quiet"] = found.others_share <= QUIET
    sure = content["ratio_interval"]
    lines = [
        f"ours / peer: {content['ratio']:.2f} x by the wall ({sure['low']:.2f} to {sure['high']:.2f}, "
        f"{sure['confidence']:.0%}), {content['cpu_ratio']:.2f} x by CPU time; "
        f"others took {found.others_share:.0%} of the machine"
    ]
    for entry in same_work:
        lines += [f"same work: {entry['compared']}: difference {entry['difference']:.2g} (limit {entry['limit']:g})"]
    return write_result(content, settings, table, name, "\n".join(lines))
