"""What becomes of each sample once all are known: rules that look at the whole data set, and the rows of the ledger.

A sample has a number over all shards, its position. Every rule that was asked about it has a row in the ledger; a
sample that stays has one more, named ``kept``, and one that goes has exactly one row that says no.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_tools.vetting.shard_findings import ANSWER, ERROR, FINDINGS, INTAKE, Records, Stage, read_changes, read_part
from data_tools.vetting.vetting_rule import DatasetRule, Finding, VettingRule
from data_tools.work.ledger import SCHEMA, evidence_text
from leam_mm.errors import UserError

KNOWN = ("key", "uid", "url", "sha256", "width", "height")
RESOLVED = pa.schema([*FINDINGS, ("record", pa.string())])


@dataclass(frozen=True)
class Reviewed:
    """The reviews of all shards of one data set in one stage, in order.

    Args:
        places: Folder of each review; in a later stage there is none where nothing stayed.
        samples: How many samples each shard has.
    """

    places: list[Path]
    samples: list[int]

    @property
    def starts(self) -> np.ndarray:
        """Position of each shard's first sample, and of the end."""
        return np.cumsum([0, *self.samples])

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of the samples."""
        parts = [read_part(place / "samples.parquet", columns=[name])[name] for place in self.places]
        return pa.chunked_array([chunk for part in parts for chunk in part.chunks], parts[0].type)

    def measured(self, step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Positions and numbers of each review that has any."""
        for place, start in zip(self.places, self.starts[:-1].tolist(), strict=True):
            if (place / f"measured_{step}.npz").is_file():
                with np.load(place / f"measured_{step}.npz", allow_pickle=False) as found:
                    yield found["rows"] + start, found["numbers"]

    def records(self, positions: np.ndarray, against: bool) -> tuple[list[str], list[dict[str, Any]]]:
        """Keys and what rules may know of some samples."""
        edges = np.searchsorted(positions, self.starts)
        keys, records = [], []
        for number, place in enumerate(self.places):
            rows = positions[edges[number] : edges[number + 1]] - self.starts[number]
            if len(rows):
                for record in read_part(place / "samples.parquet", columns=list(KNOWN)).take(rows).to_pylist():
                    keys.append(record.pop("key"))
                    records.append(record | {"against": True} if against else record)
        return keys, records


class Verdict:
    """Which samples stay.

    Args:
        rules: In the order of the reviews.
        samples: How many samples each of our shards has.
        work: Folder in which finished steps are kept for a run that goes on.
    """

    def __init__(self, rules: list[VettingRule], samples: list[int], work: Path) -> None:
        """Nothing is known yet; see the class for the arguments."""
        self.rules, self.work = rules, work
        self.starts = np.cumsum([0, *samples])
        self.staying = np.ones(int(self.starts[-1]), bool)
        self.stages: list[Reviewed] = []
        self.resolved: list[tuple[int, pa.Table]] = []  # with the number of the stage
        self.seconds = [0.0] * len(rules)

    @property
    def own(self) -> Reviewed:
        """Our shards as the first stage saw them, which knows every sample."""
        return self.stages[0]

    def take_stage(self, own: Reviewed, others: Reviewed, steps: list[int]) -> None:
        """Take what a stage found, and ask those of its rules that look at the whole data set, one after the other.

        Args:
            own: Reviews of our shards.
            others: Reviews of other data sets.
            steps: Numbers of the stage's rules.
        """
        self.stages.append(own)
        if own is self.own:
            self.staying &= own.column("staying").to_numpy()
            self._take(self._repeated_keys())
        else:
            for start, place in zip(self.starts[:-1].tolist(), own.places, strict=True):
                if place.is_dir():
                    findings = read_part(place / "findings.parquet", ["row", "kept"])
                    self.staying[start + findings["row"].to_numpy()[~findings["kept"].to_numpy()]] = False
        for step in steps:
            rule = self.rules[step]
            if isinstance(rule, DatasetRule):
                path = self.work / f"resolved_{step}.parquet"
                if not path.is_file():
                    begin = time.process_time()
                    table = self._ask(step, rule, others)
                    self.seconds[step] = time.process_time() - begin
                    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
                    pq.write_table(table, temporary)
                    os.replace(temporary, path)
                self._take(read_part(path))

    def _take(self, table: pa.Table) -> None:
        self.staying[table["row"].to_numpy()[~table["kept"].to_numpy()]] = False
        self.resolved.append((len(self.stages) - 1, table))

    def _repeated_keys(self) -> pa.Table:
        """Samples whose key an earlier one has: loaders, ledgers and withdrawals go by keys."""
        positions = np.flatnonzero(self.staying)
        codes = pc.dictionary_encode(self.own.column("key").combine_chunks()).indices.to_numpy(zero_copy_only=False)
        later = np.ones(len(positions), bool)
        later[np.unique(codes[positions], return_index=True)[1]] = False
        told = Finding("key", False, "an earlier sample has the same key")
        return _table([(position, told) for position in positions[later].tolist()], -1, INTAKE)

    def _ask(self, step: int, rule: DatasetRule, others: Reviewed) -> pa.Table:
        positions, foreign = np.flatnonzero(self.staying), np.zeros(0, np.int64)
        if rule.across and others.places:  # those that could be opened, and measured
            foreign = np.concatenate([foreign, *(found for found, _ in others.measured(step))])
        if not len(positions):
            return RESOLVED.empty_table()
        sets = [(others, foreign, True)] if len(foreign) else []
        keys: list[str] = []
        records: list[dict[str, Any]] = []
        for data, chosen, against in [*sets, (self.own, positions, False)]:
            more_keys, more_records = data.records(chosen, against)
            keys, records = keys + more_keys, records + more_records
        measured = self._numbers(step, [(others, foreign), (self.stages[-1], positions)])
        if measured is None or len(measured) != len(keys):
            raise UserError(f"rule {rule.name} has not measured every sample: delete {self.work} and start again")
        findings = rule.resolve(keys, records, measured)
        if len(findings) != len(keys) or any(finding.pixels is not None for finding in findings):
            raise UserError(f"rule {rule.name} gave {len(findings)} answers about {len(keys)} samples, or pixels")
        return _table(list(zip(positions.tolist(), findings[len(foreign) :], strict=True)), step, rule.name)

    def _numbers(self, step: int, chosen: list[tuple[Reviewed, np.ndarray]]) -> np.ndarray | None:
        """What a rule measured of the chosen samples, in a file: embeddings of millions do not fit a memory."""
        total, filled = sum(len(positions) for _, positions in chosen), 0
        numbers: np.ndarray | None = None
        for data, positions in chosen:
            for found, values in data.measured(step) if len(positions) else ():
                wanted = values[np.isin(found, positions, assume_unique=True)]
                if numbers is None:
                    path, shape = self.work / "measured.npy", (total, *values.shape[1:])
                    numbers = np.lib.format.open_memmap(path, "w+", values.dtype, shape)
                numbers[filled : filled + len(wanted)] = wanted
                filled += len(wanted)
        return numbers if filled == total else None

    def kept_rows(self, number: int) -> np.ndarray:
        """Rows of one of our shards that stay."""
        return np.flatnonzero(self.staying[self.starts[number] : self.starts[number + 1]])

    def stage(self, number: int, steps: list[int]) -> Stage:
        """What is known of one of our shards after all stages so far, for the next one, or for writing."""
        records: list[Records] = [{} for _ in self.stages]
        for at, table in self._of_shard(number):
            for row, record in zip(table["row"].to_pylist(), table["record"].to_pylist(), strict=True):
                if record:
                    records[at][row] = records[at].get(row, {}) | json.loads(record)
        places = [stage.places[number] for stage in self.stages]
        return Stage(steps, rows=self.kept_rows(number).tolist(), earlier=places, records=records)

    def _of_shard(self, number: int) -> list[tuple[int, pa.Table]]:
        """What the deciding rules found in one shard, numbered by its rows; with the number of their stage."""
        start, end = self.starts[number : number + 2].tolist()
        parts = []
        for at, table in self.resolved:
            first, last = np.searchsorted(table["row"].to_numpy(), [start, end]).tolist()
            if part := table.slice(first, last - first):
                parts.append((at, part.set_column(0, "row", pc.subtract(part["row"], start))))
        return parts

    def decisions(self, number: int) -> pa.Table:
        """All rows of the ledger about one shard: sample after sample, rule after rule; ``step`` numbers the rules."""
        kept, stage = self.kept_rows(number), self.stage(number, [])
        changes = read_changes(stage)
        samples = read_part(self.own.places[number] / "samples.parquet")
        transforms = [changes[row]["transforms"] if row in changes else "" for row in kept.tolist()]
        final = pa.table([kept, np.full(len(kept), len(self.rules), np.int32)], ["row", "step"])
        for name, column in (
            ("rule", ["kept"] * len(kept)),
            ("value", pa.array(transforms, pa.string())),
            ("kept", [True] * len(kept)),
            ("reason", [""] * len(kept)),
            ("evidence", pa.nulls(len(kept), pa.string())),
        ):
            final = final.append_column(name, column if isinstance(column, pa.Array) else [column])
        found = [read_part(place / "findings.parquet") for place in stage.earlier if place.is_dir()]
        found += [part.drop("record") for _, part in self._of_shard(number)]
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


def count(decisions: pa.Table, rules: int) -> np.ndarray:
    """Asked, dropped and failed, (3, rules + 2), of the opening of samples, each rule, and those that stay."""
    step, kept = decisions["step"].to_numpy() + 1, decisions["kept"].to_numpy()
    failed = pc.fill_null(pc.equal(decisions["value"], ERROR), False).to_numpy() & ~kept
    return np.stack([np.bincount(step[mask], minlength=rules + 2) for mask in (kept | ~kept, ~kept, failed)])
