"""Compare the results of an audit with the verdicts that a control expects."""

from collections.abc import Mapping, Sequence

from leam_mm.audits.audit import AuditResult, Verdict
from leam_mm.controls.control import Outcome


def judged(results: Sequence[AuditResult], expected: Mapping[str, Verdict]) -> Outcome:
    """Return the verdicts that were found, and whether they are the expected ones.

    Args:
        results: Results of the audit.
        expected: Verdict by name of a result; a name that is missing counts as wrong, others are ignored.
    """
    found = {result.audit: result for result in results}
    words = []
    for name in expected:
        result = found.get(name)
        value = "" if result is None or result.value is None else f" ({result.value:.4g})"
        words.append(f"{name} {'is missing' if result is None else result.verdict + value}")
    right = all(name in found and found[name].verdict == verdict for name, verdict in expected.items())
    return Outcome(", ".join(words), right)
