"""Train one recipe with several lists of overrides, as an array of jobs.

    python -m leam_mm.launch sweep --cluster lumi_g --nodes 1 --run runs/rates --overrides rates.yaml RECIPE.yaml

rates.yaml is a list of lists of words for train.py:

    - [--model.init_args.optimizer.init_args.lr, "0.001"]
    - [--model.init_args.optimizer.init_args.lr, "0.0005", --seed_everything, "2"]

The run folders of the jobs are RUN/0000, RUN/0001 and so on. Other options are those of submit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console

from leam_mm.command_line import NonNegativeInt, parse_settings
from leam_mm.errors import UserError
from leam_mm.launch.energy_words import energy_words
from leam_mm.launch.job import Job
from leam_mm.launch.job_settings import JobSettings, make_job
from leam_mm.launch.preflight import Finding
from leam_mm.launch.resolved_recipe import ResolvedRecipe, resolve, train_words
from leam_mm.launch.submit import launch, recipe_findings
from leam_mm.launch.submit_words import split_words
from leam_mm.planning.cluster_profile import load_profile

PROGRAM = "python -m leam_mm.launch sweep"
MOST = 1000  # jobs of an array, Slurm's default limit


@dataclass(frozen=True)
class SweepSettings(JobSettings):
    """Settings of sweep.

    Args:
        overrides: YAML file with a list of lists of words for train.py.
        at_a_time: Jobs that run at a time, 0 for as many as Slurm starts.
    """

    overrides: Path = Path()
    at_a_time: NonNegativeInt = 0


def read_overrides(path: Path) -> list[tuple[str, ...]]:
    """Return the lists of words of a file.

    Raises:
        UserError: The file is missing, or is no list of lists of words.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--overrides {path} cannot be read ({reason}): give a YAML list of lists of words") from None
    lists = found if isinstance(found, list) else []
    for number, words in enumerate(lists):
        if not isinstance(words, list) or not all(isinstance(word, str | int | float) for word in words):
            raise UserError(f"{path}: entry {number} is {words!r}: give a list of words, such as [--max_samples, 64]")
    if not 1 <= len(lists) <= MOST:
        raise UserError(f"{path} has {len(lists)} lists of words: give 1 to {MOST}, each a list such as [--seed, 1]")
    return [tuple(map(str, words)) for words in lists]


def main(args: list[str]) -> None:
    """Run the program."""
    own, recipe, rest = split_words(SweepSettings, args)
    settings = parse_settings(SweepSettings, __doc__, own, program=PROGRAM)
    if recipe is None:
        raise UserError(f"name a recipe, such as configs/clip_vit_b16.yaml; see {PROGRAM} --help")
    lists = read_overrides(settings.overrides)
    found = resolve(recipe, [*rest, *lists[0]], settings.run, Path.cwd())
    folders = [("--trainer.default_root_dir", str(found.run / f"{number:04}")) for number in range(len(lists))]
    array = tuple((*words, *folder) for words, folder in zip(lists, folders, strict=True))
    words = train_words(recipe, [*energy_words(load_profile(settings.cluster).site, found), *rest], None)
    job = make_job(settings, found.run, words, array=array, at_a_time=settings.at_a_time)
    launch(job, sweep_findings(job, found, recipe, rest, lists), settings, Console(soft_wrap=True, highlight=False))


def sweep_findings(
    job: Job, first: ResolvedRecipe, recipe: str, rest: list[str], lists: list[tuple[str, ...]]
) -> Iterator[Finding]:
    """Yield the findings about the first list's recipe, and of a list for each other choice of options.

    train.py reads only one list of those with the same options: each takes seconds of imports.
    """
    yield from recipe_findings(job, first)
    seen = {_options(lists[0])}
    for number, words in enumerate(lists):
        if _options(words) in seen:
            continue
        seen.add(_options(words))
        try:
            resolve(recipe, [*rest, *words], None, Path.cwd())
        except UserError as error:
            yield Finding("recipe", "failed", f"list {number}: {error}")


def _options(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word.partition("=")[0] for word in words if word.startswith("--"))
