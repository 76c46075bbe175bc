"""Base class of audits: a criterion with a threshold, measured with an interval, and a verdict."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from leam_mm.evaluators.evaluator import EvaluationContext, Metric

PREFIX = "audit/"
Verdict = Literal["pass", "fail", "inconclusive", "not_run"]
PASSED: dict[str, bool | None] = {"pass": True, "fail": False, "inconclusive": None, "not_run": None}


class NotRun(Exception):
    """An audit lacks an input; the message says which one, and how to give it."""


@dataclass(frozen=True)
class Threshold:
    """Range in which a value passes.

    Args:
        least: Smallest value that passes, or None.
        most: Largest value that passes, or None.
    """

    least: float | None = None
    most: float | None = None

    def verdict(self, low: float, high: float) -> Verdict:
        """Return pass if the whole interval is inside, fail if all of it is outside, otherwise inconclusive.

        Args:
            low: Lower end of the interval; -inf or NaN where it is not known.
            high: Upper end; inf or NaN where it is not known.
        """
        least = float("-inf") if self.least is None else self.least
        most = float("inf") if self.most is None else self.most
        if low >= least and high <= most:
            return "pass"
        return "fail" if high < least or low > most else "inconclusive"


@dataclass(frozen=True)
class AuditResult:
    """One audited number and its verdict.

    Args:
        audit: Name such as `language_parity`, or `memorization/near_copies` for a part of one.
        value: The number in `unit`, or None if it was not measured; `reason` then says why.
        low: Lower end of the 95 % interval; equal to `value` for an exact count.
        high: Upper end.
        unit: `fraction`, `ratio`, `count`, `kWh` and so on.
        samples: Number of samples.
        threshold: What passes; None for a number without a criterion, which is inconclusive.
        slices: Parts by name: {"value", "low", "high", "samples"} each, or other values that JSON can hold.
        reason: Why the audit was not run or is inconclusive, or what a reader must know; one sentence or more.
        fewest: Smallest number of samples that may decide; below it the verdict is inconclusive.
        undecided: Reason for which the verdict is inconclusive whatever the numbers, for example a failed guard.
        maps_to: Fields of documents that the number answers, such as `AI Act Annex XI 1(d)`.
        not_run: Whether the audit did not run.
    """

    audit: str
    value: float | None
    low: float | None
    high: float | None
    unit: str
    samples: int
    threshold: Threshold | None
    slices: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    fewest: int = 0
    undecided: str = ""
    maps_to: Sequence[str] = ()
    not_run: bool = False

    @property
    def verdict(self) -> Verdict:
        """Pass only if the whole interval meets the threshold, fail only if all of it misses it."""
        if self.not_run:
            return "not_run"
        if self.undecided or self.threshold is None or self.samples < self.fewest:
            return "inconclusive"
        if self.value is None or not math.isfinite(self.value):  # not finite is not measured
            return "inconclusive"
        low = float("-inf") if self.low is None else self.low
        high = float("inf") if self.high is None else self.high
        return self.threshold.verdict(low, high)

    def as_dict(self) -> dict[str, Any]:
        """Return a line of results.jsonl: a metric named `audit/...` with verdict, threshold and `passed`."""
        few = f"{self.samples} samples, at least {self.fewest} are needed" if self.samples < self.fewest else ""
        note = "; ".join(part for part in (self.undecided, few if not self.not_run else "", self.reason) if part)
        metric = Metric(
            PREFIX + self.audit, self.value, self.low, self.high, self.unit, self.samples, self.slices, note
        )
        return metric.as_dict() | {
            "verdict": self.verdict,
            "passed": PASSED[self.verdict],
            "threshold": asdict(self.threshold) if self.threshold else None,
            "maps_to": list(self.maps_to),
        }


@dataclass
class AuditContext(EvaluationContext):
    """What audits may use; a missing input makes an audit `not_run`.

    Args:
        shards: Shard folder of the training data.
        held_out: Shard folder of the same source that no model under audit was trained on.
        release: Release folder.
        results: results.jsonl of evaluate.py, or its folder.
    """

    shards: Path | None = None
    held_out: Path | None = None
    release: Path | None = None
    results: Path | None = None

    def require_clip(self) -> Any:
        """Return the encoder; see EvaluationContext."""
        self.require("clip")
        return super().require_clip()

    def require_generator(self) -> Any:
        """Return the generator; see EvaluationContext."""
        self.require("generator")
        return super().require_generator()

    def require(self, name: Literal["clip", "generator", "codec", "shards", "held_out", "release", "results"]) -> Any:
        """Return an input.

        Raises:
            NotRun: It was not given.
        """
        found = getattr(self, name)
        if found is None:
            raise NotRun(f"no {name.replace('_', ' ')} was given: add --{name}")
        return found


class Audit:
    """Base class: an audit holds its settings and turns a context into results.

    A subclass takes typed settings in its constructor (they are its YAML), sets `name`, and opens files and networks
    only in `run`. The attributes of an instance are written to results.jsonl as its settings.
    """

    name: str = ""

    def run(self, context: AuditContext) -> list[AuditResult]:
        """Measure and compare with the threshold.

        Args:
            context: The models, data, release and results under audit.

        Returns:
            At least one result; the first one is the audit's own.

        Raises:
            NotRun: An input is missing.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define run")
