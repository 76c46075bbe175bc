"""Run the stages of a pipeline file one after the other, from data to release; resumes where it stopped.

    python -m leam_mm.pipeline configs/pipeline_quickstart.yaml
    python -m leam_mm.pipeline configs/pipeline_finetune.yaml --set folder=pictures --set base=runs/quickstart

A file may have variables, used as ${name}; --set changes them. Each stage is one command, which is printed before it
runs and can be repeated by hand. A finished stage is skipped unless its command, the recipe in it, the files it reads
or an earlier stage has changed.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import yaml
from rich.console import Console

from leam_mm.errors import SignalReceived, UserError, run
from leam_mm.files import write_json
from leam_mm.folder_server import server_command, serving
from leam_mm.run_lock import LOCK, run_lock

if TYPE_CHECKING:
    from leam_mm.callbacks.energy_meter import EnergyReading

HEARTBEAT = 5.0  # seconds between two records of the cost of a running stage
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # no network access
ENERGY_KEYS = {"grams_per_kwh", "market_grams_per_kwh", "pue", "source"}
console = Console(highlight=False)


@dataclass(frozen=True)
class Stage:
    """One command of a pipeline.

    Args:
        name: One word; ``run/stages/NAME.json`` records time and energy.
        command: Command line; ``python`` is the interpreter in use.
        makes: Files and folders that it writes, inside the run folder; removed before a changed stage runs again.
        serve: ``folder`` and ``port`` of an HTTP server on loopback while it runs.
        reads: Input files and folders from outside the run; the stage runs again if one of them changes.
        only_with: A file of an earlier stage without which there is nothing to do: the stage is skipped.
    """

    name: str
    command: str
    makes: list[str]
    serve: dict[str, Any] = field(default_factory=dict)
    reads: list[str] = field(default_factory=list)
    only_with: str = ""


@dataclass(frozen=True)
class Pipeline:
    """A pipeline file.

    Args:
        run: The run folder.
        title: Heading of the report.
        stages: The commands.
        energy: Arguments of ``CarbonFactors`` (grams_per_kwh, market_grams_per_kwh, pue, source) for emissions.
    """

    run: Path
    title: str
    stages: list[Stage]
    energy: dict[str, Any] = field(default_factory=dict)


def read_pipeline(path: Path, changes: dict[str, str] | None = None) -> Pipeline:
    """Read and check a pipeline file.

    Args:
        path: The YAML.
        changes: Values of variables that replace those in the file.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; pipeline files are configs/pipeline_*.yaml")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        values = choose_values(path, content.pop("variables", None) or {}, changes or {})
        content["stages"] = [
            {name: fill(part, values, shell=name == "command") for name, part in stage.items()}
            for stage in content["stages"]
        ]
        content = {name: fill(part, values) if name != "stages" else part for name, part in content.items()}
        stages = [Stage(**stage) for stage in content.pop("stages")]
        energy = dict(content.pop("energy", None) or {})
        pipeline = Pipeline(Path(content.pop("run")), str(content.pop("title")), stages, energy)
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no pipeline file ({error}); compare it with configs/pipeline_quickstart.yaml"
        ) from None
    if content:
        raise UserError(f"{path}: unknown key {next(iter(content))!r}; a pipeline has run, title, stages and energy")
    if unknown := sorted(energy.keys() - ENERGY_KEYS):
        raise UserError(f"{path}: unknown key energy.{unknown[0]}; there are {', '.join(sorted(ENERGY_KEYS))}")
    for stage in stages:
        if not stage.name.isidentifier() or not shlex.split(stage.command):
            raise UserError(f"{path}: stage {stage.name!r} needs a name of one word and a command")
        for made in stage.makes:
            if pipeline.run.resolve() not in Path(made).resolve().parents:
                raise UserError(f"{path}: stage {stage.name} makes {made}, which lies outside {pipeline.run}")
    return pipeline


def choose_values(path: Path, variables: dict[str, Any], changes: dict[str, str]) -> dict[str, str]:
    """Return the value of each variable; one without a value in the file must be in ``changes``."""
    unknown = sorted(changes.keys() - variables.keys())
    if unknown:
        known = ", ".join(sorted(variables)) or "none"
        raise UserError(f"{path} has no variable {unknown[0]!r}; there are {known}")
    values = {name: changes.get(name, variables[name]) for name in variables}
    missing = [name for name, value in values.items() if value in (None, "")]
    if missing:
        raise UserError(f"{path} needs a value for {missing[0]}: give --set {missing[0]}=VALUE")
    return {name: str(value) for name, value in values.items()}


def fill(part: Any, values: dict[str, str], shell: bool = False) -> Any:
    """Replace ${name} by its value, at any depth; in a shell command each value stays one word."""
    if isinstance(part, dict):
        return {key: fill(value, values, shell) for key, value in part.items()}
    if isinstance(part, list):
        return [fill(value, values, shell) for value in part]
    if isinstance(part, str):
        for name, value in values.items():
            part = part.replace(f"${{{name}}}", shlex.quote(value) if shell else value)
    return part


def fingerprint(stage: Stage, before: str) -> str:
    """Digest of all that a stage depends on: earlier stages, its command, the recipes in it, and the files it reads."""
    digest = hashlib.sha256(before.encode() + stage.command.encode() + json.dumps(stage.serve).encode())
    for word in shlex.split(stage.command):
        if word.endswith(".yaml") and Path(word).is_file():
            digest.update(Path(word).read_bytes())
    for path in map(Path, stage.reads):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                status = file.stat()
                digest.update(f"{file} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def stolen_seconds() -> float | None:
    """Return CPU seconds that the host of this virtual machine gave to others; None if it does not report them."""
    return getattr(psutil.cpu_times(), "steal", None)


def total_cost(reading: "EnergyReading", stolen: float | None, earlier: dict[str, Any]) -> dict[str, Any]:
    """Return the cost of this attempt and the earlier ones; a sum with a part not measured is not measured.

    Args:
        reading: Energy reading of this attempt.
        stolen: CPU seconds stolen during this attempt.
        earlier: Cost of the earlier attempts, or an empty dict.
    """
    from leam_mm.callbacks.energy_meter import NOT_MEASURED  # imported here since it loads torch

    joules = reading.joules
    if earlier:
        joules, stolen = (
            None if now is None or before is None else now + before
            for now, before in ((joules, earlier["energy"]["joules"]), (stolen, earlier["stolen_cpu_seconds"]))
        )
    return {
        "seconds": reading.seconds + earlier.get("seconds", 0.0),
        "cpu_seconds": reading.cpu_seconds + earlier.get("cpu_seconds", 0.0),
        "stolen_cpu_seconds": stolen,
        "energy": {"joules": joules, "source": reading.source if joules is not None else NOT_MEASURED},
        "unmeasured_seconds": reading.gap_seconds + earlier.get("unmeasured_seconds", 0.0),
        "attempts": 1 + earlier.get("attempts", 0),
    }


def _start(stage: Stage, words: list[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(words, env=environment)
    except OSError as error:
        raise UserError(f"stage {stage.name}: {words[0]} cannot be started ({error.strerror}); install it") from None


def run_stage(stage: Stage, begun: Path, identity: str) -> dict[str, Any]:
    """Run one command and measure it; the cost so far is kept in ``begun`` in case it is killed."""
    from leam_mm.callbacks.energy_meter import EnergyMeter

    earlier = read_record(begun).get("cost", {})
    words = shlex.split(stage.command)
    words = [sys.executable, *words[1:]] if words[0] == "python" else words
    console.print(f"[bold]$ {stage.command}[/bold]", soft_wrap=True)  # one line, to be copied
    environment = {**os.environ, **ENVIRONMENT}
    meter, stolen = EnergyMeter().start(), stolen_seconds()

    def note(reading: "EnergyReading") -> dict[str, Any]:
        now = stolen_seconds()
        cost = total_cost(reading, None if now is None or stolen is None else now - stolen, earlier)
        write_json(begun, {"fingerprint": identity, "cost": cost})
        return cost

    try:
        with serving(**stage.serve) if stage.serve else nullcontext(), _start(stage, words, environment) as job:
            try:
                while job.poll() is None:
                    try:
                        job.wait(timeout=HEARTBEAT)
                    except subprocess.TimeoutExpired:
                        note(meter.read())
            except SignalReceived:
                job.terminate()  # training saves a checkpoint first; leaving the context waits for its end
                raise
            code = job.returncode
    finally:
        cost = note(meter.stop())
    if code:
        raise UserError(
            f"stage {stage.name} ended with exit code {code}; fix the error above and start the same command again"
        )
    return {"name": stage.name, "command": stage.command, **cost, "fingerprint": identity}


def read_record(path: Path) -> dict[str, Any]:
    """Return the JSON record of a stage; an empty dict if there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def remove_all(paths: Iterable[str | Path]) -> None:
    """Remove files and folders, those that exist."""
    for path in map(Path, paths):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def run_stages(pipeline: Pipeline) -> list[dict[str, Any]]:
    """Run the stages that are not finished; return the records of all."""
    from leam_mm.callbacks.carbon import CarbonFactors

    before, records, factors = "", [], CarbonFactors(**pipeline.energy)
    for number, stage in enumerate(pipeline.stages, start=1):
        before = fingerprint(stage, before)
        done, begun = (pipeline.run / "stages" / f"{stage.name}{end}" for end in (".json", ".begun"))
        record = read_record(done)
        heading = f"[bold cyan]{number}/{len(pipeline.stages)} {stage.name}[/bold cyan]"
        if record.get("fingerprint") == before and all(Path(made).exists() for made in stage.makes):
            line = f"{heading} done in {record['seconds']:.0f} s, skipped"
            console.print(f"{line}\n[dim]$ {stage.command}[/dim]", soft_wrap=True)
            emitted = factors.emitted(record["energy"]["joules"])
            if record.get("carbon") != emitted:  # the factors of the file changed since
                record["carbon"] = emitted
                write_json(done, record)
            records.append(record)
            continue
        if stage.only_with and not Path(stage.only_with).exists():
            console.print(f"{heading} skipped: there is no {stage.only_with}", soft_wrap=True)
            remove_all([*stage.makes, done, begun])
            continue
        console.print(heading)
        if read_record(begun).get("fingerprint") != before:
            remove_all(stage.makes)
            write_json(begun, {"fingerprint": before})
        done.unlink(missing_ok=True)
        record = run_stage(stage, begun, before)
        record["carbon"] = factors.emitted(record["energy"]["joules"])
        write_json(done, record)
        begun.unlink()
        records.append(record)
    return records


def commands(pipeline: Pipeline, records: list[dict[str, Any]], command: list[str]) -> dict[str, Any]:
    """Return how to repeat a pipeline: its own command, and those of its stages in their order, with their servers.

    Args:
        pipeline: The pipeline.
        records: Records of the stages that ran or are finished; others are left out.
        command: Words of the command that runs it.
    """
    ran = {record["name"] for record in records}
    stages = [
        {"name": stage.name, "command": stage.command, "server": server_command(**stage.serve) if stage.serve else []}
        for stage in pipeline.stages
        if stage.name in ran
    ]
    environment = " ".join(f"{name}={value}" for name, value in ENVIRONMENT.items())
    return {"command": command, "environment": environment, "stages": stages}


def summarise(pipeline: Pipeline, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the numbers of the report as one JSON object; null means not measured."""
    from leam_mm.evaluators.results import read_results

    results = read_results(pipeline.run / "evaluation")

    def numbers(prefix: str) -> dict[str, Any]:
        return {
            name.removeprefix(prefix): {key: row[key] for key in ("value", "low", "high", "samples")}
            for name, row in results.items()
            if name.startswith(prefix)
        }

    joules = [record["energy"]["joules"] for record in records]
    return {
        "zero_shot": numbers("zero_shot/"),
        "retrieval": numbers("retrieval/"),
        "compositional": numbers("compositional/"),
        "frechet": numbers("generation/"),
        **{kind: found for kind in ("before", "after", "fine_tuning") if (found := numbers(f"{kind}/"))},
        "seconds": {record["name"]: round(record["seconds"], 1) for record in records},
        "cpu_seconds": {record["name"]: round(record["cpu_seconds"], 1) for record in records},
        "stolen_cpu_seconds": {record["name"]: record.get("stolen_cpu_seconds") for record in records},
        "energy": {
            "joules": None if any(value is None for value in joules) else sum(joules),
            "by_stage": {record["name"]: record["energy"] for record in records},
        },
        "carbon": {record["name"]: record.get("carbon", {}) for record in records},
    }


def main(args: list[str] | None = None) -> None:
    """Run a pipeline file."""
    parser = argparse.ArgumentParser(prog="python -m leam_mm.pipeline", description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "pipeline", type=Path, help="YAML with run, title and stages, e.g. configs/pipeline_quickstart.yaml"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="value of a variable of the file; repeatable"
    )
    options = parser.parse_args(args)
    pairs = [pair.partition("=") for pair in options.set]
    for name, sign, _ in pairs:
        if not sign:
            raise UserError(f"--set {name}: give NAME=VALUE")
    pipeline = read_pipeline(options.pipeline, {name: value for name, _, value in pairs})
    began = time.monotonic()
    with run_lock(pipeline.run / LOCK):
        records = run_stages(pipeline)
        changes = [word for pair in options.set for word in ("--set", pair)]
        command = ["python", "-m", "leam_mm.pipeline", str(options.pipeline), *changes]
        summary = summarise(pipeline, records) | {"pipeline": commands(pipeline, records, command)}
        write_json(pipeline.run / "summary.json", summary)
        from leam_mm.report.report_page import write_report

        write_report(pipeline.run, pipeline.run / "report.html", title=pipeline.title)
    spent = sum(record["seconds"] for record in records)
    console.print(f"\n[bold]{pipeline.title}[/bold]: all stages {spent:.0f} s, now {time.monotonic() - began:.0f} s")
    for what, name in (("numbers", "summary.json"), ("release", "release"), ("report", "report.html")):
        if (path := pipeline.run / name).exists():  # not every pipeline releases
            console.print(
                f"{what:<8} {f'[bold green]{path}[/bold green]' if what == 'report' else path}", soft_wrap=True
            )


if __name__ == "__main__":
    run(main)
