"""Result of one check of a cluster: what was found, what was expected, the verdict, and the fix."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from leam_mm.json_text import parse_json
from leam_mm.planning.fact import Fact

Verdict = Literal["pass", "warn", "fail", "not run"]
WORST_FIRST: tuple[Verdict, ...] = ("fail", "warn", "not run", "pass")


@dataclass(frozen=True)
class CheckResult:
    """Result of one check on one rank.

    Args:
        name: Name of the checked property, such as ``cpu affinity``.
        value: What was found; None if nothing was measured.
        unit: Unit of the value, or "".
        expected: What the value is compared with, in words; "" if nothing is known.
        verdict: ``pass``, ``warn``, ``fail`` or ``not run``.
        reason: Why the verdict is not ``pass``, or a note on the value.
        fix: What to do, or "".
        data: Further values for the JSON file and for comparisons between ranks.
    """

    name: str
    value: float | int | str | None
    unit: str = ""
    expected: str = ""
    verdict: Verdict = "pass"
    reason: str = ""
    fix: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


def not_run(name: str, reason: str, fix: str = "") -> CheckResult:
    """Return the result of a check that was not run."""
    return CheckResult(name, None, verdict="not run", reason=reason, fix=fix)


def expected(fact: Fact, unit: str = "", before: str = "") -> str:
    """Return what a profile expects with its source, or "" if nobody knows it."""
    value = {True: "yes", False: "no"}[fact.value] if isinstance(fact.value, bool) else str(fact.value)
    words = [before, value, unit]
    return " ".join(word for word in words if word) + f" ({fact.source}, {fact.date})" if fact.known else ""


def worst(results: Iterable[CheckResult]) -> Verdict:
    """Return the worst verdict, or ``pass`` if there is no result."""
    found = {result.verdict for result in results}
    return next((verdict for verdict in WORST_FIRST if verdict in found), "pass")


def results_to_json(results: Iterable[CheckResult]) -> str:
    """Return results as a JSON list in one line."""
    return json.dumps([asdict(result) for result in results])


def results_from_json(text: str | bytes) -> list[CheckResult]:
    """Return the results that ``results_to_json`` wrote."""
    return [CheckResult(**result) for result in parse_json(text)]
