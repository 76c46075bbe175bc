"""Ten minutes on a GPU: the tests marked gpu and the short form of every benchmark that runs there, best first.

    make gpu                     writes runs/gpu/summary.json and summary.md, a table for docs/measured.md
    make gpu DEVICE=cpu          proves on a CPU that the session runs through
    python tests/benchmarks/gpu_session.py --device cuda --budget 600       in an environment of your own

Each part is a process of its own with a limit of time. A part that fails or is stopped is a row with the reason; when
the budget is spent, the rest is listed as not run. Needs torch 2.11 or later and no network. ROCm devices are called
cuda.
"""

import ast
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import measure
import torch
from rich.console import Console
from test_benchmarks import BENCHMARKS

from leam_mm.callbacks.energy_meter import EnergyMeter
from leam_mm.command_line import PositiveFloat, parse_settings
from leam_mm.errors import UserError, run
from leam_mm.files import write_json, write_text

ROOT = Path(__file__).resolve().parents[2]
SLOWER = 5  # times as long may a part take on a CPU: the trial run often shares its cores
LEAST = 5.0  # seconds below which no further part is begun
NOT_GPU = "not a GPU benchmark"
FURTHER = ("mfu", "max_memory_gib", "bytes_kept_per_logit")


@dataclass(frozen=True)
class SessionSettings:
    """Options of a session.

    Args:
        device: cuda (also AMD GPUs), or cpu to see that everything runs through.
        budget: Seconds for all parts together.
        output: Folder of summary.json, summary.md, the results of the benchmarks and their logs.
        only: Names of the parts that are run; all by default.
    """

    device: Literal["cpu", "cuda"] = "cuda"
    budget: PositiveFloat = 600.0
    output: Path = Path("runs/gpu")
    only: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Part:
    """One process of the session.

    Args:
        name: Of the row.
        words: Command after the interpreter.
        limit: Most seconds that it may take.
        results: Whether it writes JSON files of a benchmark.
    """

    name: str
    words: Sequence[str]
    limit: float
    results: bool = True


@dataclass
class Row:
    """What became of a part.

    Args:
        name: Of the part.
        status: ok, failed, stopped (its time was over) or not run.
        reason: Why it is not ok.
        seconds: Wall time.
        joules: Energy during the part; None where it was not measured.
        coverage: Boundary of the energy.
        command: The command that repeats it.
        results: The JSON objects that the benchmark wrote.
    """

    name: str
    status: str = "not run"
    reason: str = ""
    seconds: float = 0.0
    joules: float | None = None
    coverage: str = ""
    command: str = ""
    results: list[dict[str, Any]] = field(default_factory=list)


# What tells most comes first: whether kernels are right, then the two training steps, then the rest. Each line: name,
# seconds at most, words on a GPU, words on a CPU.
SHORT = (
    ("contrastive_step", 120, "--repeats 5", "--repeats 1 --cases own"),
    ("generator_step", 150, "--repeats 5 --size base", "--repeats 1 --size quickstart --eager"),
    ("contrastive_memory", 60, "--repeats 5 --pairs 16384", "--repeats 1 --pairs 512"),
    ("sampling", 60, "--repeats 3", "--repeats 1 --pictures 2"),
    ("end_to_end", 90, "--repeats 3 --samples 2000 --workers 4", "--repeats 1 --samples 64"),
    ("ema_update", 60, "--repeats 7", "--repeats 1 --cases ema_update ema_update_torch"),
    ("noise_streams", 30, "--repeats 7", "--repeats 1"),
    ("generator_step_from_shards", 120, "--repeats 3 --size base", "--repeats 1 --size quickstart --eager"),
)


def gpu_tests() -> list[str]:
    """Test files with a test that needs a GPU."""
    return [
        file.relative_to(ROOT).as_posix()
        for file in sorted((ROOT / "tests").glob("test_*.py"))
        if "@pytest.mark.gpu" in file.read_text(encoding="utf-8")
    ]


def gpu_benchmarks() -> set[str]:
    """Benchmarks that can run on a GPU, from their own words (``devices=``)."""
    found = set()
    for name in BENCHMARKS:
        for node in ast.walk(ast.parse((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "devices" and "cuda" in ast.unparse(node.value):
                found.add(name)
    return found


def parts(device: str, output: Path) -> list[Part]:
    """All parts in their order. On a CPU the tests are collected only: they need a GPU."""
    slower = SLOWER if device == "cpu" else 1
    output = output.relative_to(ROOT) if output.is_relative_to(ROOT) else output  # commands that others can repeat
    words = ["-m", "pytest", "-m", "gpu", "-rs", "-p", "no:cacheprovider", *gpu_tests()]
    made = [Part("tests marked gpu", [*words, *(["--collect-only"] if device == "cpu" else [])], 120 * slower, False)]
    for name, limit, on_gpu, on_cpu in SHORT:
        given = shlex.split(on_gpu if device == "cuda" else on_cpu)
        command = [f"tests/benchmarks/{name}.py", "--device", device, *given, "--output", str(output / name)]
        made.append(Part(name, command, limit * slower))
    return made


def run_part(part: Part, seconds: float, output: Path) -> Row:
    """Run one part for at most ``seconds``; its output goes to NAME.log."""
    row = Row(part.name, command=shlex.join(["python", *part.words]))
    folder = output / part.name
    shutil.rmtree(folder, ignore_errors=True)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "benchmarks"), str(ROOT / "tests")])
    log = output / f"{part.name.replace(' ', '_')}.log"
    began, meter = time.monotonic(), EnergyMeter().start()
    # A part that is stopped leaves its scratch behind, which goes with this folder.
    with open(log, "wb") as stream, TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": paths}
        job = subprocess.Popen([sys.executable, *part.words], cwd=ROOT, env=environment | {"TMPDIR": scratch},
                               stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        try:
            code = job.wait(timeout=seconds)
            row.status = "ok" if code == 0 else "failed"
        except subprocess.TimeoutExpired:
            row.status, row.reason = "stopped", f"took more than {seconds:.0f} s"
        finally:
            stop(job)
    reading = meter.stop()
    row.seconds, row.joules, row.coverage = time.monotonic() - began, reading.joules, reading.coverage
    last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:] or [""]
    row.reason = row.reason or (last[0].strip()[:300] if row.status == "failed" or not part.results else "")
    if part.results:
        row.results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        if row.status == "ok" and not row.results:
            row.status, row.reason = "failed", f"wrote no result: {last[0].strip()[:300]}"
    return row


def stop(job: "subprocess.Popen[bytes]") -> None:
    """End a process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGKILL)
    job.wait()


def session(made: Sequence[Part], settings: SessionSettings, console: Console) -> list[Row]:
    """Run parts until the budget is spent."""
    ends, rows = time.monotonic() + settings.budget, []
    for part in made:
        left = ends - time.monotonic()
        if left < LEAST:
            reason = f"the budget of {settings.budget:.0f} s was spent"
            rows.append(Row(part.name, "not run", reason, command=shlex.join(["python", *part.words])))
        else:
            console.print(f"{part.name}: at most {min(part.limit, left):.0f} s, {left:.0f} s left", soft_wrap=True)
            rows.append(run_part(part, min(part.limit, left), settings.output))
        row = rows[-1]
        console.print(f"  {row.status} {row.seconds:.0f} s {row.reason}", soft_wrap=True, markup=False)
    return rows


def driver() -> str:
    """Version of the GPU's driver, or "not found"."""
    program, amd = shutil.which("nvidia-smi"), Path("/sys/module/amdgpu/version")
    if program:
        words = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode == 0 and done.stdout.strip():
            return f"NVIDIA {done.stdout.split()[0]}"
    return f"amdgpu {amd.read_text().strip()}" if amd.exists() else "not found"


def circumstances(device: str) -> dict[str, Any]:
    """Hardware, driver and versions."""
    found = measure.hardware(device)
    if device == "cuda" and torch.cuda.is_available():
        found["gpu_memory_gib"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
    build = (torch.version.hip and f"ROCm {torch.version.hip}") or (torch.version.cuda and f"CUDA {torch.version.cuda}")
    return {
        "hardware": found,
        "driver": driver() if device == "cuda" else "none",
        "torch": str(torch.__version__),
        "torch_build": build or "CPU",
        "python": platform.python_version(),
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def table(rows: Sequence[Row], found: dict[str, Any], command: str, spent: float) -> str:
    """The Markdown of summary.md: what it ran on, one line for each number, and what was not measured."""
    hardware = found["hardware"]
    memory = f", {hardware['gpu_memory_gib']} GiB" if "gpu_memory_gib" in hardware else ""
    lines = [
        f"{hardware['device']}{memory}; driver {found['driver']}; torch {found['torch']} ({found['torch_build']}), "
        f"Python {found['python']}; {hardware['processor']}, {hardware['cores']} cores; {found['measured_at']}; "
        f"`{command}`, {spent:.0f} s.",
        "",
        "| what | ours | peer | ratio, peer / ours by the wall (interval, confidence) | further | energy | command |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        energy = f"{row.joules / 3600:.3g} Wh ({row.coverage})" if row.joules is not None else "not measured"
        state = row.status if row.status == "ok" else f"{row.status}: {row.reason}"
        if not row.results:
            text = row.reason if row.status == "ok" else state
            lines.append(_line([f"`{row.name}`", "", "", "", text or "ok", energy, f"`{row.command}`"]))
        for number, result in enumerate(row.results):
            further = [state] if row.status != "ok" and number == 0 else []
            further += [_sides(key, result[key]) for key in FURTHER if key in result]
            sides = [f"{result[side]['per_second']:,.4g} {result[side]['unit']}/s" if side in result else ""
                     for side in ("ours", "peer")]  # fmt: skip
            sure = result.get("ratio_interval")
            ratio = ""
            if sure:
                ratio = f"{result['ratio']:.2f} ({sure['low']:.2f} to {sure['high']:.2f}, {sure['confidence']:.0%})"
            once = [energy, f"`{row.command}`"] if number == 0 else ["", ""]
            lines.append(_line([f"`{result['name']}`", *sides, ratio, "; ".join(further), *once]))
    others = sorted(set(BENCHMARKS) - gpu_benchmarks())
    lines.append(_line([", ".join(f"`{name}`" for name in others), "", "", "", NOT_GPU, "", ""]))
    return "\n".join(lines) + "\n"


def _sides(name: str, numbers: dict[str, Any] | str) -> str:
    if not isinstance(numbers, dict):  # such as "not measured"
        return f"{name}: {numbers}"
    words = [f"{side} {'not known' if value is None else f'{value:.3g}'}" for side, value in numbers.items()]
    return f"{name}: {', '.join(words)}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def main(args: list[str] | None = None) -> None:
    """Run a session and write its summary."""
    settings = parse_settings(SessionSettings, __doc__, args, program="python tests/benchmarks/gpu_session.py")
    console = Console(highlight=False)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; make gpu DEVICE=cpu is a trial run without one")
    settings = replace(settings, output=settings.output.resolve())
    made = parts(settings.device, settings.output)
    if unknown := sorted(set(settings.only) - {part.name for part in made}):
        raise UserError(f"--only {unknown[0]}: no such part; there are {', '.join(part.name for part in made)}")
    settings.output.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    rows = session([part for part in made if not settings.only or part.name in settings.only], settings, console)
    spent, found = time.monotonic() - began, circumstances(settings.device)
    command = shlex.join(["python", "tests/benchmarks/gpu_session.py", *(sys.argv[1:] if args is None else args)])
    write_json(settings.output / "summary.json", {
        **found, "command": command, "budget_seconds": settings.budget, "seconds": spent,
        "parts": [asdict(row) for row in rows],
        "not_gpu_benchmarks": sorted(set(BENCHMARKS) - gpu_benchmarks()),
    }, indent=2)  # fmt: skip
    write_text(settings.output / "summary.md", table(rows, found, command, spent))
    counts = {status: sum(row.status == status for row in rows) for status in ("ok", "failed", "stopped", "not run")}
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    console.print(f"{said} in {spent:.0f} s; wrote {settings.output / 'summary.md'}", soft_wrap=True)
    if not counts["ok"]:
        raise UserError("no part of the session ran to its end: see the logs beside summary.md")


if __name__ == "__main__":
    run(main)
