"""results.md: every result of a release with its interval, samples and remark; the card has one line for each test."""

from leam_mm.documents.document_text import render
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.release_facts import ReleaseFacts
from leam_mm.documents.result_summary import full_tables, other_rows


def results_document(facts: ReleaseFacts, publisher: PublisherFields, language: str) -> str:
    """Return the document as Markdown.

    Args:
        facts: What was measured and recorded.
        publisher: What the publisher states; nothing of it is shown.
        language: en or de.
    """
    others = other_rows(facts.metrics, language)
    title = "Metrik" if language == "de" else "metric"
    tables = [*full_tables(facts.metrics, language), *([(title, others)] if others else [])]
    return render("results", language, name=facts.name, tables=tables)
