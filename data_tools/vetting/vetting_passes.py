"""The passes of vet_shards: rules judge each shard, dataset rules decide, and the result is written."""

import json
import os
from argparse import ArgumentError
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_tools.vetting.dataset_decision import DatasetDecision, DatasetFindings, count_findings
from data_tools.vetting.shard_findings import ShardTask, read_changes, read_table, split_stages
from data_tools.vetting.vet_jobs import VettingJob, VettingState, do_job
from data_tools.vetting.vetting_rule import VettingRule
from data_tools.work.workers import WorkerPool
from leam_mm.config_error import explain
from leam_mm.data.keep_list import SCHEMA, write_keep_list
from leam_mm.data.ledger import LEDGER, LedgerWriter
from leam_mm.data.shard_index import ShardFolder, join_shards
from leam_mm.errors import UserError, user_error
from leam_mm.recorded_classes import RULE_CLASSES, check_classes, only_classes_of

FORMAT = 1


def read_rules(path: Path) -> list[VettingRule]:
    """Build the rules that a YAML file lists.

    Raises:
        UserError: The file is missing, or names an unknown class or setting, or one that is neither ours nor trusted.
    """
    from jsonargparse import ArgumentParser  # only here: worker processes need not load it

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--rules", type=list[VettingRule])
    words = [f"--config={path}"]
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        content = None  # the parser says what is wrong
    try:
        check_classes(content, RULE_CLASSES)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    try:
        with only_classes_of(RULE_CLASSES):
            rules = parser.instantiate(parser.parse_args(words)).rules
    except ArgumentError as error:
        raise user_error(error) or UserError(explain(str(error), words)) from None
    if not rules:
        raise UserError(f"{path} lists no rule: name at least one under `rules:`")
    return rules


def fingerprint(folder: ShardFolder, others: list[ShardFolder], rules: list[VettingRule]) -> dict[str, Any]:
    """Return all that decides the findings, as it is written to vetting.json."""
    settings = json.loads(json.dumps([rule.setting() for rule in rules], default=str, sort_keys=True))
    roots = [other.merkle_root for other in others]
    return {"format": FORMAT, "shards": folder.merkle_root, "against": roots, "rules": settings}


def find_all(
    workers: WorkerPool[VettingState], rules: list[VettingRule], folders: list[ShardFolder], work: Path
) -> tuple[DatasetDecision, list[DatasetFindings]]:
    """Run the first two passes, stage by stage: vet each shard, then run the rules that look at all samples.

    Args:
        workers: Processes that vet shards.
        rules: All rules, in order.
        folders: Our shards, then those of other data sets.
        work: Folder for finished pieces.

    Returns:
        Which samples stay, and the findings of all stages and data sets.
    """
    samples = [[entry.samples for entry in folder.shards] for folder in folders]
    decision, all_findings = DatasetDecision(rules, samples[0], work), []
    for stage, steps in enumerate(split_stages(rules)):
        jobs: list[VettingJob] = []
        across = any(getattr(rules[step], "across", False) for step in steps)
        outputs: list[list[Path]] = []
        for dataset, folder in enumerate(folders if across else folders[:1]):
            parent = work / f"findings{stage}_{dataset}"
            outputs.append([parent / f"{number:05d}" for number in range(len(folder.shards))])
            for number, output in enumerate(outputs[-1]):
                first = stage == 0 or dataset > 0
                task = ShardTask(steps, against=dataset > 0) if first else decision.task(number, steps)
                if task.rows is None or task.rows:
                    jobs.append(VettingJob(folder.path, number, output, task))
        _run(workers, jobs, "vet")
        others = DatasetFindings(list(chain(*outputs[1:])), list(chain(*samples[1 : len(outputs)])))
        own = DatasetFindings(outputs[0], samples[0])
        decision.add_stage(own, others, steps)
        all_findings += [own, others]
    return decision, all_findings


def _run(workers: WorkerPool[VettingState], jobs: list[VettingJob], description: str) -> None:
    waiting = [job for job in jobs if not job.output.is_dir()]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=len(jobs), completed=len(jobs) - len(waiting))
        for _ in workers.run(do_job, waiting):
            bar.advance(task)


def write_shards(
    workers: WorkerPool[VettingState], shards: Path, decision: DatasetDecision, work: Path, output: Path
) -> None:
    """Write the kept samples of each shard to a new shard, so that the order of training stays the same."""
    jobs = []
    for number in range(len(decision.own.folders)):
        task = decision.task(number, [])
        if task.rows:
            jobs.append(VettingJob(shards, number, work / "shards" / f"{number:05d}", task))
    if not jobs:
        raise UserError("no sample is kept: loosen the rules")
    _run(workers, jobs, "write")
    join_shards((job.output for job in jobs), output)


def write_keep(shards: Path, output: Path, decision: DatasetDecision, root: str, partial: Path) -> int:
    """Write the keep-list into a folder.

    Args:
        shards: Folder of our shards.
        output: Final folder of the list, from which the path to the shards is relative.
        decision: Which samples stay.
        root: Merkle root of the shards.
        partial: Folder to write to.

    Returns:
        Number of records with new fields, which only materialised shards can hold.

    Raises:
        UserError: A rule changed images or captions, which a keep-list cannot hold.
    """
    tables, fields = [], 0
    for number, folder in enumerate(decision.own.folders):
        task = decision.task(number, [])
        rows = task.rows or []
        kept = set(rows)
        changes = {row: change for row, change in read_changes(task).items() if row in kept}
        for row, change in sorted(changes.items()):
            if change["rules"] or "captions" in change["record"]:
                raise UserError(
                    f"{change['rules'] or 'a rule'} changed images or captions (first in row {row} of shard {number}), "
                    "which a keep-list cannot hold: give --materialise; the findings so far are kept"
                )
        fields += len(changes)
        taken, shard = pa.array(rows, pa.int32()), pa.array(np.full(len(rows), number, np.int32))
        keys = read_table(folder / "samples.parquet", columns=["key"])["key"].take(taken).combine_chunks()
        tables.append(pa.table([shard, taken, keys], SCHEMA))
    write_keep_list(partial, os.path.relpath(shards.resolve(), output.resolve()), root, pa.concat_tables(tables))
    return fields


def write_ledger(decision: DatasetDecision, output: Path) -> np.ndarray:
    """Write every finding to the ledger, and return their counts (see ``count_findings``)."""
    counts = np.zeros((3, len(decision.rules) + 2), np.int64)
    with LedgerWriter(output / LEDGER, "vet_shards") as writer:
        for number in range(len(decision.own.folders)):
            rows = decision.ledger_rows(number)
            counts += count_findings(rows, len(decision.rules))
            writer.write_table(rows)
    return counts


def processor_times(decision: DatasetDecision, all_findings: list[DatasetFindings]) -> list[float | None]:
    """Return CPU milliseconds per image of the opening of samples and of each rule; None without any sample."""
    asked, seconds = np.zeros(len(decision.rules) + 1), np.zeros(len(decision.rules) + 1)
    for folder in (folder for findings in all_findings for folder in findings.folders if folder.is_dir()):
        times = json.loads((folder / "times.json").read_text())
        asked += times["asked"]
        seconds += times["seconds"]
    seconds[:-1] += decision.seconds
    each = [1000 * spent / number if number else None for spent, number in zip(seconds, asked, strict=True)]
    return [each[-1], *each[:-1]]
