"""Findings of the vetting rules in one shard, written as a folder that is either complete or absent.

Vetting runs in stages: a stage ends where a ``DatasetRule`` is followed by an ordinary rule, which then sees only the
samples that stay. ``samples.parquet`` (first stage only) has a row for each sample in order, ``findings.parquet`` one
for each finding, ``changes.parquet`` what the rules changed, ``measured_STEP.npz`` the numbers that a ``DatasetRule``
measured, ``times.json`` the processor time. Only the last differs between two runs.
"""

import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_tools.vetting.read_samples import MAX_SAMPLE, SampleFault, ledger_columns, open_sample
from data_tools.vetting.vetting_rule import DatasetRule, Finding, Sample, VettingRule
from data_tools.work.foreign_error import first_line
from data_tools.work.time_limit import TookTooLong
from data_tools.work.workers import begin_sample, runs_alone
from leam_mm.data.image_file import open_image
from leam_mm.data.ledger import SCHEMA, evidence_text
from leam_mm.data.open_shard import OpenShard
from leam_mm.data.parquet_file import own_parquet
from leam_mm.data.shard_index import ShardFolder
from leam_mm.errors import UserError
from leam_mm.files import atomic_folder

Records = dict[int, dict[str, Any]]
BATCH = 64  # samples that a rule sees at once
ERROR = "error"  # value of a finding of a rule that failed
CRASH = SampleFault("crash", "opening or judging it ended two processes")
OPENING = "sample"  # name in the ledger of the check that opens samples, before all rules
ANSWER = ("rule", "value", "kept", "reason", "evidence")
FINDINGS = pa.schema([("row", pa.int64()), ("step", pa.int32()), *(SCHEMA.field(name) for name in ANSWER)])
SAMPLES = pa.schema(
    [SCHEMA.field(name) for name in SCHEMA.names if name not in (*ANSWER, "stage")] + [("staying", pa.bool_())]
)
TEXT = ("record", "rules", "transforms")
CHANGES = pa.schema([("row", pa.int64()), ("content", pa.binary()), *((name, pa.string()) for name in TEXT)])


@dataclass(frozen=True)
class ShardTask:
    """Which rules judge which samples of a shard in one stage.

    Args:
        steps: Numbers of the rules; none if the samples are to be written.
        against: The shard is of another data set, which only rules that look across data sets measure.
        rows: Samples that stayed so far; None in the first stage, which opens all.
        earlier: Folders of the findings of earlier stages, which hold their changes.
        records: For each earlier stage, fields that its ``DatasetRule``s put into the records, by row.
    """

    steps: list[int]
    against: bool = False
    rows: list[int] | None = None
    earlier: list[Path] = field(default_factory=list)
    records: list[Records] = field(default_factory=list)


def split_stages(rules: list[VettingRule]) -> list[list[int]]:
    """Return the numbers of the rules of each stage."""
    stages: list[list[int]] = [[]]
    for step, rule in enumerate(rules):
        if step and isinstance(rules[step - 1], DatasetRule) and not isinstance(rule, DatasetRule):
            stages.append([])
        stages[-1].append(step)
    return stages


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a parquet file of the work folder; pyarrow's read_table would load its dataset module (0.3 s)."""
    with own_parquet(path) as file:
        return file.read(columns and list(columns))


class ShardFindings:
    """Applies the rules of a stage to the samples of one shard, and collects their findings.

    Args:
        rules: All rules, in order.
        task: Which of them judge which samples.
    """

    def __init__(self, rules: list[VettingRule], task: ShardTask) -> None:
        """See the class for the arguments."""
        self.rules, self.task = rules, task
        self.samples: list[dict[str, Any]] = []
        self.findings: list[dict[str, Any]] = []
        self.changes: list[dict[str, Any]] = []
        self.measured: dict[int, tuple[list[int], list[np.ndarray]]] = {}
        self.asked, self.seconds = [0] * (len(rules) + 1), [0.0] * (len(rules) + 1)  # the last is the opening

    def add(self, row: int, step: int, name: str, finding: Finding) -> None:
        """Record a finding."""
        answer = {"rule": name, "value": finding.value, "kept": finding.kept, "reason": finding.reason}
        self.findings.append({"row": row, "step": step, **answer, "evidence": evidence_text(finding.evidence)})

    def refuse(self, row: int, key: Any, fault: SampleFault) -> None:
        """Record a sample that no rule can judge."""
        self.samples.append({"key": key[:200] if isinstance(key, str) else None, "staying": False})
        self.add(row, -1, OPENING, Finding(fault.value, False, fault.reason))

    def judge(self, batch: list[tuple[int, Sample]]) -> None:
        """Apply all rules of the stage to some samples, given with their rows."""
        staying = batch
        changed: dict[int, _Change] = {}
        for step in self.task.steps:
            rule = self.rules[step]
            if not staying:
                break
            if self.task.against and not (isinstance(rule, DatasetRule) and rule.across):
                continue
            begin = time.process_time()
            if isinstance(rule, DatasetRule):
                staying = self._measure(step, rule, staying)
            else:
                staying = self._judge(step, rule, staying, changed)
            self.seconds[step] += time.process_time() - begin
        left = {row for row, _ in staying}
        for row, sample in batch:
            if self.task.rows is None:
                self.samples[row]["staying"] = row in left
            if row in left and row in changed:
                self.changes.append({"row": row, **changed[row].columns(sample)})

    def _judge(
        self, step: int, rule: VettingRule, batch: list[tuple[int, Sample]], changed: dict[int, "_Change"]
    ) -> list[tuple[int, Sample]]:
        staying = []
        for row, sample, finding in self._answers(step, rule, rule.judge, batch):
            self.add(row, step, rule.name, finding)
            if not finding.kept:
                continue
            staying.append((row, sample))
            if finding.record or finding.pixels is not None:
                changed.setdefault(row, _Change()).apply(sample, rule.name, finding)
        return staying

    def _measure(self, step: int, rule: DatasetRule, batch: list[tuple[int, Sample]]) -> list[tuple[int, Sample]]:
        staying = []
        rows, numbers = self.measured.setdefault(step, ([], []))
        for row, sample, answer in self._answers(step, rule, rule.measure, batch):
            if isinstance(answer, Finding):
                self.add(row, step, rule.name, answer)
                continue
            staying.append((row, sample))
            rows.append(row)
            numbers.append(answer)
        return staying

    def _answers(
        self, step: int, rule: VettingRule, method: Callable[[list[Sample]], Any], batch: list[tuple[int, Sample]]
    ) -> Iterator[tuple[int, Sample, Any]]:
        """Call a rule's method for a batch; if it fails, call it for each sample alone."""
        self.asked[step] += len(batch)
        try:
            answers = list(method([sample for _, sample in batch]))
            if len(answers) != len(batch):
                raise UserError(f"rule {rule.name} gave {len(answers)} answers for {len(batch)} samples: fix the rule")
        except UserError:
            raise
        except (
            Exception,
            TookTooLong,
        ) as error:  # an untrusted sample may bring any code to any error; it is then not kept
            if len(batch) > 1:
                self.asked[step] -= len(batch)
                for one in batch:
                    yield from self._answers(step, rule, method, [one])
                return
            reason = f"the rule could not judge: {type(error).__name__}: {first_line(error)}"
            answers = [Finding(ERROR, False, reason)]
        for (row, sample), answer in zip(batch, answers, strict=True):
            yield row, sample, answer

    def write(self, folder: Path) -> None:
        """Write everything; the folder appears when it is complete."""
        with atomic_folder(folder) as temporary:
            for name, rows, schema in (
                ("samples", self.samples, SAMPLES),
                ("findings", self.findings, FINDINGS),
                ("changes", self.changes, CHANGES),
            ):
                if rows or name == "findings":
                    table = pa.Table.from_pylist(rows, schema)
                    pq.write_table(table, temporary / f"{name}.parquet", compression="zstd")
            for step, (measured, numbers) in self.measured.items():
                if measured:
                    np.savez(temporary / f"measured_{step}.npz", rows=np.array(measured), numbers=np.stack(numbers))
            (temporary / "times.json").write_text(json.dumps({"asked": self.asked, "seconds": self.seconds}))


class _Change:
    """What the rules changed in one sample so far."""

    def __init__(self) -> None:
        self.record: dict[str, Any] = {}
        self.transforms: list[str] = []
        self.rules: list[str] = []
        self.pixels = False

    def apply(self, sample: Sample, name: str, finding: Finding) -> None:
        """Apply a finding's change to the sample, so that the following rules see it."""
        if finding.pixels is not None:
            pixels = np.ascontiguousarray(finding.pixels)
            if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not finding.transform:
                raise UserError(
                    f"rule {name} gave pixels {pixels.shape} {pixels.dtype}, transform {finding.transform!r}: return "
                    "(H, W, 3) uint8 and a transform"
                )
            pixels.setflags(write=False)
            sample.__dict__["pixels"] = pixels
            sample.__dict__.pop("pdq", None)
            sample.changed = True
            self.pixels = True
            self.transforms.append(finding.transform)
        if finding.pixels is not None or "captions" in finding.record:  # a keep-list cannot express these
            self.rules.append(name)
        sample.record = {**sample.record, **finding.record}
        self.record |= finding.record

    def columns(self, sample: Sample) -> dict[str, Any]:
        """Return the columns of ``CHANGES``."""
        content = None
        if self.pixels:
            buffer = io.BytesIO()
            Image.fromarray(sample.pixels).save(buffer, "PNG", compress_level=1)  # a later stage may change it again
            content = buffer.getvalue()
            earlier = sample.record.get("transforms")
            self.record["transforms"] = [*(earlier if isinstance(earlier, list) else []), *self.transforms]
            self.record["height"], self.record["width"] = sample.pixels.shape[:2]
        record = json.dumps(self.record, ensure_ascii=False, sort_keys=True)
        texts = {"rules": ";".join(dict.fromkeys(self.rules)), "transforms": ";".join(self.transforms)}
        return {"record": record, "content": content} | texts


def read_changes(task: ShardTask) -> dict[int, dict[str, Any]]:
    """Return the changes of earlier stages by row: ``record``, ``content`` (PNG or None), ``rules``, ``transforms``."""
    found: dict[int, dict[str, Any]] = {}
    for folder, resolved in zip(task.earlier, task.records, strict=True):
        path = folder / "changes.parquet"
        changes = read_table(path).to_pylist() if path.is_file() else []
        changes = [change | {"record": json.loads(change["record"])} for change in changes]
        for change in [*changes, *({"row": row, "record": record} for row, record in resolved.items())]:
            old = found.setdefault(change["row"], {"record": {}, "content": None, "rules": "", "transforms": ""})
            for name in ("rules", "transforms"):
                old[name] = ";".join(filter(None, (old[name], change.get(name))))
            old["record"] |= change["record"]
            old["content"] = change.get("content") or old["content"]
    return found


def vet_shard(folder: ShardFolder, number: int, rules: list[VettingRule], task: ShardTask, output: Path) -> None:
    """Apply the rules of a stage to the samples of one shard; a damaged shard gives findings, too.

    Args:
        folder: The shards, which may be untrusted.
        number: Number of the shard.
        rules: All rules, in order.
        task: Which of them judge which samples.
        output: Folder to write.
    """
    findings = ShardFindings(rules, task)
    begin = time.process_time()
    rows = _open_all(folder, number, findings) if task.rows is None else _open_rest(folder, number, findings)
    while batch := list(islice(rows, 1 if runs_alone() else BATCH)):
        findings.asked[-1] = len(findings.samples) or findings.asked[-1] + len(batch)
        findings.seconds[-1] += time.process_time() - begin
        findings.judge(batch)
        begin = time.process_time()
    findings.asked[-1] = len(findings.samples) or findings.asked[-1]
    findings.seconds[-1] += time.process_time() - begin
    findings.write(output)


def _open_all(folder: ShardFolder, number: int, findings: ShardFindings) -> Iterator[tuple[int, Sample]]:
    """Give the rows and samples that can be judged, and refuse the others."""
    entry = folder.shards[number]
    try:
        if changed := folder.digest_fault(number):
            raise UserError(changed)
        shard = folder.open_shard(number)
    except (UserError, OSError, ValueError, TypeError, pa.ArrowException) as error:
        for row in range(entry.samples):
            findings.refuse(row, None, SampleFault("shard", f"{entry.shard}: {first_line(error)}"))
        return
    with shard:
        for row in range(entry.samples):
            try:
                if not begin_sample(row):
                    raise CRASH
                sample = _read(shard, row)
            except SampleFault as fault:
                findings.refuse(row, shard.keys[row], fault)
                continue
            findings.samples.append(ledger_columns(sample))
            yield row, sample


def _open_rest(folder: ShardFolder, number: int, findings: ShardFindings) -> Iterator[tuple[int, Sample]]:
    """Give the samples of a later stage, as the earlier ones left them."""
    task = findings.task
    changes = read_changes(task)
    with folder.open_shard(number) as shard:
        for row in task.rows or ():
            if not begin_sample(row):
                step = task.steps[0]
                findings.add(row, step, findings.rules[step].name, Finding(ERROR, False, CRASH.reason))
                continue
            try:
                sample = _read(shard, row)
            except SampleFault as fault:
                raise UserError(
                    f"{folder.shard_name(number)} changed during vetting ({fault.reason}): delete the work folder and "
                    "start again"
                ) from None
            change = changes.get(row, {"record": {}, "content": None})
            sample.record = sample.record | change["record"]
            if change["content"] is not None:
                sample.__dict__["pixels"] = np.asarray(open_image(change["content"], ("PNG",)))
                sample.changed = True
            yield row, sample


def _read(shard: OpenShard, row: int) -> Sample:
    if int(shard.index.size[row]) > MAX_SAMPLE:
        raise SampleFault("bytes", f"has more than {MAX_SAMPLE} bytes")
    try:
        raw = shard.raw(row)
        intact = shard.is_intact(row, raw)
    except UserError as error:
        raise SampleFault("tar", first_line(error)) from None
    if not intact:
        raise SampleFault("bytes", "its bytes are not those of the index")
    return open_sample(shard.keys[row], raw)
