"""Openness class of a release by the Model Openness Framework, computed from the files that are in its folder."""

from dataclasses import replace
from pathlib import Path

from leam_mm.audits.audit import Audit, AuditContext, AuditResult, Threshold
from leam_mm.documents.facts_file import read_facts
from leam_mm.documents.openness import CLASSES, LICENCE_FILE, Included, included_components, openness_class
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.publisher_file import read_publisher
from leam_mm.documents.write_documents import FIELDS
from leam_mm.errors import UserError

NO_CLASS = 4
ADDRESSED = ("Evaluation data", "Datasets")  # components that only have addresses, such as owner/name on the Hub
MEANINGS = {level: name for level, name in CLASSES} | {NO_CLASS: "no class"}
MAPS_TO = ("AI Act Art. 53(2)", "Model Openness Framework 1.0")


class Openness(Audit):
    """Number of the class that a release reaches: 1 Open Science, 2 Open Tooling, 3 Open Model, 4 none.

    A component counts if its file is in the folder, or the publisher names its address, under a licence that is open
    for its kind of content. Without the text of the licence, nothing in the folder counts. Components and classes:
    leam_mm/documents/openness.py.

    - class_path: leam_mm.audits.openness.Openness
      init_args: {most: 3}

    Args:
        most: Largest class number that passes.
    """

    name = "openness"

    def __init__(self, most: int = 3) -> None:
        """See the class for the arguments."""
        if most not in (1, 2, 3):
            raise UserError(f"Openness: most is {most}: give the class 1, 2 or 3")
        self.most = most

    def run(self, context: AuditContext) -> list[AuditResult]:
        """Read the release."""
        folder = Path(context.require("release"))
        included = released_components(folder)
        reached, missing = openness_class(included)
        level = next((level for level, name in CLASSES if name == reached), NO_CLASS)
        lacks = [f"{name} lacks {', '.join(lacking)}" for name, lacking in missing.items()]
        closed = [one.component.name for one in included if not one.open]
        said = "; ".join([f"{MEANINGS[level]} (1 is the most open class, 4 is none)", *lacks])
        said += f"; not under an open licence: {', '.join(closed)}" if closed else ""
        slices = {"class": reached or MEANINGS[NO_CLASS], "missing": missing, "not open": closed} | {
            f"component={one.component.name}": f"{one.path} ({one.licence or 'no licence'})" for one in included
        }
        return [
            AuditResult(
                self.name, float(level), float(level), float(level), "", len(included),
                Threshold(most=self.most), slices, said, maps_to=MAPS_TO,
            )
        ]  # fmt: skip


def released_components(folder: Path) -> list[Included]:
    """Return the components of a release whose files are in its folder, or whose address the publisher states.

    Args:
        folder: The release.

    Raises:
        UserError: Its facts or the publisher's fields cannot be read.
    """
    facts = read_facts(folder)
    if not (folder / LICENCE_FILE).is_file():
        facts = replace(facts, licence="")  # without its text, nothing in the folder is licensed
    fields = folder / FIELDS
    publisher = read_publisher(fields if fields.is_file() else None)
    return [one for one in included_components(facts, publisher) if _is_there(one, folder, publisher)]


def _is_there(one: Included, folder: Path, publisher: PublisherFields) -> bool:
    """Return whether a component is a file of the release, or at an address that the publisher states."""
    stated = {publisher.code_repository, publisher.technical_report, publisher.research_paper}
    stated |= {publisher.intermediate_checkpoints}
    return one.path in stated or one.component.name in ADDRESSED or (folder / one.path).is_file()
