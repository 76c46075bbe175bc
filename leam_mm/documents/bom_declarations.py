"""Audits as declarations of the bill of materials: a claim with its evidence, and how far the release conforms.

Specification: cyclonedx.org/schema/bom-1.7.schema.json, ``declarations`` and ``definitions`` (CycloneDX Attestations).
The publisher's own program ran the audits, so the assessor is no third party.
"""

from typing import Any

from leam_mm.documents.audits import AuditState, audit_states, exception_reason
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.release_facts import ReleaseFacts

ASSESSOR, STANDARD = "assessor", "standard:audits"
SCORES = {"passed": 1.0, "failed": 0.0}  # an audit that did not decide has no score


def declarations(facts: ReleaseFacts, publisher: PublisherFields, target: str) -> dict[str, Any]:
    """Return the entries ``definitions`` and ``declarations``.

    Args:
        facts: What was measured and recorded.
        publisher: Its reasons for publishing in spite of an audit are the rationale.
        target: Reference of the component that the claims are about.
    """
    states = audit_states(facts)
    requirements = [
        {"bom-ref": f"requirement:{state.name}", "identifier": state.name, "title": f"{state.name} passes"}
        for state in states
    ]
    ran = [state for state in states if state.verdict != "missing"]
    return {
        "definitions": {"standards": [{"bom-ref": STANDARD, "name": "leam_mm audits", "requirements": requirements}]},
        "declarations": {
            "assessors": [{"bom-ref": ASSESSOR, "thirdParty": False}],
            "attestations": [
                {
                    "summary": "audits of the release by the program that built it",
                    "assessor": ASSESSOR,
                    "map": [_conformance(state, publisher) for state in states],
                }
            ],
            "claims": [_claim(state, target) for state in ran],
            "evidence": [_evidence(state) for state in ran],
        },
    }


def _conformance(state: AuditState, publisher: PublisherFields) -> dict[str, Any]:
    reason = exception_reason(state.name, publisher.audit_exceptions or {})
    rationale = f"{state.verdict}; published because: {reason}" if reason else state.verdict
    side = "claims" if state.verdict == "passed" else "counterClaims"
    return {
        "requirement": f"requirement:{state.name}",
        side: [f"claim:{state.name}"] if state.verdict != "missing" else None,
        "conformance": {"score": SCORES.get(state.verdict), "rationale": rationale},
    }


def _claim(state: AuditState, target: str) -> dict[str, Any]:
    side = "evidence" if state.verdict == "passed" else "counterEvidence"
    return {
        "bom-ref": f"claim:{state.name}",
        "target": target,
        "predicate": f"{state.name}: {state.verdict}",
        side: [f"evidence:{state.name}"],
    }


def _evidence(state: AuditState) -> dict[str, Any]:
    row = state.metric or {}
    value = "not measured" if row.get("value") is None else f"{row['value']:.6g} {row.get('unit') or ''}".strip()
    interval = "" if row.get("low") is None or row.get("high") is None else f" ({row['low']:.6g} to {row['high']:.6g})"
    return {
        "bom-ref": f"evidence:{state.name}",
        "propertyName": state.name,
        "description": f"{value}{interval}, {row.get('samples') or 0} samples; line {state.name} of results.jsonl",
    }
