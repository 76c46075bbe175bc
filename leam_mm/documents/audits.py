"""Audits of a release: what the results say of them, and the gate that refuses a release without them.

An audit is a line of results.jsonl whose name begins with ``audit/`` and that has ``passed``: true, false, or null
where the samples do not decide. One whose ``verdict`` is ``not_run`` is missing. Other fields are those of every
result: value, interval, unit, samples, slices, note.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leam_mm.documents.expected_audits import expected_audits
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.release_facts import ReleaseFacts
from leam_mm.errors import UserError
from leam_mm.report.report_words import audit_title

log = logging.getLogger(__name__)
PREFIX = "audit/"
VERDICTS = {  # English and German
    "passed": ("passed", "bestanden"),
    "failed": ("failed", "nicht bestanden"),
    "inconclusive": ("inconclusive", "nicht entschieden"),
    "missing": ("not run", "nicht durchgeführt"),
}
PUBLISHABLE = ("passed",)


@dataclass(frozen=True)
class AuditState:
    """An audit as the results show it.

    Args:
        name: Its name, which begins with ``audit/``.
        verdict: passed, failed, inconclusive or missing.
        metric: Its line of the results; None if it is missing.
    """

    name: str
    verdict: str
    metric: Mapping[str, Any] | None = None


def audit_states(facts: ReleaseFacts) -> list[AuditState]:
    """Return every expected audit and every other one in the results.

    A name such as ``audit/memorization/near_copies`` belongs to the expected audit ``audit/memorization``.
    """
    lines = {str(row["name"]): row for row in facts.metrics if str(row["name"]).startswith(PREFIX)}
    found = [AuditState(name, _verdict(row), row) for name, row in lines.items()]
    missing = [
        AuditState(name, "missing") for name in expected_audits(facts.embeds, facts.generates)
        if not any(line == name or line.startswith(f"{name}/") for line in lines)
    ]  # fmt: skip
    return [*found, *missing]


def _verdict(row: Mapping[str, Any]) -> str:
    if row.get("verdict") == "not_run":
        return "missing"
    return {True: "passed", False: "failed"}.get(row.get("passed"), "inconclusive")  # type: ignore[arg-type]


def check_gate(facts: ReleaseFacts, publisher: PublisherFields) -> None:
    """Refuse a release whose audits failed or are missing, unless the publisher gives the reason.

    Raises:
        UserError: An audit has no reason, or a reason names an audit that is not known.
    """
    states, reasons = audit_states(facts), publisher.audit_exceptions or {}
    without = [
        state for state in states if state.verdict not in PUBLISHABLE and not exception_reason(state.name, reasons)
    ]
    if without:
        listed = ", ".join(f"{state.name} ({state.verdict})" for state in without)
        lines = "; ".join(f"{state.name}: REASON" for state in without[:2]) + ("; ..." if len(without) > 2 else "")
        raise UserError(
            f"the release is refused by its audits: {listed}: add the results.jsonl of evaluate.py audit to --results, "
            f"or write the reason of each into audit_exceptions of release.yaml ({lines}), which the model card shows"
        )
    known = {state.name for state in states} | set(expected_audits(embeds=True, generates=True))
    for name in reasons:
        if name not in known:
            raise UserError(
                f"audit_exceptions.{name} of release.yaml names no audit: use one of {', '.join(sorted(known))}"
            )
        verdicts = {state.verdict for state in states if state.name == name or state.name.startswith(f"{name}/")}
        if verdicts and verdicts <= set(PUBLISHABLE):  # verdicts differ between machines: one has an energy counter
            log.warning(
                "audit_exceptions.%s of release.yaml excuses an audit that passed; the card does not show it", name
            )


def exception_reason(name: str, reasons: Mapping[str, str]) -> str:
    """Return the reason for an audit, or for the one that it belongs to; empty without one."""
    return next((text for given, text in reasons.items() if name == given or name.startswith(f"{given}/")), "")


def audit_rows(facts: ReleaseFacts, publisher: PublisherFields, language: str) -> list[list[str]]:
    """Return the rows of the card: name, verdict and reason for publishing."""
    reasons = publisher.audit_exceptions or {}
    return [
        [_title(state.name, language), VERDICTS[state.verdict][language == "de"],
         exception_reason(state.name, reasons) if state.verdict not in PUBLISHABLE else ""]
        for state in audit_states(facts)
    ]  # fmt: skip


def _title(name: str, language: str) -> str:
    """Return the name of an audit for readers."""
    return audit_title(name.removeprefix(PREFIX), language)
