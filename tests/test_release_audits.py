"""Audits of a release: its openness class from the files that are there, and what its documents say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toys.releases import publisher_fields, release_facts

from leam_mm.audits.audit import Audit, AuditContext
from leam_mm.audits.openness import Openness, released_components
from leam_mm.audits.release_documents import OPEN, PERSON, RUN, UNMEASURED, ReleaseDocuments, field_origins
from leam_mm.controls.release_controls import _publisher, write_control_release
from leam_mm.documents.document_index import ENTRIES
from leam_mm.documents.document_text import NOT_APPLICABLE, NOT_MEASURED, Open
from leam_mm.documents.facts_file import EVIDENCE_FILE
from leam_mm.documents.publisher import PublisherFields
from leam_mm.errors import UserError

CLASS_II = {"evaluation_data": "https://lakes.example/test (CC-BY-4.0)"}
CLASS_I = {
    "data_sets": {"lakes": "https://lakes.example/data"}, "research_paper": "https://lakes.example/paper",
    "intermediate_checkpoints": "https://lakes.example/runs",
}  # fmt: skip


def audited(release: Path, audit: Audit) -> dict[str, dict]:
    results = audit.run(AuditContext(None, None, release.parent, release=release))
    return {row["name"]: row for row in (result.as_dict() for result in results)}


@pytest.mark.parametrize(("fields", "level"), [({}, 3), (CLASS_II, 2), (CLASS_II | CLASS_I, 2)])
def test_the_class_follows_from_what_is_there(tmp_path: Path, fields: dict[str, Any], level: int) -> None:
    """The data of the control have no licence, so that class I is out of reach whatever the publisher states."""
    release = write_control_release(tmp_path / "release", replace(_publisher(), **fields))
    row = audited(release, Openness())["audit/openness"]
    assert row["value"] == level and row["verdict"] == "pass"
    assert ("Datasets" in row["slices"]["missing"].get("Class I - Open Science", ())) and row["samples"] >= 11
    assert audited(release, Openness(most=1))["audit/openness"]["verdict"] == "fail"


@pytest.mark.parametrize(
    ("file", "lost"),
    [
        ("LICENSE", "Model parameters (Final)"),
        ("model.safetensors", "Model parameters (Final)"),
        ("README.md", "Model card"),
        ("results.jsonl", "Evaluation results"),
        ("documents/en/public_summary.md", "Data card"),
    ],
)
def test_a_removed_file_is_a_missing_component(tmp_path: Path, file: str, lost: str) -> None:
    release = write_control_release(tmp_path / "release", _publisher())
    before = {one.component.name for one in released_components(release) if one.open}
    (release / file).unlink()
    after = {one.component.name for one in released_components(release) if one.open}
    assert lost in before - after
    row = audited(release, Openness())["audit/openness"]
    assert (row["value"], row["verdict"]) == (4, "fail") and lost in row["slices"]["missing"]["Class III - Open Model"]


def test_licences_that_are_not_open_do_not_count(tmp_path: Path) -> None:
    release = write_control_release(tmp_path / "release", replace(_publisher(), documents_licence="CC-BY-NC-4.0"))
    row = audited(release, Openness())["audit/openness"]
    assert (
        row["value"] == 4 and "Model card" in row["slices"]["not open"] and "not under an open licence" in row["note"]
    )


def test_every_contradiction_is_counted_and_named(tmp_path: Path) -> None:
    release = write_control_release(tmp_path / "release", _publisher())
    assert audited(release, ReleaseDocuments())["audit/documents"]["verdict"] == "pass"
    card = release / "README.md"
    card.write_text(card.read_text().replace("Lake office", "Sea office"))
    row = audited(release, ReleaseDocuments())["audit/documents"]
    assert row["verdict"] == "fail" and row["value"] >= 1 and "README.md" in row["note"] and "Sea office" in row["note"]


def test_documents_of_another_version_decide_nothing(tmp_path: Path) -> None:
    release = write_control_release(tmp_path / "release", _publisher())
    facts = release / EVIDENCE_FILE
    text = facts.read_text()
    start = text.index('"documents_sha256": "') + len('"documents_sha256": "')
    facts.write_text(text[:start] + "0" * 64 + text[start + 64 :])
    row = audited(release, ReleaseDocuments())["audit/documents"]
    assert row["verdict"] == "inconclusive" and "written by another version" in row["note"]


def test_fields_are_filled_by_the_run_by_a_person_or_open() -> None:
    view = {"a": "run", "b": "person", "c": Open("open", "x"), "d": NOT_MEASURED, "e": NOT_APPLICABLE, "f": "constant"}
    view |= {"g": ["en", "de"], "h": [["row", None]]}
    without_person = view | {"b": Open("open", "y")}
    without_run = view | {"a": NOT_MEASURED, "g": [], "h": []}
    counts = field_origins(view, without_person, without_run)
    assert counts == {RUN: 3, PERSON: 1, OPEN: 1, UNMEASURED: 2}


def test_a_publisher_fills_only_fields_of_persons() -> None:
    """In real documents, what the publisher adds turns open fields into filled ones; the run's fields stay."""
    facts = release_facts()
    empty, full = PublisherFields(), publisher_fields()
    blank = replace(facts, stages=(), metrics=(), files={}, image_size=None, generated_size=None, data=())
    for entry in ENTRIES:
        if entry.view is None:
            continue
        one, other = (
            field_origins(entry.view(facts, who, "en"), entry.view(facts, empty, "en"), entry.view(blank, who, "en"))
            for who in (empty, full)
        )
        assert one[PERSON] == 0 and other[OPEN] <= one[OPEN] and other[UNMEASURED] == one[UNMEASURED], entry.key
        assert other[PERSON] > 0 or other[OPEN] == one[OPEN], entry.key


def test_what_is_missing_gives_one_line(tmp_path: Path) -> None:
    for audit in (Openness(), ReleaseDocuments()):
        with pytest.raises(
            UserError, match=r"^[^\n]*leam_mm_release\.json cannot be read [^\n]*: give a release folder$"
        ):
            audited(tmp_path, audit)
    release = write_control_release(tmp_path / "release", _publisher())
    for name in ("README.md", "documents/en/public_summary.md", "documents/de/model_card.md"):
        (release / name).unlink()
    row = audited(release, ReleaseDocuments())["audit/documents"]
    assert row["value"] == 3 and row["note"].count("is missing: build the release again") == 3
    with pytest.raises(UserError, match="most is 4: give the class 1, 2 or 3"):
        Openness(most=4)
