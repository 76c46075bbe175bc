"""The file of a pipeline: its stages, what each needs, and the checks of both.

title: Quickstart on rendered scenes
run: runs/quickstart
jobs: 2
stages:
- {name: scenes, command: python data_tools/make_scenes.py ..., makes: [runs/quickstart/scenes]}
- {name: codec, command: python train.py fit ..., makes: [runs/quickstart/codec], after: [scenes]}
"""

import itertools
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from leam_mm.errors import UserError

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # of every stage: no network access
ENERGY_KEYS = {"grams_per_kwh", "market_grams_per_kwh", "pue", "source"}


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
        after: Names of the earlier stages whose output it needs; None is all of them.
    """

    name: str
    command: str
    makes: list[str]
    serve: dict[str, Any] = field(default_factory=dict)
    reads: list[str] = field(default_factory=list)
    only_with: str = ""
    after: list[str] | None = None


@dataclass(frozen=True)
class Pipeline:
    """A pipeline file.

    Args:
        run: The run folder.
        title: Heading of the report.
        stages: The commands.
        energy: Arguments of ``CarbonFactors`` (grams_per_kwh, market_grams_per_kwh, pue, source) for emissions.
        jobs: Number of stages that may run at the same time, at least 1.
    """

    run: Path
    title: str
    stages: list[Stage]
    energy: dict[str, Any] = field(default_factory=dict)
    jobs: int = 1


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
        jobs = content.pop("jobs", 1)
        pipeline = Pipeline(Path(content.pop("run")), str(content.pop("title")), stages, energy, jobs)
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no pipeline file ({error}); compare it with configs/pipeline_quickstart.yaml"
        ) from None
    if content:
        known = "run, title, stages, jobs and energy"
        raise UserError(f"{path}: unknown key {next(iter(content))!r}; a pipeline has {known}")
    if unknown := sorted(energy.keys() - ENERGY_KEYS):
        raise UserError(f"{path}: unknown key energy.{unknown[0]}; there are {', '.join(sorted(ENERGY_KEYS))}")
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise UserError(f"{path}: jobs is {jobs!r}; give a whole number from 1")
    for stage in stages:
        if not stage.name.isidentifier() or not shlex.split(stage.command):
            raise UserError(f"{path}: stage {stage.name!r} needs a name of one word and a command")
        for made in stage.makes:
            if pipeline.run.resolve() not in Path(made).resolve().parents:
                raise UserError(f"{path}: stage {stage.name} makes {made}, which lies outside {pipeline.run}")
    check_order(path, stages)
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


def needed_stages(stages: list[Stage]) -> dict[str, set[str]]:
    """Return, for each stage, the names of all stages that must be finished before it starts."""
    needed: dict[str, set[str]] = {}
    for stage in stages:
        direct = list(needed) if stage.after is None else stage.after
        needed[stage.name] = set(direct).union(*(needed[name] for name in direct))
    return needed


def check_order(path: Path, stages: list[Stage]) -> None:
    """Fail if a stage waits for none that is earlier in the file, or reads what one makes that it does not wait for.

    Args:
        path: The pipeline file, for messages.
        stages: Its stages.
    """
    earlier: list[Stage] = []
    for stage in stages:
        names = [other.name for other in earlier]
        if stage.name in names:
            raise UserError(f"{path}: two stages have the name {stage.name}; give each its own")
        if stage.after is not None:
            if not isinstance(stage.after, list) or any(name not in names for name in stage.after):
                raise UserError(
                    f"{path}: after of stage {stage.name} is {stage.after!r}; give a list of earlier stages, of "
                    f"{', '.join(names) or 'which there are none'}"
                )
            before = needed_stages([*earlier, stage])[stage.name]
            text = _text(stage)
            for other in earlier:
                read = next((made for made in other.makes if other.name not in before and _names(text, made)), None)
                if read:
                    raise UserError(
                        f"{path}: stage {stage.name} names {read}, which stage {other.name} makes; add {other.name} "
                        f"to its key after"
                    )
        earlier.append(stage)


def _text(stage: Stage) -> str:
    """Return all text in which a stage names what it reads: its command, the recipes after --config, its server."""
    words = shlex.split(stage.command)
    recipes = [Path(word) for option, word in itertools.pairwise(words) if option == "--config"]
    contents = [path.read_text(encoding="utf-8", errors="replace") for path in recipes if path.is_file()]
    return "\n".join([stage.command, str(stage.serve), stage.only_with, *contents])


def _names(text: str, path: str) -> bool:
    """Return whether a text names a path or something below it."""
    return re.search(rf"(?<![\w./-]){re.escape(path)}(?![\w.-])", text) is not None
