"""What vetting finds in one shard: samples asked by the rules of a stage, written as a folder, whole or not there.

A stage ends where a rule that looks at the whole data set is followed by one that does not: the latter then sees only
what stays. ``samples.parquet`` (of the first stage) has a row for each sample in order, ``findings.parquet`` one for
each answer, ``changes.parquet`` what the rules changed, ``measured_STEP.npz`` the numbers for the rules that decide
later, ``times.json`` the processor time. The last is the only one in which two runs differ.
"""

import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_tools.vetting.read_samples import MAX_SAMPLE, SampleFault, first_line, known, open_sample
from data_tools.vetting.vetting_rule import DatasetRule, Finding, Sample, VettingRule
from data_tools.work.ledger import SCHEMA, evidence_text
from leam_mm.data.shard_index import ShardFolder, ShardIndex
from leam_mm.errors import UserError

Records = dict[int, dict[str, Any]]
BATCH = 64  # samples that a rule sees at once
ERROR = "error"  # value of a finding of a rule that failed
INTAKE = "sample"  # name of the rule that opens samples
ANSWER = ("rule", "value", "kept", "reason", "evidence")
FINDINGS = pa.schema([("row", pa.int64()), ("step", pa.int32()), *(SCHEMA.field(name) for name in ANSWER)])
SAMPLES = pa.schema(
    [SCHEMA.field(name) for name in SCHEMA.names if name not in (*ANSWER, "stage")] + [("staying", pa.bool_())]
)
TEXT = ("record", "rules", "transforms")
CHANGES = pa.schema([("row", pa.int64()), ("content", pa.binary()), *((name, pa.string()) for name in TEXT)])


@dataclass(frozen=True)
class Stage:
    """What is asked of one shard.

    Args:
        steps: Numbers of the rules.
        against: Whether the shard is of another data set, which only rules that look across are asked about.
        rows: Samples that stayed; None in the first stage, which opens all.
        earlier: Reviews of earlier stages, which hold what they changed.
        records: What the rules that decided at the end of each of them put into the records, by row.
    """

    steps: list[int]
    against: bool = False
    rows: list[int] | None = None
    earlier: list[Path] = field(default_factory=list)
    records: list[Records] = field(default_factory=list)


def split_rules(rules: list[VettingRule]) -> list[list[int]]:
    """Numbers of the rules of each stage."""
    stages: list[list[int]] = [[]]
    for step, rule in enumerate(rules):
        if step and isinstance(rules[step - 1], DatasetRule) and not isinstance(rule, DatasetRule):
            stages.append([])
        stages[-1].append(step)
    return stages


def read_part(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a parquet file of ours; pyarrow's read_table would first load all that it has for data sets, in 0.3 s."""
    with pq.ParquetFile(path) as file:
        return file.read(columns and list(columns))


class Review:
    """Collects what is found in one shard.

    Args:
        rules: All, in the order in which they are asked.
        stage: Which of them are asked, and of which samples.
    """

    def __init__(self, rules: list[VettingRule], stage: Stage) -> None:
        """Nothing is found yet; see the class for the arguments."""
        self.rules, self.stage = rules, stage
        self.samples: list[dict[str, Any]] = []
        self.findings: list[dict[str, Any]] = []
        self.changes: list[dict[str, Any]] = []
        self.measured: dict[int, tuple[list[int], list[np.ndarray]]] = {}
        self.asked, self.seconds = [0] * (len(rules) + 1), [0.0] * (len(rules) + 1)

    def find(self, row: int, step: int, name: str, finding: Finding) -> None:
        """Write down an answer."""
        answer = {"rule": name, "value": finding.value, "kept": finding.kept, "reason": finding.reason}
        self.findings.append({"row": row, "step": step, **answer, "evidence": evidence_text(finding.evidence)})

    def refuse(self, row: int, key: Any, fault: SampleFault) -> None:
        """Write down a sample that no rule can be asked about."""
        self.samples.append({"key": key[:200] if isinstance(key, str) else None, "staying": False})
        self.find(row, -1, INTAKE, Finding(fault.value, False, fault.reason))

    def ask(self, asked: list[tuple[int, Sample]]) -> None:
        """Ask all rules about some samples, numbered by their rows."""
        staying = asked
        changed: dict[int, _Change] = {}
        for step in self.stage.steps:
            rule = self.rules[step]
            if not staying:
                break
            if self.stage.against and not (isinstance(rule, DatasetRule) and rule.across):
                continue
            begin = time.process_time()
            if isinstance(rule, DatasetRule):
                staying = self._measure(step, rule, staying)
            else:
                staying = self._judge(step, rule, staying, changed)
            self.seconds[step] += time.process_time() - begin
        left = {row for row, _ in staying}
        for row, sample in asked:
            if self.stage.rows is None:
                self.samples[row]["staying"] = row in left
            if row in left and row in changed:
                self.changes.append({"row": row, **changed[row].stored(sample)})

    def _judge(
        self, step: int, rule: VettingRule, asked: list[tuple[int, Sample]], changed: dict[int, "_Change"]
    ) -> list[tuple[int, Sample]]:
        staying = []
        for row, sample, finding in self._answers(step, rule, rule.judge, asked):
            self.find(row, step, rule.name, finding)
            if not finding.kept:
                continue
            staying.append((row, sample))
            if finding.record or finding.pixels is not None:
                changed.setdefault(row, _Change()).apply(sample, rule.name, finding)
        return staying

    def _measure(self, step: int, rule: DatasetRule, asked: list[tuple[int, Sample]]) -> list[tuple[int, Sample]]:
        staying = []
        rows, numbers = self.measured.setdefault(step, ([], []))
        for row, sample, answer in self._answers(step, rule, rule.measure, asked):
            if isinstance(answer, Finding):
                self.find(row, step, rule.name, answer)
                continue
            staying.append((row, sample))
            rows.append(row)
            numbers.append(answer)
        return staying

    def _answers(
        self, step: int, rule: VettingRule, question: Callable[[list[Sample]], Any], asked: list[tuple[int, Sample]]
    ) -> Iterator[tuple[int, Sample, Any]]:
        """Answers to a question; where the rule fails for several samples, each is asked about alone."""
        self.asked[step] += len(asked)
        try:
            answers = list(question([sample for _, sample in asked]))
            if len(answers) != len(asked):
                raise UserError(f"rule {rule.name} gave {len(answers)} answers about {len(asked)} samples: mend it")
        except UserError:
            raise
        except Exception as error:  # a stranger's sample may bring any code to any error, and is then not kept
            if len(asked) > 1:
                self.asked[step] -= len(asked)
                for one in asked:
                    yield from self._answers(step, rule, question, [one])
                return
            told = f"the rule could not judge: {type(error).__name__}: {first_line(error)}"
            answers = [Finding(ERROR, False, told)]
        for (row, sample), answer in zip(asked, answers, strict=True):
            yield row, sample, answer

    def write(self, place: Path) -> None:
        """Write all that was found; the folder appears when everything is in it."""
        temporary = place.with_name(f"{place.name}.tmp-{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, rows, schema in (
            ("samples", self.samples, SAMPLES),
            ("findings", self.findings, FINDINGS),
            ("changes", self.changes, CHANGES),
        ):
            if rows or name == "findings":
                pq.write_table(pa.Table.from_pylist(rows, schema), temporary / f"{name}.parquet", compression="zstd")
        for step, (measured, numbers) in self.measured.items():
            if measured:
                np.savez(temporary / f"measured_{step}.npz", rows=np.array(measured), numbers=np.stack(numbers))
        (temporary / "times.json").write_text(json.dumps({"asked": self.asked, "seconds": self.seconds}))
        try:
            os.replace(temporary, place)
        except OSError:  # another process was as fast, and found the same
            shutil.rmtree(temporary)
            if not place.is_dir():
                raise


class _Change:
    """What the rules changed in one sample so far."""

    def __init__(self) -> None:
        self.record: dict[str, Any] = {}
        self.transforms: list[str] = []
        self.rules: list[str] = []
        self.pixels = False

    def apply(self, sample: Sample, name: str, finding: Finding) -> None:
        """Take a finding's change, and show it to the rules that are still to be asked."""
        if finding.pixels is not None:
            pixels = np.ascontiguousarray(finding.pixels)
            if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not finding.transform:
                raise UserError(f"rule {name} gave pixels {pixels.shape} {pixels.dtype} or no transform: mend it")
            pixels.setflags(write=False)
            sample.__dict__["pixels"] = pixels
            sample.__dict__.pop("pdq", None)
            sample.changed = True
            self.pixels = True
            self.transforms.append(finding.transform)
        if finding.pixels is not None or "captions" in finding.record:  # what a keep-list cannot say
            self.rules.append(name)
        sample.record = {**sample.record, **finding.record}
        self.record |= finding.record

    def stored(self, sample: Sample) -> dict[str, Any]:
        """Columns of ``CHANGES``."""
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


def read_changes(stage: Stage) -> dict[int, dict[str, Any]]:
    """What earlier stages changed: ``record``, ``content`` (PNG) or None, ``rules``, ``transforms``, by row."""
    found: dict[int, dict[str, Any]] = {}
    for place, resolved in zip(stage.earlier, stage.records, strict=True):
        path = place / "changes.parquet"
        changes = read_part(path).to_pylist() if path.is_file() else []
        changes = [change | {"record": json.loads(change["record"])} for change in changes]
        for change in [*changes, *({"row": row, "record": record} for row, record in resolved.items())]:
            old = found.setdefault(change["row"], {"record": {}, "content": None, "rules": "", "transforms": ""})
            for name in ("rules", "transforms"):
                old[name] = ";".join(filter(None, (old[name], change.get(name))))
            old["record"] |= change["record"]
            old["content"] = change.get("content") or old["content"]
    return found


def review_shard(folder: ShardFolder, number: int, rules: list[VettingRule], stage: Stage, place: Path) -> None:
    """Ask the rules of a stage about the samples of one shard; a damaged shard is written down, too.

    Args:
        folder: The shards, which strangers may have made.
        number: Of the shard.
        rules: All, in the order in which they are asked.
        stage: Which of them are asked, and of which samples.
        place: Folder to write.
    """
    review = Review(rules, stage)
    begin = time.process_time()
    rows = _opened(folder, number, review) if stage.rows is None else _opened_again(folder, number, stage)
    while batch := list(islice(rows, BATCH)):
        review.asked[-1] = len(review.samples) or review.asked[-1] + len(batch)
        review.seconds[-1] += time.process_time() - begin
        review.ask(batch)
        begin = time.process_time()
    review.asked[-1] = len(review.samples) or review.asked[-1]
    review.seconds[-1] += time.process_time() - begin
    review.write(place)


def _opened(folder: ShardFolder, number: int, review: Review) -> Iterator[tuple[int, Sample]]:
    """Rows and samples that can be judged; the others are refused on the way."""
    entry = folder.shards[number]
    try:
        index, path = _checked(folder, number)
    except (UserError, OSError, ValueError, TypeError, pa.ArrowException) as error:
        for row in range(entry.samples):
            review.refuse(row, None, SampleFault("shard", f"{entry.shard}: {first_line(error)}"))
        return
    with open(path, "rb") as file:
        for row in range(entry.samples):
            try:
                sample = _read(file, index, row)
            except SampleFault as fault:
                review.refuse(row, index.keys[row], fault)
                continue
            review.samples.append(known(sample))
            yield row, sample


def _opened_again(folder: ShardFolder, number: int, stage: Stage) -> Iterator[tuple[int, Sample]]:
    """The samples of a later stage, as the earlier ones left them."""
    changes, index = read_changes(stage), folder.index(number)
    with open(folder.tar(number), "rb") as file:
        for row in stage.rows or ():
            try:
                sample = _read(file, index, row)
            except SampleFault as fault:
                raise UserError(f"{folder.shard_name(number)} changed while it was vetted ({fault.reason})") from None
            change = changes.get(row, {"record": {}, "content": None})
            sample.record = sample.record | change["record"]
            if change["content"] is not None:
                sample.__dict__["pixels"] = np.asarray(Image.open(io.BytesIO(change["content"]), formats=["PNG"]))
                sample.changed = True
            yield row, sample


def _read(file: BinaryIO, index: ShardIndex, row: int) -> Sample:
    size = int(index.size[row])
    if size > MAX_SAMPLE:
        raise SampleFault("bytes", f"has more than {MAX_SAMPLE} bytes")
    file.seek(int(index.offset[row]))
    return open_sample(index.keys[row], file.read(size), index.sha256[row])


def _checked(folder: ShardFolder, number: int) -> tuple[ShardIndex, Path]:
    path, index = folder.tar(number), folder.index(number)
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != folder.shards[number].sha256:
            raise UserError("its sha256 is not the one in the manifest")
    return index, path
