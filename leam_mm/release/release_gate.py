"""The gate of ``build``: no release whose audits failed or are missing without a reason, or whose fields contradict."""

import logging

from leam_mm.documents.audits import check_gate
from leam_mm.documents.fact_rules import fact_contradictions
from leam_mm.documents.model_card import recognition
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.publisher_rules import publisher_contradictions
from leam_mm.documents.release_facts import ReleaseFacts
from leam_mm.errors import UserError

log = logging.getLogger(__name__)
SHOWN = 3  # contradictions in the message


def check_release(facts: ReleaseFacts, publisher: PublisherFields) -> None:
    """Refuse a release that contradicts itself, or whose audits the gate does not pass; say what a fine-tuning taught.

    Args:
        facts: What was measured and recorded.
        publisher: What the publisher states.

    Raises:
        UserError: One line with what contradicts, or with the audits and what to write.
    """
    found = [*publisher_contradictions(facts, publisher), *fact_contradictions(facts)]
    if found:
        rest = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UserError(f"the release contradicts itself: {'; '.join(map(str, found[:SHOWN]))}{rest}: correct them")
    check_gate(facts, publisher)
    if taught := recognition(facts, "en"):
        log.warning("%s", taught)
