"""Run audits one after the other; each one's results are written before the next starts."""

import logging
import time
from collections.abc import Callable, Sequence

from leam_mm.audits.audit import Audit, AuditContext, AuditResult, NotRun
from leam_mm.evaluators.results import append_results, evidence

log = logging.getLogger(__name__)


def run_audits(
    audits: Sequence[Audit], context: AuditContext, progress: Callable[[str], None] = log.info
) -> list[AuditResult]:
    """Run the audits and append their results to the output folder's results.jsonl.

    An audit whose input is missing gives one result with the verdict `not_run`.

    Args:
        audits: The audits.
        context: What they may use.
        progress: Called with one line for each audit that starts.
    """
    found: list[AuditResult] = []
    for number, audit in enumerate(audits, start=1):
        progress(f"{number}/{len(audits)} {audit.name}")
        start = time.monotonic()
        context.used.clear()
        try:
            results = audit.run(context)
        except NotRun as error:
            results = [AuditResult(audit.name, None, None, None, "", 0, None, reason=str(error), not_run=True)]
        append_results(context.output, results, evidence(context, audit, time.monotonic() - start))
        found += results
    return found
