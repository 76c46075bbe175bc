"""What is missing in a release and what contradicts: documents, facts, results, configs and the publisher's fields."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leam_mm.documents.changed_statements import Contradiction, changed_statements
from leam_mm.documents.fact_rules import fact_contradictions
from leam_mm.documents.facts_file import EVIDENCE_FILE, documents_sha256, read_facts, recorded_documents_sha256
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.publisher_file import read_publisher
from leam_mm.documents.publisher_rules import publisher_contradictions
from leam_mm.documents.release_facts import ReleaseFacts
from leam_mm.documents.write_documents import FIELDS, rendered_documents
from leam_mm.errors import UserError
from leam_mm.json_text import parse_object

log = logging.getLogger(__name__)
MAX_DOCUMENT = 64 << 20  # bytes
CROISSANT = "documents/croissant.json"
LICENCE, LICENCE_TITLES = "LICENSE", {"Apache-2.0": "Apache License", "MIT": "MIT License"}
# Fields that a release should not leave open, with the document that asks for them.
WANTED = {
    "provider_name": "public summary 1.1",
    "contact_email": "public summary 1.1, model card",
    "complaint_address": "copyright policy",
    "version": "all documents",
    "release_date": "model card, Model Documentation Form",
    "intended_uses": "model card, Model Documentation Form",
}
SIZES = (  # file, keys of an entry, and the fact that it repeats
    ("open_clip_config.json", ("model_cfg", "vision_cfg", "image_size"), "image_size"),
    ("open_clip_config.json", ("model_cfg", "text_cfg", "context_length"), "context_length"),
    ("config.json", ("vision_config", "image_size"), "image_size"),
    ("config.json", ("text_config", "max_position_embeddings"), "context_length"),
)


def missing_fields(publisher: PublisherFields) -> list[str]:
    """Return one line for each field that the documents ask for and that is open."""
    return [f"{name} is open: {asked} of the release asks for it" for name, asked in WANTED.items()
            if getattr(publisher, name) is None]  # fmt: skip


def contradictions(folder: Path) -> list[Contradiction]:
    """Compare everything that a release folder states.

    Args:
        folder: The release.

    Raises:
        UserError: The facts or the publisher's fields cannot be read.
    """
    fields = folder / FIELDS
    publisher = read_publisher(fields if fields.is_file() else None)
    facts = read_facts(folder)
    same = recorded_documents_sha256(folder) == documents_sha256()
    try:
        found = [*publisher_contradictions(facts, publisher), *fact_contradictions(facts)]
        found += _document_contradictions(folder, facts, publisher) if same else []
    except UserError:
        raise
    except Exception as error:  # facts of a stranger may have any values
        raise UserError(
            f"{folder / EVIDENCE_FILE}: no documents follow from these facts ({type(error).__name__}): build it again"
        ) from None
    if not same:
        log.warning("%s: its documents were from another version of leam_mm: their words are not compared", folder)
    found += _config_contradictions(folder, facts)
    return [*dict.fromkeys(found)]


def _document_contradictions(folder: Path, facts: ReleaseFacts, publisher: PublisherFields) -> Iterator[Contradiction]:
    with_shards = facts.content is not None and bool(facts.content.folders)
    for path, expected in rendered_documents(facts, publisher, () if with_shards else (CROISSANT,)).items():
        if (text := _read(folder / path)) is None:
            yield Contradiction(path, "whole file", "is missing: build the release again")
        elif text != expected:
            yield from changed_statements(path, expected, text)
    if not with_shards and facts.content is not None:
        yield from _croissant(folder, facts, publisher)


def _croissant(folder: Path, facts: ReleaseFacts, publisher: PublisherFields) -> Iterator[Contradiction]:
    """Compare the head of the Croissant file; its lists of files need the shards."""
    if (text := _read(folder / CROISSANT)) is None:
        yield Contradiction(CROISSANT, "whole file", "is missing: build the release again")
        return
    try:
        record = parse_object(text)
    except ValueError as error:
        yield Contradiction(CROISSANT, "whole file", f"cannot be read ({error})")
        return
    expected: dict[str, Any] = {
        "name": f"Training data of {facts.name}",
        "version": publisher.version,
        "datePublished": publisher.release_date and publisher.release_date.isoformat(),
        "creator": publisher.provider_name and {"@type": "sc:Organization", "name": publisher.provider_name},
    }
    for name, value in expected.items():
        if record.get(name) != value:
            yield Contradiction(CROISSANT, name, f"says {record.get(name)!r:.160}; the facts say {value!r:.160}")
    for root in facts.content.merkle_roots if facts.content else ():
        if root not in str(record.get("description")):
            yield Contradiction(CROISSANT, "description", f"does not name the data {root[:12]}, which was counted")


def _config_contradictions(folder: Path, facts: ReleaseFacts) -> Iterator[Contradiction]:
    """Compare sizes in the configs of libraries, and the licence's text, with the facts."""
    for name, keys, fact in SIZES:
        if (text := _read(folder / name)) is None or not facts.embeds:
            continue
        try:
            value: Any = json.loads(text)
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
        except (ValueError, RecursionError):
            yield Contradiction(name, "whole file", "is no JSON")
            continue
        if value is not None and value != getattr(facts, fact):
            yield Contradiction(name, ".".join(keys), f"says {value!r:.60}; the facts say {getattr(facts, fact)}")
    text = _read(folder / LICENCE)
    if text is not None and LICENCE_TITLES.get(facts.licence, facts.licence) not in text:
        yield Contradiction(LICENCE, "whole file", f"does not name the licence {facts.licence} of the release")


def _read(path: Path) -> str | None:
    """Return the text of a document; None if there is none."""
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MAX_DOCUMENT:
            raise UserError(f"{path} has more than {MAX_DOCUMENT:,} bytes: build the release again")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}): build the release again") from None
