"""The acceptable use policy of a release: a template that the publisher has to check.

It holds the prohibited practices of Art. 5 of Regulation (EU) 2024/1689 (AI Act), the bans of abuse material and of
intimate images, and a clause that forbids removing marks of generated images, as the Code of Practice on the
transparency of generated content (10 June 2026) asks for.
"""

from typing import Any

from leam_mm.documents.document_text import NOT_APPLICABLE, Open, render, stated
from leam_mm.documents.public_summary import answer
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.release_facts import ReleaseFacts


def use_view(facts: ReleaseFacts, publisher: PublisherFields, language: str) -> dict[str, Any]:
    """Return everything that the template shows."""
    intended, unintended = (publisher.text(name, language) for name in ("intended_uses", "out_of_scope_uses"))
    return {
        "name": facts.name,
        "generates": facts.generates,
        "licence": facts.licence,
        "provider": answer(publisher, "provider_name", language),
        "contact": answer(publisher, "policy_contact", language),
        "version": answer(publisher, "version", language),
        "date": stated(publisher.release_date, "release_date"),
        "intended": intended,
        "intended_open": NOT_APPLICABLE if intended else Open("open", "intended_uses"),
        "unintended": unintended,
        "unintended_open": NOT_APPLICABLE if unintended else Open("open", "out_of_scope_uses"),
    }


def acceptable_use_policy(facts: ReleaseFacts, publisher: PublisherFields, language: str) -> str:
    """Return the acceptable use policy as Markdown.

    Args:
        facts: What was measured and recorded.
        publisher: What the publisher states.
        language: en or de.
    """
    return render("acceptable_use_policy", language, **use_view(facts, publisher, language))
