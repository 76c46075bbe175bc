"""The class of the Model Openness Framework follows from what is in a release; the table of data sets from records."""

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from toys.releases import counted_content, publisher_fields, release_facts

from leam_mm.documents.data_table import COLUMNS, data_rows, data_table_csv
from leam_mm.documents.document_text import NOT_APPLICABLE
from leam_mm.documents.openness import COMPONENTS, Included, included_components, mof_file, openness_class
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.training_content import FolderEvidence

CODE = "https://lakes.example/code"


def available(levels: Sequence[int], *without: str, licence: str = "Apache-2.0") -> list[Included]:
    return [Included(one, licence, "x") for one in COMPONENTS if one.level in levels and one.name not in without]


@pytest.mark.parametrize(
    ("included", "expected"),
    [
        (available([3]), "Class III - Open Model"),
        (available([3], "Sample model outputs"), "Class III - Open Model"),
        (available([3], "Model card"), None),
        (available([3, 2]), "Class II - Open Tooling"),
        (available([2, 1]), None),
        (available([3, 2, 1]), "Class I - Open Science"),
        (available([3, 2, 1], "Technical report"), "Class I - Open Science"),  # the paper stands in for it
        (available([3, 2, 1], licence="LicenseRef-House"), None),
        ([], None),
    ],
)
def test_the_class_needs_every_component_under_an_open_licence(included: list[Included], expected: str | None) -> None:
    assert openness_class(included)[0] == expected


def test_components_are_those_in_the_release(tmp_path: Path) -> None:
    facts = release_facts(counted_content(tmp_path / "shards"))
    names = {one.component.name for one in included_components(facts, PublisherFields())}
    assert names == {
        *("Model parameters (Final)", "Evaluation results", "Model card", "Data card", "Model metadata"),
    }  # fmt: skip
    publisher = replace(publisher_fields(), code_repository=CODE, technical_report="https://lakes.example/report")
    assert openness_class(included_components(facts, publisher))[0] == "Class III - Open Model"
    unlicensed = release_facts(facts.content, licence="CC-BY-NC-4.0")
    assert openness_class(included_components(unlicensed, publisher))[0] is None
    datasets = {one.component.name: one for one in included_components(facts, publisher)}["Datasets"]
    assert datasets.open and datasets.licence == "CC0-1.0"


def test_mof_yaml_has_the_form_of_the_tool() -> None:
    text = mof_file(release_facts(None), publisher_fields())
    content = yaml.safe_load(text)
    assert content["framework"] == {"name": "Model Openness Framework", "version": "1.0", "date": "2024-12-15"}
    release = content["release"]
    assert release["producer"] == "A lake office" and release["date"] == "2026-12-01"
    assert {one["name"] for one in release["components"]} <= {one.name for one in COMPONENTS}
    assert text.startswith("# Class that the components of this release reach: none") and "lacks: " in text


def test_yes_needs_evidence(tmp_path: Path) -> None:
    content = counted_content(tmp_path / "shards")
    (own,) = content.evidence
    assert (own.samples, own.web, own.robots) == (23, 23, 0)

    def row(evidence: FolderEvidence) -> dict:
        facts = release_facts(replace(content, evidence=(evidence,)))
        return dict(zip(COLUMNS, data_rows(facts, publisher_fields())[0], strict=True))

    assert row(own)["Robots filtering"] == "no record" and row(own)["PII removal"] == "no record"
    assert row(replace(own, robots=23))["Robots filtering"] is True
    assert row(replace(own, robots=5))["Robots filtering"] == {"samples": 5, "of": 23}
    assert row(replace(own, web=0))["Robots filtering"] is NOT_APPLICABLE
    assert row(replace(own, personal={"personal_data": 4}))["PII removal"] == ["yes", {"personal_data": 4}]
    assert row(replace(own, personal={}))["PII removal"] == "no record"


def test_the_csv_holds_no_formula_and_all_columns(tmp_path: Path) -> None:
    facts = release_facts(counted_content(tmp_path / "shards"))
    facts.stages[0].data["=1+1"] = '=HYPERLINK("http://b.example")'
    rows = list(csv.reader(io.StringIO(data_table_csv(facts, publisher_fields()))))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 3 and all(len(row) == len(COLUMNS) for row in rows)
    assert rows[1][1] == "CC0-1.0" and rows[1][3] == "https://lakes.example/data"
    assert all(not cell.startswith("=") for row in rows for cell in row)
    assert rows[2][1] == "not measured"
