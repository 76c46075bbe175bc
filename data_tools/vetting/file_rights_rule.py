"""Vetting rule for rights that the stored image file itself states (data_tools/rights/file_rights.py)."""

from data_tools.rights.file_rights import rights_in_file
from data_tools.rights.reservations import decide
from data_tools.vetting.vetting_rule import Finding, Sample, VettingRule
from leam_mm.data.legal_basis import LegalBasis
from leam_mm.files import bytes_sha256


class FileRights(VettingRule):
    """Drops images whose own bytes reserve rights, where the sample's legal basis honours reservations.

    Args:
        default_basis: Basis of samples that name none: by default the one that honours every reservation.
    """

    name = "file_rights"

    def __init__(self, default_basis: LegalBasis = LegalBasis.art4_general) -> None:
        """See the class for the arguments."""
        self.default_basis = default_basis

    def judge(self, samples: list[Sample]) -> list[Finding]:
        """Read each file as it is stored."""
        return [self._judge(sample) for sample in samples]

    def _judge(self, sample: Sample) -> Finding:
        signals = rights_in_file(sample.content)
        evidence: dict[str, object] = {}
        if signals:
            evidence["signals"] = [[signal.kind, signal.value, signal.reserved] for signal in signals]
        if bytes_sha256(sample.content) != sample.record.get("sha256"):
            evidence["bytes"] = "encoded again: what the original said was asked when it was fetched"
        basis = LegalBasis.of(sample.record.get("legal_basis"), self.default_basis)
        if forbids := decide(signals, basis):
            return Finding(forbids.kind, False, f"rights reserved in the file: {forbids.value}"[:300], evidence)
        return Finding(str(len(signals)), evidence=evidence)
