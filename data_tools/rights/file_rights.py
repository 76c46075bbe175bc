"""Rights in the bytes of a picture itself: Content Credentials and embedded metadata, and the vetting rule that asks.

Only the original bytes can tell: a picture that was encoded again has lost both. So download/image_repair_pool.py asks
while it still has them, and the rule here serves shards whose pictures are stored as they came.
"""

import hashlib

from data_tools.rights.iptc_rights import metadata_signals
from data_tools.rights.legal_basis import LegalBasis
from data_tools.rights.reservations import Signal, decide
from data_tools.rights.training_mining import mining_signals
from data_tools.vetting.vetting_rule import Finding, Sample, VettingRule


def rights_in_file(raw: bytes) -> list[Signal]:
    """All that a picture's own bytes say about rights; ``reservations.decide`` says which of it forbids.

    Args:
        raw: The file as it was fetched.
    """
    return mining_signals(raw) + metadata_signals(raw)


class FileRights(VettingRule):
    """Drops pictures whose own bytes reserve their rights, where the sample's legal basis honours reservations.

    Args:
        default_basis: For samples that name none: the one that honours every reservation.
    """

    name = "file_rights"

    def __init__(self, default_basis: LegalBasis = LegalBasis.art4_general) -> None:
        """Keep the setting."""
        self.default_basis = default_basis

    def judge(self, samples: list[Sample]) -> list[Finding]:
        """Read each file as it is stored."""
        return [self._judge(sample) for sample in samples]

    def _judge(self, sample: Sample) -> Finding:
        signals = rights_in_file(sample.content)
        evidence: dict[str, object] = {"signals": [[signal.kind, signal.value, signal.reserved] for signal in signals]}
        evidence = evidence if signals else {}
        if hashlib.sha256(sample.content).hexdigest() != sample.record.get("sha256"):
            evidence["bytes"] = "encoded again: what the original said was asked when it was fetched"
        basis = LegalBasis.of(sample.record.get("legal_basis"), self.default_basis)
        if forbids := decide(signals, basis):
            return Finding(forbids.kind, False, f"rights reserved in the file: {forbids.value}"[:300], evidence)
        return Finding(str(len(signals)), evidence=evidence)
