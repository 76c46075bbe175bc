"""The copyright policy of a release (Art. 53(1)(c), Regulation (EU) 2024/1689).

In the order of the Copyright Chapter of the General-Purpose AI Code of Practice of 10 July 2025. A protocol by which
rightsholders reserve their rights counts as used only where the data's records hold such a statement.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leam_mm.documents.document_text import NOT_MEASURED, NOT_STATED, measured, render, stated
from leam_mm.documents.public_summary import answer, trained_on
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.release_facts import ReleaseFacts
from leam_mm.documents.training_summary import RESERVATIONS, recorded_drops

SHOWN = 20  # licences
EXTRACTION = ("extraction", "memor", "copies")  # parts of the names of results


@dataclass(frozen=True)
class Protocol:
    """A form in which rights are reserved.

    Args:
        name: What it is called.
        source: Its specification.
        signs: Parts of the names of evidence that the programs of data_tools store with a sample.
    """

    name: str
    source: str
    signs: tuple[str, ...]


PROTOCOLS = (
    Protocol("robots.txt", "RFC 9309", ("origin: robots.txt",)),
    Protocol(
        "TDM Reservation Protocol",
        "W3C TDMRep Community Group, final report of 2024",
        ("tdmrep.json", "tdm-reservation"),
    ),
    Protocol("Content-Signal", "Content Signals Policy in robots.txt", ("content-signal",)),
    Protocol("Content-Usage", "IETF aipref working group, drafts of 2026", ("content-usage",)),
    Protocol("Really Simple Licensing", "RSL 1.0", (":rsl", "rsl:")),
    Protocol("ai.txt", "Spawning", ("ai.txt",)),
    Protocol("trust.txt", "JournalList", ("trust.txt",)),
    Protocol("X-Robots-Tag and meta robots", "noai, noimageai and others", ("x-robots-tag", "meta:robots")),
    Protocol("C2PA and CAWG training and data mining", "cawg.training-mining 1.1", ("c2pa",)),
    Protocol("IPTC data mining property, XMP", "IPTC Photo Metadata 2023.1, PLUS", ("data-mining", "iptc", "xmp:")),
    Protocol("Opt-out registries", "lists given to the programs", ("registry",)),
)


def evidence_of(protocol: Protocol, consent: Mapping[str, int]) -> int:
    """Return the most samples that one kind of evidence of a protocol was stored with.

    Args:
        protocol: The protocol.
        consent: Samples by kind of evidence, as in statistics.json.
    """
    return max(
        (count for kind, count in consent.items() if any(sign in kind.casefold() for sign in protocol.signs)), default=0
    )


def copyright_view(facts: ReleaseFacts, publisher: PublisherFields, language: str) -> dict[str, Any]:
    """Return everything that the template shows."""
    statistics = facts.content.statistics if facts.content is not None else None
    consent = statistics["consent"] if statistics else None
    counted = facts.content.merkle_roots if facts.content is not None else []
    dropped = recorded_drops(statistics, *RESERVATIONS) if statistics else None
    return {
        "name": facts.name,
        "provider": answer(publisher, "provider_name", language),
        "complaints": answer(publisher, "complaint_address", language),
        "signatory": answer(publisher, "code_of_practice_signatory", language),
        "version": answer(publisher, "version", language),
        "date": stated(publisher.release_date, "release_date"),
        "responsible": answer(publisher, "copyright_responsible", language),
        "bases": list(statistics["legal_basis"].items()) if statistics else [],
        "unsettled": sum(statistics["legal_basis"].get(name, 0) for name in ("unknown", NOT_STATED))
        if statistics
        else 0,
        "licences": list(statistics["licence"].items())[:SHOWN] if statistics else [],
        "piracy": answer(publisher, "infringing_sites", language),
        "protocols": [
            {
                "name": protocol.name,
                "source": protocol.source,
                "samples": NOT_MEASURED if consent is None else evidence_of(protocol, consent),
            }
            for protocol in PROTOCOLS
        ],
        "dropped": list(dropped.items()) if dropped else [],
        "dropped_none": measured(None if dropped is None else "none"),
        "uncounted": [root for root in trained_on(facts) if root not in counted],
        "measures": answer(publisher, "rights_measures", language),
        "extraction": [
            {"name": row["name"], "value": measured(row.get("value"))}
            for row in facts.metrics
            if any(word in str(row["name"]).casefold() for word in EXTRACTION)
        ],
        "deadline": answer(publisher, "complaint_deadline", language),
        "trained_models": answer(publisher, "trained_models_answer", language),
        "withdrawn": statistics["accounting"]["withdrawn"] if statistics else NOT_MEASURED,
    }


def copyright_policy(facts: ReleaseFacts, publisher: PublisherFields, language: str) -> str:
    """Return the copyright policy as Markdown.

    Args:
        facts: What was measured and recorded.
        publisher: What the publisher states.
        language: en or de.
    """
    return render("copyright_policy", language, **copyright_view(facts, publisher, language))
