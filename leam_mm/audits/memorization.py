"""Memorization: whether a generator returns images of its training data.

- class_path: leam_mm.audits.memorization.Memorization
  init_args:
    parts:
    - class_path: leam_mm.audits.near_copies.NearCopies
    - class_path: leam_mm.audits.extraction.Extraction
    - class_path: leam_mm.audits.first_step_signal.FirstStepSignal
    - class_path: leam_mm.audits.canaries.Canaries
      init_args: {canaries: runs/canaries/canaries}
"""

from leam_mm.audits.audit import Audit, AuditContext, AuditResult, NotRun
from leam_mm.audits.audited_samples import refuse_overlap
from leam_mm.audits.combined_result import combined_result
from leam_mm.audits.memorization_part import MemorizationPart
from leam_mm.errors import UserError

MAPS_TO = ("GPAI Code of Practice, Copyright Chapter, Measure 1.4",)


class Memorization(Audit):
    """Runs several tests of memorization; the audit passes if every one of them passes.

    Args:
        parts: The tests; see the files named in memorization.py.
    """

    name = "memorization"

    def __init__(self, parts: list[MemorizationPart]) -> None:
        """See the class for the arguments."""
        if not parts:
            raise UserError("Memorization: list at least one test under parts, such as leam_mm.audits.near_copies")
        self.parts = parts

    def run(self, context: AuditContext) -> list[AuditResult]:
        """Measure each part; one that lacks an input is `not_run`."""
        context.require("generator")
        if context.shards is not None and context.held_out is not None:
            refuse_overlap(context)
        results = []
        for part in self.parts:
            try:
                results.append(part.measure(context))
            except NotRun as error:
                results.append(AuditResult(part.name, None, None, None, "", 0, None, reason=str(error), not_run=True))
        return [combined_result(self.name, results, MAPS_TO), *results]
