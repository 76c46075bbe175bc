"""Vet final shards by a list of rules; the result is a keep-list of the samples that stay, or new shards.

    python data_tools/vet_shards.py --shards shards --rules configs/vet_basic.yaml --output vetted
    python data_tools/vet_shards.py --shards shards --rules configs/vet_basic.yaml --output vetted --materialise

Rules are classes named by dotted path (see data_tools/vetting/vetting_rule.py); each sees what the earlier ones kept.
Before them, samples are dropped that were withdrawn from shards beside --shards or OUTPUT (their ``*.blocklists``).
OUTPUT gets ``ledger.parquet`` with every finding, ``vetting.json`` with settings and counts, ``timing.json`` with the
processor time of each rule, and either ``keep.parquet``, which training follows (``data.init_args.train: OUTPUT``), or,
with --materialise, new shards: only these can hold changed images and captions. The same shards and rules give the same
bytes except for timing.json, with any number of processes. To resume a killed run, give the same command again.
"""

import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_tools.vetting.shard_findings import OPENING
from data_tools.vetting.vet_jobs import prepare_worker
from data_tools.vetting.vetting_passes import (
    find_all,
    fingerprint,
    processor_times,
    read_rules,
    write_keep,
    write_ledger,
    write_shards,
)
from data_tools.vetting.vetting_rule import VettingRule
from data_tools.vetting.withdrawn_samples import withdrawn_rules
from data_tools.work.work_folder import open_work_folder
from data_tools.work.workers import WorkerPool
from leam_mm.command_line import PositiveInt, Share, parse_settings
from leam_mm.data.keep_list import KEEP, PLACE
from leam_mm.data.ledger import LEDGER
from leam_mm.data.parquet_file import open_parquet
from leam_mm.data.shard_index import ShardFolder
from leam_mm.errors import UserError, run
from leam_mm.files import remove_leftovers, replace_folder
from leam_mm.recorded_classes import trust_modules

REPORT, TIMING = "vetting.json", "timing.json"
VALUES = re.compile(r"\b[0-9a-f]{8,}\b|\d+(?:\.\d+)?")  # in a reason, of one sample


@dataclass(frozen=True)
class VetSettings:
    """Settings of the program.

    Args:
        shards: Folder of final shards, or one with a keep-list.
        rules: YAML file with `rules:`, a list of classes.
        output: Folder to write; must not exist yet.
        against: Other shard folders; samples that are in them are dropped. May be repeated.
        materialise: Write new shards instead of a keep-list.
        processes: Worker processes; changes speed only.
        max_errors: Share of samples for which a rule may fail.
        overwrite: Replace OUTPUT, even if it holds the same result.
        trust: Modules of your own, such as my_lab, with rules or models of your own; several between commas.
    """

    shards: Path
    rules: Path
    output: Path
    against: list[Path] = field(default_factory=list, metadata={"nargs": 1})
    materialise: bool = False
    processes: PositiveInt = 2
    max_errors: Share = 0.1
    overwrite: bool = False
    trust: str = ""


def vet_shards(settings: VetSettings, console: Console) -> None:
    """Run all passes and write the output folder."""
    trust_modules(settings.trust)
    folder, output = ShardFolder(settings.shards), settings.output
    rules = [*withdrawn_rules([output, settings.shards]), *read_rules(settings.rules)]
    others = [ShardFolder(path) for path in settings.against]
    if others and not any(getattr(rule, "across", False) for rule in rules):
        raise UserError("--against is given, and no rule looks across data sets: add one for duplicates to --rules")
    wanted, work = fingerprint(folder, others, rules), output.with_name(output.name + ".work")
    if not settings.overwrite and _is_finished(output, wanted, settings.materialise):
        shutil.rmtree(work, ignore_errors=True)
        console.print(f"{output} already holds exactly this; nothing to do")
        return
    if output.exists() and not settings.overwrite:
        raise UserError(f"{output} exists already: give another --output, or --overwrite to replace it")
    pool = WorkerPool(settings.processes, prepare_worker, rules, isolated=True)
    with open_work_folder(work, wanted), pool as workers:
        decision, all_findings = find_all(workers, rules, [folder, *others], work)
        partial = output.with_name(output.name + ".partial")
        if not settings.materialise:
            shutil.rmtree(partial, ignore_errors=True)  # left by an interrupted run
        partial.mkdir(exist_ok=True)
        remove_leftovers(partial)
        for name in (KEEP, PLACE):
            (partial / name).unlink(missing_ok=True)
        counts = write_ledger(decision, partial)
        _check_errors(rules, counts, settings)
        if settings.materialise:
            write_shards(workers, settings.shards, decision, work, partial)
        elif fields := write_keep(settings.shards, output, decision, folder.merkle_root, partial):
            console.print(
                f"rules set new fields (perceptual hashes, scores) in {fields:,} records: they are in the ledger; a "
                "keep-list cannot hold them, shards written with --materialise can"
            )
        times = processor_times(decision, all_findings)
        names = [OPENING, *(rule.name for rule in rules)]
        found = [
            {"rule": name, "asked": int(asked), "dropped": int(dropped), "failed": int(failed)}
            for name, (asked, dropped, failed) in zip(names, counts.T[:-1], strict=True)
        ]
        found[0]["asked"] = folder.samples
        result = {"samples": folder.samples, "kept": int(decision.staying.sum()), "found": found}
        result |= {"materialised": settings.materialise}
        (partial / REPORT).write_text(json.dumps(wanted | result, ensure_ascii=False, indent=1) + "\n")
        timing = [{"rule": name, "cpu_ms_per_image": each} for name, each in zip(names, times, strict=True)]
        (partial / TIMING).write_text(json.dumps(timing, indent=1) + "\n")
        replace_folder(partial, output)
        shutil.rmtree(work)
    print_report(console, output, result, times)


def _is_finished(output: Path, wanted: dict[str, Any], materialised: bool) -> bool:
    """Return whether the output holds exactly this result."""
    try:
        held = json.loads((output / REPORT).read_text())
    except (OSError, ValueError):
        return False
    return held | wanted == held and held["materialised"] == materialised


def _check_errors(rules: list[VettingRule], counts: np.ndarray, settings: VetSettings) -> None:
    for number, rule in enumerate(rules, start=1):
        asked, _, failed = counts[:, number].tolist()
        if failed > settings.max_errors * asked:
            raise UserError(
                f"rule {rule.name} failed for {failed} of {asked} samples (--max-errors {settings.max_errors}): "
                f"read the reasons in {settings.output}.partial/{LEDGER}, fix the rule, delete {settings.output}.work"
            )


def print_report(console: Console, output: Path, result: dict[str, Any], times: list[float | None]) -> None:
    """Print what each rule dropped and its processor time."""
    table = Table("rule", "asked", "dropped", "failed", "CPU ms/image", title=str(output))
    for found, each in zip(result["found"], times, strict=True):
        numbers = (f"{found[name]:,}" for name in ("asked", "dropped", "failed"))
        table.add_row(found["rule"], *numbers, "not measured" if each is None else f"{each:.2f}")
    console.print(table)
    if reasons := common_reasons(output / LEDGER):
        table = Table("samples", "rule", "reason, with … for its values", title="why samples were dropped")
        for (rule, reason), count in reasons:
            table.add_row(f"{count:,}", rule, Text(reason))
        console.print(table)
        console.print(f"{output / LEDGER} has rule, value, reason and evidence of every sample")
    root = ShardFolder(output).merkle_root
    console.print(f"kept {result['kept']:,} of {result['samples']:,} samples; Merkle root {root}")


def common_reasons(ledger: Path, most: int = 12) -> list[tuple[tuple[str, str], int]]:
    """Return the most common rules and reasons by which samples were dropped, with their numbers."""
    counts: Counter[tuple[str, str]] = Counter()
    with open_parquet(ledger) as file:
        for batch in file.batches(10_000, ["rule", "reason", "kept"]):
            for row in batch.to_pylist():
                if not row["kept"]:
                    counts[row["rule"], VALUES.sub("…", row["reason"] or "")] += 1
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:most]


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    vet_shards(parse_settings(VetSettings, __doc__, args), Console(soft_wrap=True))


if __name__ == "__main__":
    run(main)
