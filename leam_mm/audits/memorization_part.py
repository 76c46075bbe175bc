"""Base class of the parts of the memorization audit."""

from leam_mm.audits.audit import AuditContext, AuditResult


class MemorizationPart:
    """One test of whether a generator returns training images; see ``Audit`` for its rules.

    Attributes:
        name: Name of the result, `memorization/...`.
    """

    name: str = ""

    def measure(self, context: AuditContext) -> AuditResult:
        """Measure and compare with the threshold.

        Raises:
            NotRun: An input is missing.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define measure")
