"""The index of a release's documents: which duty each one answers, and what is still open in it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from leam_mm.documents.acceptable_use import use_view
from leam_mm.documents.compute_thresholds import compute_statement
from leam_mm.documents.copyright_policy import copyright_view
from leam_mm.documents.data_table import data_rows
from leam_mm.documents.document_text import Open, open_fields, render
from leam_mm.documents.documentation_form import form_view
from leam_mm.documents.openness import included_components, openness_class
from leam_mm.documents.public_summary import summary_view
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.release_facts import ReleaseFacts

View = Callable[[ReleaseFacts, PublisherFields, str], Any]


@dataclass(frozen=True)
class Entry:
    """A document of the index.

    Args:
        key: Its name in the template, which holds its title and its duty.
        path: Relative to the index.
        view: What it shows, for its open fields; None where it has none of its own.
    """

    key: str
    path: str
    view: View | None = None


# Fields that complete the components of the Model Openness Framework.
OPENNESS_FIELDS = (
    *("code_repository", "technical_report", "evaluation_data", "intermediate_checkpoints", "research_paper"),
)
ENTRIES = (
    Entry("public_summary", "public_summary.md", summary_view),
    Entry("documentation_form", "model_documentation_form.md", form_view),
    Entry("copyright_policy", "copyright_policy.md", copyright_view),
    Entry("acceptable_use_policy", "acceptable_use_policy.md", use_view),
    Entry("results", "results.md"),
    Entry("data_table", "data_table.md", lambda facts, publisher, language: data_rows(facts, publisher)),
    Entry("data_table_csv", "../data_table.csv"),
    Entry("ml_bom", "../ml_bom.cdx.json"),
    Entry("croissant", "../croissant.json"),
    Entry("mof", "../mof.yaml"),
)


def document_index(facts: ReleaseFacts, publisher: PublisherFields, language: str) -> str:
    """Return the index as Markdown.

    Args:
        facts: What was measured and recorded.
        publisher: What the publisher states.
        language: en or de.
    """
    compute = compute_statement(facts, publisher, language)
    reached, missing = openness_class(included_components(facts, publisher))
    rows = [_row(entry, facts, publisher, language) for entry in ENTRIES if entry.key != "croissant" or facts.content]
    asked = {field.field for row in rows for field in row["open"] if field.kind == "open" and field.field}
    names = sorted(asked | {name for name in OPENNESS_FIELDS if getattr(publisher, name) is None})
    return render(
        "document_index",
        language,
        name=facts.name,
        rows=rows,
        fields=names,
        reached=reached,
        missing=missing,
        compute=compute,
        generates=facts.generates,
    )


def _row(entry: Entry, facts: ReleaseFacts, publisher: PublisherFields, language: str) -> Mapping[str, Any]:
    found: list[Open] = open_fields(entry.view(facts, publisher, language)) if entry.view is not None else []
    return {
        "key": entry.key,
        "path": entry.path,
        "open": found,
        "asked": sum(field.kind == "open" for field in found),
        "unmeasured": any(field.kind == "not_measured" for field in found),
    }
