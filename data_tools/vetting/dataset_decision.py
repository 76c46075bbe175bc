"""Decide which samples of a data set stay: run the rules that look at all samples, and give the rows of the ledger.

The position of a sample is its number over all shards. Each rule that judged a sample has a row in the ledger; a sample
that stays has one more, of the rule ``kept``, and a sample that goes has exactly one row with ``kept`` false.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_tools.vetting.shard_findings import (
    ANSWER,
    ERROR,
    FINDINGS,
    OPENING,
    Records,
    ShardTask,
    read_changes,
    read_table,
)
from data_tools.vetting.vetting_rule import DatasetRule, Finding, VettingRule
from leam_mm.data.ledger import SCHEMA, evidence_text
from leam_mm.errors import UserError
from leam_mm.files import atomic_write

RECORD_COLUMNS = ("key", "uid", "url", "sha256", "width", "height")  # of the records that ``resolve`` receives
RESOLVED = pa.schema([*FINDINGS, ("record", pa.string())])


@dataclass(frozen=True)
class DatasetFindings:
    """Findings in all shards of one data set in one stage, in order.

    Args:
        folders: Folder of each shard's findings; in a later stage a shard of which nothing stayed has none.
        samples: Number of samples of each shard.
    """

    folders: list[Path]
    samples: list[int]

    @property
    def starts(self) -> np.ndarray:
        """Position of each shard's first sample, and the number of all samples."""
        return np.cumsum([0, *self.samples])

    def column(self, name: str) -> pa.ChunkedArray:
        """Return one column of the samples."""
        parts = [read_table(folder / "samples.parquet", columns=[name])[name] for folder in self.folders]
        return pa.chunked_array([chunk for part in parts for chunk in part.chunks], parts[0].type)

    def measured(self, step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Give the positions and numbers that a rule measured, shard by shard."""
        for folder, start in zip(self.folders, self.starts[:-1].tolist(), strict=True):
            if (folder / f"measured_{step}.npz").is_file():
                with np.load(folder / f"measured_{step}.npz", allow_pickle=False) as found:
                    yield found["rows"] + start, found["numbers"]

    def records(self, positions: np.ndarray, against: bool) -> tuple[list[str], list[dict[str, Any]]]:
        """Return the keys and the records, as rules see them, of the samples at ascending positions."""
        edges = np.searchsorted(positions, self.starts)
        keys, records = [], []
        for number, folder in enumerate(self.folders):
            rows = positions[edges[number] : edges[number + 1]] - self.starts[number]
            if len(rows):
                table = read_table(folder / "samples.parquet", columns=RECORD_COLUMNS)
                for record in table.take(rows).to_pylist():
                    keys.append(record.pop("key"))
                    records.append(record | {"against": True} if against else record)
        return keys, records


class DatasetDecision:
    """Which samples stay.

    Args:
        rules: All rules, in order.
        samples: Number of samples of each of our shards.
        work: Folder that keeps finished steps for a resumed run.
    """

    def __init__(self, rules: list[VettingRule], samples: list[int], work: Path) -> None:
        """See the class for the arguments."""
        self.rules, self.work = rules, work
        self.starts = np.cumsum([0, *samples])
        self.staying = np.ones(int(self.starts[-1]), bool)
        self.stages: list[DatasetFindings] = []
        self.resolved: list[tuple[int, pa.Table]] = []  # number of the stage, findings of a DatasetRule
        self.seconds = [0.0] * len(rules)

    @property
    def own(self) -> DatasetFindings:
        """Findings of the first stage in our shards: the only ones that cover every sample."""
        return self.stages[0]

    def add_stage(self, own: DatasetFindings, others: DatasetFindings, steps: list[int]) -> None:
        """Add the findings of a stage, then run those of its rules that look at the whole data set, in order.

        Args:
            own: Findings in our shards.
            others: Findings in other data sets.
            steps: Numbers of the stage's rules.
        """
        self.stages.append(own)
        if own is self.own:
            self.staying &= own.column("staying").to_numpy()
            self._add(self._repeated_keys())
        else:
            for start, folder in zip(self.starts[:-1].tolist(), own.folders, strict=True):
                if folder.is_dir():
                    findings = read_table(folder / "findings.parquet", ["row", "kept"])
                    self.staying[start + findings["row"].to_numpy()[~findings["kept"].to_numpy()]] = False
        for step in steps:
            rule = self.rules[step]
            if isinstance(rule, DatasetRule):
                path = self.work / f"resolved_{step}.parquet"
                if not path.is_file():
                    begin = time.process_time()
                    table = self._resolve(step, rule, others)
                    self.seconds[step] = time.process_time() - begin
                    with atomic_write(path) as temporary:
                        pq.write_table(table, temporary)
                self._add(read_table(path))

    def _add(self, table: pa.Table) -> None:
        self.staying[table["row"].to_numpy()[~table["kept"].to_numpy()]] = False
        self.resolved.append((len(self.stages) - 1, table))

    def _repeated_keys(self) -> pa.Table:
        """Drop samples whose key an earlier one has: loaders, ledgers and withdrawals find samples by key."""
        positions = np.flatnonzero(self.staying)
        codes = pc.dictionary_encode(self.own.column("key").combine_chunks()).indices.to_numpy(zero_copy_only=False)
        later = np.ones(len(positions), bool)
        later[np.unique(codes[positions], return_index=True)[1]] = False
        finding = Finding("key", False, "an earlier sample has the same key")
        return _table([(position, finding) for position in positions[later].tolist()], -1, OPENING)

    def _resolve(self, step: int, rule: DatasetRule, others: DatasetFindings) -> pa.Table:
        positions, foreign = np.flatnonzero(self.staying), np.zeros(0, np.int64)
        if rule.across and others.folders:  # the samples that could be opened and measured
            foreign = np.concatenate([foreign, *(found for found, _ in others.measured(step))])
        if not len(positions):
            return RESOLVED.empty_table()
        sets = [(others, foreign, True)] if len(foreign) else []
        keys: list[str] = []
        records: list[dict[str, Any]] = []
        for findings, chosen, against in [*sets, (self.own, positions, False)]:
            more_keys, more_records = findings.records(chosen, against)
            keys, records = keys + more_keys, records + more_records
        measured = self._measured(step, [(others, foreign), (self.stages[-1], positions)])
        if measured is None or len(measured) != len(keys):
            raise UserError(f"rule {rule.name} has not measured every sample: delete {self.work} and start again")
        answers = rule.resolve(keys, records, measured)
        if len(answers) != len(keys) or any(finding.pixels is not None for finding in answers):
            raise UserError(
                f"rule {rule.name} gave {len(answers)} findings for {len(keys)} samples, or pixels: fix the rule"
            )
        return _table(list(zip(positions.tolist(), answers[len(foreign) :], strict=True)), step, rule.name)

    def _measured(self, step: int, chosen: list[tuple[DatasetFindings, np.ndarray]]) -> np.ndarray | None:
        """Return what a rule measured of the chosen samples, mapped from a file: it may exceed the memory."""
        total, filled = sum(len(positions) for _, positions in chosen), 0
        numbers: np.ndarray | None = None
        for findings, positions in chosen:
            for found, values in findings.measured(step) if len(positions) else ():
                wanted = values[np.isin(found, positions, assume_unique=True)]
                if numbers is None:
                    path, shape = self.work / "measured.npy", (total, *values.shape[1:])
                    numbers = np.lib.format.open_memmap(path, "w+", values.dtype, shape)
                numbers[filled : filled + len(wanted)] = wanted
                filled += len(wanted)
        return numbers if filled == total else None

    def kept_rows(self, number: int) -> np.ndarray:
        """Return the rows of one of our shards that stay."""
        return np.flatnonzero(self.staying[self.starts[number] : self.starts[number + 1]])

    def task(self, number: int, steps: list[int]) -> ShardTask:
        """Return the task for one of our shards after all stages so far: the next stage, or writing without steps."""
        records: list[Records] = [{} for _ in self.stages]
        for stage, table in self._resolved_in(number):
            for row, record in zip(table["row"].to_pylist(), table["record"].to_pylist(), strict=True):
                if record:
                    records[stage][row] = records[stage].get(row, {}) | json.loads(record)
        folders = [stage.folders[number] for stage in self.stages]
        return ShardTask(steps, rows=self.kept_rows(number).tolist(), earlier=folders, records=records)

    def _resolved_in(self, number: int) -> list[tuple[int, pa.Table]]:
        """Return the findings of ``DatasetRule``s in one shard, by its rows, each with the number of its stage."""
        start, end = self.starts[number : number + 2].tolist()
        parts = []
        for stage, table in self.resolved:
            first, last = np.searchsorted(table["row"].to_numpy(), [start, end]).tolist()
            if part := table.slice(first, last - first):
                parts.append((stage, part.set_column(0, "row", pc.subtract(part["row"], start))))
        return parts

    def ledger_rows(self, number: int) -> pa.Table:
        """Return the ledger's rows about one shard, by sample and then by rule, with the rule's number in ``step``."""
        kept, task = self.kept_rows(number), self.task(number, [])
        changes = read_changes(task)
        samples = read_table(self.own.folders[number] / "samples.parquet")
        final = pa.table(
            {
                "row": kept,
                "step": np.full(len(kept), len(self.rules), np.int32),
                "rule": ["kept"] * len(kept),
                "value": [changes[row]["transforms"] if row in changes else "" for row in kept.tolist()],
                "kept": [True] * len(kept),
                "reason": [""] * len(kept),
                "evidence": pa.nulls(len(kept), pa.string()),
            }
        )
        found = [read_table(folder / "findings.parquet") for folder in task.earlier if folder.is_dir()]
        found += [part.drop("record") for _, part in self._resolved_in(number)]
        answers = pa.concat_tables([*found, final.cast(FINDINGS)])
        answers = answers.take(np.lexsort((answers["step"].to_numpy(), answers["row"].to_numpy())))
        about = samples.take(answers["row"])
        columns = {name: (answers if name in ANSWER else about)[name] for name in SCHEMA.names if name != "stage"}
        return pa.table(columns | {"step": answers["step"]})


def _table(findings: list[tuple[int, Finding]], step: int, name: str) -> pa.Table:
    rows = [
        {
            "row": position,
            "step": step,
            "rule": name,
            "value": finding.value,
            "kept": finding.kept,
            "reason": finding.reason,
            "evidence": evidence_text(finding.evidence),
            "record": json.dumps(finding.record, ensure_ascii=False, sort_keys=True) if finding.record else None,
        }
        for position, finding in findings
    ]
    return pa.Table.from_pylist(rows, RESOLVED)


def count_findings(ledger_rows: pa.Table, rules: int) -> np.ndarray:
    """Count judged, dropped and failed samples, (3, rules + 2): of the opening, of each rule, of those that stay."""
    step, kept = ledger_rows["step"].to_numpy() + 1, ledger_rows["kept"].to_numpy()
    failed = pc.fill_null(pc.equal(ledger_rows["value"], ERROR), False).to_numpy() & ~kept
    return np.stack([np.bincount(step[mask], minlength=rules + 2) for mask in (kept | ~kept, ~kept, failed)])
