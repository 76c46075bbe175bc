"""The table of data sets in the columns that Apertus v1.5 publishes (2026-07-13), as CSV and in documents.

"yes" stands only where the data's records say so for every sample; otherwise the cell names the share, or says that
no record was found.
"""

import csv
import html
import io
from typing import Any

from leam_mm.documents.document_text import NOT_APPLICABLE, NOT_MEASURED, Open, render, show, stated
from leam_mm.documents.public_summary import trained_on
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.release_facts import ReleaseFacts
from leam_mm.documents.training_content import FolderEvidence

COLUMNS = ("Name", "License", "Already in v1", "Url", "Modality", "Version", "PII removal", "Robots filtering")
NO_RECORD = "no record"
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # spreadsheets run cells that begin with these


def data_rows(facts: ReleaseFacts, publisher: PublisherFields) -> list[list[Any]]:
    """Return one row for each data set that a run read, in the order of ``COLUMNS``."""
    licences = {entry.merkle_root: entry.licences for entry in facts.data}
    evidence = {entry.merkle_root: entry for entry in facts.content.evidence} if facts.content is not None else {}
    return [
        [
            name,
            sorted(licences.get(root) or ()) or NOT_MEASURED,
            _in_first(name, root, publisher),
            stated((publisher.data_sets or {}).get(name), "data_sets"),
            ["image", "text"],
            root,
            _personal(evidence.get(root)),
            _robots(evidence.get(root)),
        ]
        for root, name in trained_on(facts).items()
    ]


def _in_first(name: str, root: str, publisher: PublisherFields) -> Any:
    """Return whether the first version of the model was trained on a data set."""
    listed = publisher.first_version_data_sets
    return Open("open", "first_version_data_sets") if listed is None else name in listed or root in listed


def _personal(evidence: FolderEvidence | None) -> Any:
    """Return what was removed because of personal data; without a trace of a filter, "no record", which is not "no"."""
    return ["yes", dict(evidence.personal)] if evidence is not None and evidence.personal else NO_RECORD


def _robots(evidence: FolderEvidence | None) -> Any:
    """Return "yes" if each sample from the web has an answer of robots.txt in its record."""
    if evidence is None:
        return NO_RECORD
    if not evidence.web:
        return NOT_APPLICABLE
    if evidence.robots == 0:
        return NO_RECORD
    return True if evidence.robots >= evidence.web else {"samples": evidence.robots, "of": evidence.web}


def data_table_csv(facts: ReleaseFacts, publisher: PublisherFields, language: str = "en") -> str:
    """Return the table as CSV; cells that a spreadsheet would run as a formula begin with an apostrophe.

    Args:
        facts: What was measured and recorded.
        publisher: What the publisher states.
        language: Of the cells; the columns are in English.
    """
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in data_rows(facts, publisher):
        cells = [html.unescape(show(value, language)).replace("*", "").replace("`", "") for value in row]
        writer.writerow([f"'{cell}" if cell.startswith(FORMULA) else cell for cell in cells])
    return target.getvalue()


def data_table(facts: ReleaseFacts, publisher: PublisherFields, language: str) -> str:
    """Return the table as Markdown; see ``data_table_csv`` for the arguments."""
    return render("data_table", language, name=facts.name, columns=COLUMNS, rows=data_rows(facts, publisher))
