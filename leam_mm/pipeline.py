"""Run the stages of a pipeline file, from data to release; resumes where it stopped.

    python -m leam_mm.pipeline configs/pipeline_quickstart.yaml
    python -m leam_mm.pipeline configs/pipeline_finetune.yaml --set folder=pictures --set base=runs/quickstart

A file may have variables, used as ${name}; --set changes them. Each stage is one command, which is printed before it
runs and can be repeated by hand. A finished stage is skipped unless its command, the recipe in it, the files it reads
or a stage that it needs has changed. With ``jobs: 2`` in the file, two stages run at the same time if neither needs the
other.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from leam_mm.errors import UserError, run
from leam_mm.files import write_json
from leam_mm.folder_server import server_command
from leam_mm.pipeline_file import ENVIRONMENT, Pipeline, read_pipeline
from leam_mm.pipeline_stages import StageRunner
from leam_mm.run_lock import LOCK, run_lock

console = Console(highlight=False)


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
    from leam_mm.evaluators.results import read_results  # imported here since it loads torch

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
        "wall_seconds": round(wall_seconds(records), 1),
        "cpu_seconds": {record["name"]: round(record["cpu_seconds"], 1) for record in records},
        "stolen_cpu_seconds": {record["name"]: record.get("stolen_cpu_seconds") for record in records},
        "energy": {
            "joules": None if any(value is None for value in joules) else sum(joules),
            "by_stage": {record["name"]: record["energy"] for record in records},
        },
        "carbon": {record["name"]: record.get("carbon", {}) for record in records},
    }


def wall_seconds(records: list[dict[str, Any]]) -> float:
    """Return the wall time of all stages; one in which several ran counts once."""
    return sum(record.get("wall_seconds", record["seconds"]) for record in records)


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
        records = StageRunner(pipeline).run()
        changes = [word for pair in options.set for word in ("--set", pair)]
        command = ["python", "-m", "leam_mm.pipeline", str(options.pipeline), *changes]
        summary = summarise(pipeline, records) | {"pipeline": commands(pipeline, records, command)}
        write_json(pipeline.run / "summary.json", summary)
        from leam_mm.report.report_page import write_report  # imported here since it loads torch

        write_report(pipeline.run, pipeline.run / "report.html", title=pipeline.title)
    spent, now = wall_seconds(records), time.monotonic() - began
    console.print(f"\n[bold]{pipeline.title}[/bold]: all stages {spent:.0f} s, now {now:.0f} s")
    for what, name in (("numbers", "summary.json"), ("release", "release"), ("report", "report.html")):
        if (path := pipeline.run / name).exists():  # not every pipeline releases
            console.print(
                f"{what:<8} {f'[bold green]{path}[/bold green]' if what == 'report' else path}", soft_wrap=True
            )


if __name__ == "__main__":
    run(main)
