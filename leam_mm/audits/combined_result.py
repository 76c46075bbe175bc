"""The result of an audit of several parts: it passes only if each part passes."""

from collections.abc import Sequence

from leam_mm.audits.audit import AuditResult, Threshold


def combined_result(audit: str, parts: Sequence[AuditResult], maps_to: Sequence[str] = ()) -> AuditResult:
    """Return the number of parts that failed; it passes if every part passed.

    Args:
        audit: Name of the audit.
        parts: Results of its parts, at least one.
        maps_to: Fields of documents that the audit answers.
    """
    names = {verdict: [part.audit.rpartition("/")[2] for part in parts if part.verdict == verdict] for verdict in
             ("fail", "inconclusive", "not_run")}  # fmt: skip
    failed = len(names["fail"])
    open_parts = names["inconclusive"] + names["not_run"]
    undecided = f"not decided: {', '.join(open_parts)}" if open_parts and not failed else ""
    reason = f"failed: {', '.join(names['fail'])}" if failed else ""
    if len(names["not_run"]) == len(parts):
        return AuditResult(
            audit, None, None, None, "count", 0, None, reason="; ".join(part.reason for part in parts),
            maps_to=maps_to, not_run=True,
        )  # fmt: skip
    slices = {part.audit.rpartition("/")[2]: part.verdict for part in parts}
    return AuditResult(
        audit, failed, failed, failed, "failed parts", len(parts), Threshold(most=0), slices, reason,
        undecided=undecided, maps_to=maps_to,
    )  # fmt: skip
