"""All documents of a release, written from what was measured and from the publisher's fields."""

from collections.abc import Callable, Mapping
from pathlib import Path

from leam_mm.documents.model_card import model_card
from leam_mm.documents.publisher import DOCUMENT_LANGUAGES, PublisherFields
from leam_mm.documents.publisher_file import dump_publisher
from leam_mm.documents.release_facts import ReleaseFacts
from leam_mm.files import write_text

Document = Callable[[ReleaseFacts, PublisherFields, str], str]
CARD, FIELDS = "README.md", "configs/release.yaml"
# Documents in several languages: name of the file in documents/LANGUAGE/ to the function that writes it.
BY_LANGUAGE: Mapping[str, Document] = {}
# Documents in one form: path in the release to the function that writes it.
MACHINE_READABLE: Mapping[str, Document] = {}


def rendered_documents(facts: ReleaseFacts, publisher: PublisherFields) -> dict[str, str]:
    """Return the text of each document by its path in the release."""
    found = {CARD: model_card(facts, publisher, "en")}
    for language in DOCUMENT_LANGUAGES:
        for name, document in BY_LANGUAGE.items():
            found[f"documents/{language}/{name}"] = document(facts, publisher, language)
    for path, document in MACHINE_READABLE.items():
        found[path] = document(facts, publisher, "en")
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
