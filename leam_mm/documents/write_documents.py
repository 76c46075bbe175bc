"""All documents of a release, written from what was measured and from the publisher's fields."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from leam_mm.documents.acceptable_use import acceptable_use_policy
from leam_mm.documents.content_file import CONTENT, training_content_file
from leam_mm.documents.copyright_policy import copyright_policy
from leam_mm.documents.data_table import data_table, data_table_csv
from leam_mm.documents.document_index import document_index
from leam_mm.documents.documentation_form import documentation_form
from leam_mm.documents.ml_bom import ml_bom
from leam_mm.documents.model_card import model_card
from leam_mm.documents.openness import mof_file
from leam_mm.documents.public_summary import public_summary
from leam_mm.documents.publisher import DOCUMENT_LANGUAGES, PublisherFields
from leam_mm.documents.publisher_file import dump_publisher
from leam_mm.documents.release_croissant import release_croissant
from leam_mm.documents.release_facts import ReleaseFacts
from leam_mm.documents.results_document import results_document
from leam_mm.files import write_text

Document = Callable[[ReleaseFacts, PublisherFields, str], str]
CARD, FIELDS = "README.md", "configs/release.yaml"
# Documents in several languages: name of the file in documents/LANGUAGE/ to the function that writes it.
BY_LANGUAGE: Mapping[str, Document] = {
    "README.md": document_index,
    "public_summary.md": public_summary,
    "model_documentation_form.md": documentation_form,
    "copyright_policy.md": copyright_policy,
    "acceptable_use_policy.md": acceptable_use_policy,
    "data_table.md": data_table,
    "results.md": results_document,
}
# Documents in one form: path in the release to the function that writes it; an empty text is not written.
MACHINE_READABLE: Mapping[str, Document] = {
    "documents/data_table.csv": data_table_csv,
    "documents/ml_bom.cdx.json": ml_bom,
    "documents/croissant.json": release_croissant,
    "documents/mof.yaml": mof_file,
    CONTENT: training_content_file,
}


def rendered_documents(
    facts: ReleaseFacts, publisher: PublisherFields, left_out: Collection[str] = ()
) -> dict[str, str]:
    """Return the text of each document by its path in the release.

    Args:
        facts: What was measured and recorded.
        publisher: What the publisher states.
        left_out: Paths of machine-readable documents that are not written.
    """
    found = {
        CARD: model_card(facts, publisher, "en"),
        "documents/de/model_card.md": model_card(facts, publisher, "de", metadata=False),
    }
    for language in DOCUMENT_LANGUAGES:
        for name, document in BY_LANGUAGE.items():
            found[f"documents/{language}/{name}"] = document(facts, publisher, language)
    for path, document in MACHINE_READABLE.items():
        if path not in left_out and (text := document(facts, publisher, "en")):
            found[path] = text
    return found


def write_documents(facts: ReleaseFacts, publisher: PublisherFields, folder: Path) -> None:
    """Write the documents of a release.

    Args:
        facts: What was measured and recorded.
        publisher: What the publisher states.
        folder: The release folder.
    """
    for path, text in rendered_documents(facts, publisher).items():
        write_text(folder / path, text)
    write_text(folder / FIELDS, dump_publisher(publisher))
