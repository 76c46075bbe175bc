"""The Model Openness Framework file of a release (MOF 1.0, 2024-12-15), with the class decided from its files.

A component counts where it is in the release, or where the publisher names its public address, under a licence that is
open for its kind of content. Components and classes: Model Openness Tool of LF AI & Data, mof.settings.yml.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.release_facts import ReleaseFacts

CODE = frozenset(("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "EUPL-1.2", "GPL-3.0-only", "GPL-3.0-or-later",
                  "MPL-2.0", "ISC", "AGPL-3.0-only", "AGPL-3.0-or-later", "LGPL-3.0-only"))  # fmt: skip
CONTENT = frozenset(("CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CDLA-Permissive-1.0", "CDLA-Permissive-2.0",
                     "CDLA-Sharing-1.0", "ODbL-1.0", "ODC-By-1.0", "PDDL-1.0"))  # fmt: skip
# Licences that are open, by kind of content; the framework accepts licences of code for weights and documents, too.
OPEN_LICENCES: Mapping[str, frozenset[str]] = {"code": CODE, "data": CONTENT | CODE, "document": CONTENT | CODE}
CLASSES = ((3, "Class III - Open Model"), (2, "Class II - Open Tooling"), (1, "Class I - Open Science"))
CODE_LICENCE = "Apache-2.0"  # of this project, by which the release was trained and measured
LICENCE_FILE = "LICENSE"


@dataclass(frozen=True)
class Component:
    """A component of the framework.

    Args:
        name: Its name there.
        description: One sentence.
        content: ``code``, ``data`` or ``document``.
        level: Class that it belongs to: 3, 2 or 1; a class contains those with higher numbers.
        required: Whether the class requires it.
    """

    name: str
    description: str
    content: str
    level: int
    required: bool = True


COMPONENTS = (
    Component("Model architecture", "Code of the networks", "code", 3),
    Component("Model parameters (Final)", "Released weights", "data", 3),
    Component("Evaluation results", "Measured results with intervals", "document", 3),
    Component("Model card", "README.md of the release", "document", 3),
    Component("Data card", "Description of the training data", "document", 3),
    Component("Technical report", "Report of capabilities and use", "document", 3),
    Component("Sample model outputs", "Examples of generated images", "data", 3, required=False),
    Component("Training code", "Code that trained the weights", "code", 2),
    Component("Inference code", "Code that runs the networks", "code", 2),
    Component("Evaluation code", "Code that measured the results", "code", 2),
    Component("Evaluation data", "Data on which the results were measured", "data", 2),
    Component("Supporting libraries and tools", "Libraries of the training, with versions", "code", 2, required=False),
    Component("Datasets", "Training data", "data", 1),
    Component("Data preprocessing code", "Code that collected, vetted and encoded the data", "code", 1),
    Component("Model parameters (Intermediate)", "Checkpoints of the training", "data", 1),
    Component("Research paper", "Paper about the model", "document", 1),
    Component("Model metadata", "Settings of each run", "data", 1, required=False),
)
PAPER, REPORT = "Research paper", "Technical report"


@dataclass(frozen=True)
class Included:
    """A component that is available.

    Args:
        component: What it is.
        licence: SPDX identifier, or empty.
        path: File in the release, or address.
    """

    component: Component
    licence: str
    path: str

    @property
    def open(self) -> bool:
        """Whether its licence is open for its kind of content."""
        return self.licence in OPEN_LICENCES[self.component.content]


def included_components(facts: ReleaseFacts, publisher: PublisherFields) -> list[Included]:
    """Return the components that are in the release, or whose address the publisher states."""
    files, documents = facts.files, publisher.documents_licence or facts.licence
    weights = min((path for path in files if path.endswith(".safetensors")), default=None)
    settings = min((path for path in files if path.startswith("configs/")), default=None)
    sample = min((path for path in files if path.endswith((".png", ".jpg", ".webp"))), default=None)
    code = publisher.code_repository
    found: dict[str, tuple[str, str | None]] = {
        **{name: (CODE_LICENCE, code) for name in ("Model architecture", "Training code", "Inference code")},
        **{name: (CODE_LICENCE, code) for name in ("Evaluation code", "Data preprocessing code")},
        "Model parameters (Final)": (facts.licence, weights),
        "Evaluation results": (documents, "results.jsonl" if facts.metrics and "results.jsonl" in files else None),
        "Model card": (documents, "README.md"),
        "Data card": (documents, "documents/en/public_summary.md" if facts.content is not None else None),
        "Technical report": (documents, publisher.technical_report),
        "Sample model outputs": (facts.licence, sample),
        "Evaluation data": (_licence(publisher.evaluation_data), _address(publisher.evaluation_data)),
        "Datasets": _datasets(facts, publisher),
        "Model parameters (Intermediate)": (facts.licence, publisher.intermediate_checkpoints),
        "Research paper": (documents, publisher.research_paper),
        "Model metadata": (facts.licence, settings),
    }
    return [
        Included(component, licence, path)
        for component in COMPONENTS
        for licence, path in [found.get(component.name, ("", None))]
        if path
    ]


def openness_class(included: Sequence[Included]) -> tuple[str | None, dict[str, list[str]]]:
    """Return the highest class that is reached, or None, and what each class lacks, by its name.

    Args:
        included: Components of the release.
    """
    there = {one.component.name for one in included if one.open}
    if PAPER in there:
        there.add(REPORT)  # a paper may stand in for the report
    reached, missing = None, {}
    complete = True
    for level, name in CLASSES:
        lacking = [one.name for one in COMPONENTS if one.level == level and one.required and one.name not in there]
        complete = complete and not lacking
        reached = name if complete else reached
        if lacking:
            missing[name] = lacking
    return reached, missing


def mof_file(facts: ReleaseFacts, publisher: PublisherFields, language: str = "en") -> str:
    """Return mof.yaml in the form of the Model Openness Tool; its first lines say which class is reached.

    Args:
        facts: What was measured and recorded.
        publisher: What the publisher states.
        language: Not used: the file is in English.
    """
    included = included_components(facts, publisher)
    reached, missing = openness_class(included)
    release: dict[str, Any] = {
        "name": facts.name,
        "version": publisher.version or "",
        "date": publisher.release_date.isoformat() if publisher.release_date else "",
        "type": "multimodal" if facts.embeds else "image",
        "architecture": "diffusion" if facts.generates else "encoder",
        "treatment": "pre-trained",
        "origin": next((base["name"] for stage in facts.stages if (base := stage.base).get("name")), ""),
        "producer": publisher.provider_name or "",
        "contact": publisher.contact_email or "",
        "repository": publisher.code_repository or "",
        "huggingface": "",
        "license": {"distribution": {"name": facts.licence, "path": LICENCE_FILE}},
        "components": [
            {
                "name": one.component.name,
                "description": one.component.description,
                "license": one.licence,
                "license_path": LICENCE_FILE if "://" not in one.path else "",
                "component_path": one.path,
            }
            for one in included
        ],
    }
    framework = {"name": "Model Openness Framework", "version": "1.0", "date": "2024-12-15"}
    head = [f"# Class that the components of this release reach: {reached or 'none'}"]
    head += [f"# {name} lacks: {', '.join(lacking)}" for name, lacking in missing.items()]
    content = yaml.safe_dump({"framework": framework, "release": release}, sort_keys=False, allow_unicode=True)
    return "\n".join(head) + "\n" + content


def _datasets(facts: ReleaseFacts, publisher: PublisherFields) -> tuple[str, str | None]:
    """Return licence and address of the training data, if all of it is public; one licence that is not open decides."""
    named = publisher.data_sets or {}
    trained = {name for stage in facts.stages for name in stage.data.values()}
    if not trained or not trained <= named.keys():
        return "", None
    licences = sorted({licence for entry in facts.data for licence in entry.licences or {""}})
    closed = [licence for licence in licences if licence not in OPEN_LICENCES["data"]]
    return (closed or licences or [""])[0], ", ".join(named[name] for name in sorted(trained))


def _licence(entry: str | None) -> str:
    """Return the licence of an entry ``address (licence)``."""
    return entry.rpartition("(")[2].rstrip(")") if entry and entry.endswith(")") else ""


def _address(entry: str | None) -> str | None:
    return entry.rpartition("(")[0].strip() if entry and entry.endswith(")") else entry
