"""Documents of a release: contradictions between them, and what is filled by the run, by a person, or missing."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from leam_mm.audits.audit import Audit, AuditContext, AuditResult, Threshold
from leam_mm.documents.contradictions import contradictions, missing_fields
from leam_mm.documents.document_index import ENTRIES
from leam_mm.documents.document_text import NOT_STATED, Open
from leam_mm.documents.facts_file import documents_sha256, read_facts, recorded_documents_sha256
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.publisher_file import read_publisher
from leam_mm.documents.release_facts import ReleaseFacts
from leam_mm.documents.write_documents import FIELDS

RUN, PERSON, OPEN, UNMEASURED = "filled by the run", "filled by a person", "left open by a person", "not measured"
MAPS_TO = ("AI Act Annex XI", "AI Act Art. 53(1)(a), (b) and (d)", "Model Documentation Form", "CycloneDX 1.7")
SHOWN = 5  # contradictions in the note
NO_FACTS = ReleaseFacts("", "", None, 0, ())
MISSING = Open()  # of a field that another view does not have


class ReleaseDocuments(Audit):
    """Compares the card, the AI Act documents, the bill of materials, the configs and the facts of a release.

    - class_path: leam_mm.audits.release_documents.ReleaseDocuments
      init_args: {least_filled: 0.9}

    Args:
        least_filled: Smallest share of fields that are filled, for a pass.
    """

    name = "documents"

    def __init__(self, least_filled: float = 0.9) -> None:
        """See the class for the arguments."""
        self.least_filled = least_filled

    def run(self, context: AuditContext) -> list[AuditResult]:
        """Read the release."""
        folder = Path(context.require("release"))
        found = contradictions(folder)
        value = float(len(found))
        listed = "; ".join(map(str, found[:SHOWN])) + (f"; and {len(found) - SHOWN:,} more" if found[SHOWN:] else "")
        same = recorded_documents_sha256(folder) == documents_sha256()
        other = "" if same or found else "the documents were written by another version: their words are not compared"
        fields = folder / FIELDS
        publisher = read_publisher(fields if fields.is_file() else None)
        facts = read_facts(folder)
        return [
            AuditResult(
                self.name, value, value, value, "count", len(facts.files), Threshold(most=0),
                {"contradictions": [str(one)[:300] for one in found[:100]]},
                listed or "no contradiction between documents, facts, results, configs and fields of the publisher",
                undecided=other, maps_to=MAPS_TO,
            ),
            self._completeness(facts, publisher),
        ]  # fmt: skip

    def _completeness(self, facts: ReleaseFacts, publisher: PublisherFields) -> AuditResult:
        total: Counter[str] = Counter()
        slices: dict[str, Any] = {}
        for entry in ENTRIES:
            if entry.view is not None:
                counts = field_origins(
                    entry.view(facts, publisher, "en"),
                    entry.view(facts, PublisherFields(), "en"),
                    entry.view(NO_FACTS, publisher, "en"),
                )
                slices[entry.key] = dict(counts)
                total.update(counts)
        filled = total[RUN] + total[PERSON]
        value = filled / total.total() if total else None
        said = "fields " + ", ".join(f"{name} {total[name]:,}" for name in (RUN, PERSON, OPEN, UNMEASURED))
        wanted = [line.partition(" is open")[0] for line in missing_fields(publisher)]
        said += f"; asked for and open: {', '.join(wanted)}" if wanted else ""
        return AuditResult(
            f"{self.name}/completeness", value, value, value, "fraction", total.total(),
            Threshold(least=self.least_filled), slices, said, maps_to=MAPS_TO,
        )  # fmt: skip


def field_origins(view: Any, without_person: Any, without_run: Any) -> Counter[str]:
    """Return how many fields of a document are filled by the run, filled by a person, left open, or not measured.

    What is the same whoever publishes whatever is a constant of the document, and no field.

    Args:
        view: What the document shows: values in mappings and lists; a list of plain values is one field.
        without_person: What it shows if the publisher states nothing.
        without_run: What it shows if nothing was measured.
    """
    person, run = dict(_fields(without_person)), dict(_fields(without_run))
    counts: Counter[str] = Counter()
    for path, value in _fields(view):
        kind = _missing(value)
        if kind is None:
            by_run, by_person = run.get(path, MISSING) != value, person.get(path, MISSING) != value
            if by_person or by_run:
                counts[PERSON if by_person else RUN] += 1
        elif kind != "not_applicable":
            counts[OPEN if kind == "open" else UNMEASURED] += 1
    return counts


def _fields(value: Any, path: tuple[object, ...] = ()) -> Iterator[tuple[tuple[object, ...], Any]]:
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _fields(each, (*path, name))
    elif isinstance(value, list | tuple) and any(_is_nested(each) for each in value):
        for number, each in enumerate(value):
            yield from _fields(each, (*path, number))
    else:
        yield path, list(value) if isinstance(value, tuple) else value


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple) or _missing(value) is not None


def _missing(value: Any) -> str | None:
    """Return how a value is missing; None if it is there."""
    if value is None:
        return "not_measured"
    if value == NOT_STATED:
        return "open"
    return value.kind if isinstance(value, Open) else None
