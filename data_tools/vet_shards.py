"""Vet final shards by a list of rules: what stays is named by a keep-list, or written as new shards.

    python data_tools/vet_shards.py --shards shards --rules configs/vet_basic.yaml --output vetted
    python data_tools/vet_shards.py --shards shards --rules configs/vet_basic.yaml --output vetted --materialise

Rules are classes named by dotted path (vetting_rule.py says what one is); each sees what the ones before it left.
OUTPUT gets ``ledger.parquet`` with every answer, ``vetting.json`` with settings and counts, ``timing.json`` with the
processor time of each rule, and either ``keep.parquet``, which trainings follow (``data.init_args.train: OUTPUT``), or,
with --materialise, new shards: only these can hold changed images and captions. The same shards and rules give the same
bytes but for timing.json, with any number of processes; a killed run goes on when the same command is given again.
"""

import argparse
import fcntl
import json
import os
import shutil
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from data_tools.vetting.dataset_decision import Reviewed, Verdict, count
from data_tools.vetting.shard_findings import INTAKE, Stage, read_changes, read_part, split_rules
from data_tools.vetting.vet_jobs import VettingJob, Workers
from data_tools.vetting.vetting_rule import VettingRule
from data_tools.work.ledger import LEDGER, LedgerWriter
from leam_mm.config_error import explain
from leam_mm.data.keep_list import KEEP, PLACE, SCHEMA, write_keep_list
from leam_mm.data.shard_index import ShardFolder, join_shards
from leam_mm.errors import UserError, beneath, run

REPORT, TIMING, FORMAT = "vetting.json", "timing.json", 1


def parse_arguments(args: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, help="folder of final shards, or one with a keep-list")
    parser.add_argument("--rules", type=Path, required=True, help="YAML file with `rules:`, a list of classes")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; must not exist yet")
    parser.add_argument(
        "--against", type=Path, action="append", default=[], metavar="SHARDS", help="drop what is there, too; repeated"
    )
    parser.add_argument("--materialise", action="store_true", help="write new shards instead of a keep-list")
    parser.add_argument("--processes", type=int, default=2, help="worker processes; changes speed only (%(default)s)")
    parser.add_argument(
        "--max-errors", type=float, default=0.1, help="share of samples for which a rule may fail (%(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT, also where it holds the same")
    settings = parser.parse_args(args)
    if settings.processes < 1 or not 0 <= settings.max_errors <= 1:
        raise UserError("--processes must be at least 1, --max-errors a share between 0 and 1")
    return settings


def read_rules(path: Path) -> list[VettingRule]:
    """Build the rules that a YAML file names.

    Raises:
        UserError: The file is missing, names what is no rule, or a setting that a rule does not know.
    """
    from jsonargparse import ArgumentParser  # only here: the processes that do the work need not load it

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--rules", type=list[VettingRule])
    line = [f"--config={path}"]
    try:
        rules = parser.instantiate(parser.parse_args(line)).rules
    except ArgumentError as error:
        raise beneath(error) or UserError(explain(str(error), line)) from None
    if not rules:
        raise UserError(f"{path} lists no rule: name at least one under `rules:`")
    return rules


def identity(folder: ShardFolder, others: list[ShardFolder], rules: list[VettingRule]) -> dict[str, Any]:
    """All that decides what is found, as it stands in vetting.json."""
    settings = json.loads(json.dumps([rule.setting() for rule in rules], default=str, sort_keys=True))
    roots = [other.merkle_root for other in others]
    return {"format": FORMAT, "shards": folder.merkle_root, "against": roots, "rules": settings}


@contextmanager
def opened_work(output: Path, wanted: dict[str, Any]) -> Iterator[Path]:
    """The folder of unfinished work, locked; refuses to go on with other settings."""
    work = output.with_name(output.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{work} is in use by another run: wait for it, or choose another --output") from None
        record = work / "fingerprint.json"
        if record.is_file():
            old = json.loads(record.read_text())
            for name, value in wanted.items():
                if old.get(name) != value:
                    raise UserError(
                        f"{work} was begun with other {name}: start with the old ones, or delete that folder"
                    )
        else:
            temporary = record.with_name(f"{record.name}.tmp-{os.getpid()}")
            temporary.write_text(json.dumps(wanted))
            os.replace(temporary, record)
        for left in work.glob("*/*.tmp-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield work


def review_all(workers: Workers, folders: list[ShardFolder], work: Path) -> tuple[Verdict, list[Reviewed]]:
    """First and second pass, stage by stage: each shard is asked about, then the rules that look at all decide.

    Returns:
        What stays, and all reviews.
    """
    rules, samples = workers.rules, [[entry.samples for entry in folder.shards] for folder in folders]
    verdict, reviewed = Verdict(rules, samples[0], work), []
    for number, steps in enumerate(split_rules(rules)):
        jobs: list[VettingJob] = []
        across = any(getattr(rules[step], "across", False) for step in steps)
        places: list[list[Path]] = []
        for at, folder in enumerate(folders if across else folders[:1]):
            place = work / f"review{number}_{at}"
            places.append([place / f"{shard:05d}" for shard in range(len(folder.shards))])
            for shard, target in enumerate(places[-1]):
                stage = verdict.stage(shard, steps) if number and not at else Stage(steps, against=at > 0)
                if stage.rows is None or stage.rows:
                    jobs.append(VettingJob(folder.path, shard, target, stage))
        _run(workers, jobs, "vet")
        others = Reviewed(list(chain(*places[1:])), list(chain(*samples[1 : len(places)])))
        own = Reviewed(places[0], samples[0])
        verdict.take_stage(own, others, steps)
        reviewed += [own, others]
    return verdict, reviewed


def _run(workers: Workers, jobs: list[VettingJob], told: str) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(told, total=len(jobs))
        workers.run(jobs, lambda: bar.advance(task))


def write_shards(workers: Workers, shards: Path, verdict: Verdict, work: Path, partial: Path) -> None:
    """Third pass with --materialise: the kept samples of a shard become one, so that trainings keep their order."""
    jobs = []
    for number in range(len(verdict.own.places)):
        stage = verdict.stage(number, [])
        if stage.rows:
            jobs.append(VettingJob(shards, number, work / "shards" / f"{number:05d}", stage))
    if not jobs:
        raise UserError("no sample is kept: loosen the rules")
    _run(workers, jobs, "write")
    join_shards((job.place for job in jobs), partial)


def write_keep(settings: argparse.Namespace, verdict: Verdict, root: str, partial: Path, console: Console) -> None:
    """Third pass without: the keep-list; refuses where a rule changed what such a list cannot hold."""
    tables, fields = [], 0
    for number, place in enumerate(verdict.own.places):
        stage = verdict.stage(number, [])
        rows = stage.rows or []
        kept = set(rows)
        changes = {row: change for row, change in read_changes(stage).items() if row in kept}
        for row, change in sorted(changes.items()):
            if change["rules"] or "captions" in change["record"]:
                raise UserError(
                    f"{change['rules'] or 'a rule'} changed images or captions (row {row} of shard {number} is the "
                    "first), which a keep-list cannot hold: give --materialise; what was looked at is kept"
                )
        fields += len(changes)
        taken, shard = pa.array(rows, pa.int32()), pa.array(np.full(len(rows), number, np.int32))
        keys = read_part(place / "samples.parquet", columns=["key"])["key"].take(taken).combine_chunks()
        tables.append(pa.table([shard, taken, keys], SCHEMA))
    relative = os.path.relpath(settings.shards.resolve(), settings.output.resolve())
    write_keep_list(partial, relative, root, pa.concat_tables(tables))
    if fields:
        console.print(f"{fields:,} records would get further fields (perceptual hashes, scores), which the ledger has:")
        console.print("a keep-list changes no record; --materialise writes them into new shards")


def write_ledger(verdict: Verdict, partial: Path) -> np.ndarray:
    """Write every answer; count them."""
    counts = np.zeros((3, len(verdict.rules) + 2), np.int64)
    with LedgerWriter(partial / LEDGER, "vet_shards") as writer:
        for number in range(len(verdict.own.places)):
            decisions = verdict.decisions(number)
            counts += count(decisions, len(verdict.rules))
            writer.write_table(decisions)
    return counts


def processor_times(verdict: Verdict, reviewed: list[Reviewed]) -> list[float | None]:
    """CPU milliseconds per image of the opening of samples and of each rule; None where nothing was asked."""
    asked, seconds = np.zeros(len(verdict.rules) + 1), np.zeros(len(verdict.rules) + 1)
    for place in (place for data in reviewed for place in data.places if place.is_dir()):
        times = json.loads((place / "times.json").read_text())
        asked += times["asked"]
        seconds += times["seconds"]
    seconds[:-1] += verdict.seconds
    each = [1000 * spent / number if number else None for spent, number in zip(seconds, asked, strict=True)]
    return [each[-1], *each[:-1]]


def finish(output: Path, partial: Path) -> None:
    """Give the finished folder its name; a kill in between costs neither the old nor the new one."""
    old = output.with_name(f"{output.name}.old-{os.getpid()}")
    if output.exists():
        os.replace(output, old)
    os.replace(partial, output)
    shutil.rmtree(old, ignore_errors=True)


def vet_shards(settings: argparse.Namespace, console: Console) -> None:
    """Run the three passes."""
    rules, folder = read_rules(settings.rules), ShardFolder(settings.shards)
    others = [ShardFolder(path) for path in settings.against]
    if others and not any(getattr(rule, "across", False) for rule in rules):
        raise UserError("--against is given, and no rule looks across data sets: add one for duplicates to --rules")
    wanted, output = identity(folder, others, rules), settings.output
    work = output.with_name(output.name + ".work")
    if not settings.overwrite and _done(output, wanted, settings.materialise):
        shutil.rmtree(work, ignore_errors=True)
        console.print(f"{output} already holds exactly this; nothing to do")
        return
    if output.exists() and not settings.overwrite:
        raise UserError(f"{output} exists already: give another --output, or --overwrite to replace it")
    with opened_work(output, wanted), Workers(rules, settings.processes) as workers:
        verdict, reviewed = review_all(workers, [folder, *others], work)
        partial = output.with_name(output.name + ".partial")
        if not settings.materialise:
            shutil.rmtree(partial, ignore_errors=True)  # what an interrupted run began to write there
        partial.mkdir(exist_ok=True)
        for name in (KEEP, PLACE):
            (partial / name).unlink(missing_ok=True)
        counts = write_ledger(verdict, partial)
        _check_errors(rules, counts, settings)
        if settings.materialise:
            write_shards(workers, settings.shards, verdict, work, partial)
        else:
            write_keep(settings, verdict, folder.merkle_root, partial, console)
        times = processor_times(verdict, reviewed)
        names = [INTAKE, *(rule.name for rule in rules)]
        found = [
            {"rule": name, "asked": int(asked), "dropped": int(dropped), "failed": int(failed)}
            for name, (asked, dropped, failed) in zip(names, counts.T[:-1], strict=True)
        ]
        found[0]["asked"] = folder.samples
        result = {"samples": folder.samples, "kept": int(verdict.staying.sum()), "found": found}
        result |= {"materialised": settings.materialise}
        (partial / REPORT).write_text(json.dumps(wanted | result, ensure_ascii=False, indent=1) + "\n")
        timing = [{"rule": name, "cpu_ms_per_image": each} for name, each in zip(names, times, strict=True)]
        (partial / TIMING).write_text(json.dumps(timing, indent=1) + "\n")
        finish(output, partial)
    shutil.rmtree(work)
    print_report(console, output, result, times)


def _done(output: Path, wanted: dict[str, Any], materialised: bool) -> bool:
    """Whether the output holds exactly what is asked for."""
    try:
        held = json.loads((output / REPORT).read_text())
    except (OSError, ValueError):
        return False
    return held | wanted == held and held["materialised"] == materialised


def _check_errors(rules: list[VettingRule], counts: np.ndarray, settings: argparse.Namespace) -> None:
    for number, rule in enumerate(rules, start=1):
        asked, _, failed = counts[:, number].tolist()
        if failed > settings.max_errors * asked:
            raise UserError(
                f"rule {rule.name} failed for {failed} of {asked} samples (--max-errors {settings.max_errors}): "
                f"read its reasons in {settings.output}.partial/{LEDGER}, mend it, delete {settings.output}.work"
            )


def print_report(console: Console, output: Path, result: dict[str, Any], times: list[float | None]) -> None:
    """Print what each rule dropped and cost."""
    table = Table("rule", "asked", "dropped", "failed", "CPU ms/image", title=str(output))
    for found, each in zip(result["found"], times, strict=True):
        numbers = (f"{found[name]:,}" for name in ("asked", "dropped", "failed"))
        table.add_row(found["rule"], *numbers, "not measured" if each is None else f"{each:.2f}")
    console.print(table)
    name = ShardFolder(output).merkle_root
    console.print(f"{result['kept']:,} of {result['samples']:,} samples are kept; their name is {name}")


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    vet_shards(parse_arguments(args), Console(soft_wrap=True))


if __name__ == "__main__":
    run(main)
