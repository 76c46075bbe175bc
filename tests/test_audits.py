"""The gate of a release: audits that failed, are missing or are not decided need a reason in release.yaml."""

from dataclasses import replace
from pathlib import Path

import pytest
from toys.pages import metric_row
from toys.releases import release_facts

from leam_mm.documents.audits import audit_rows, audit_states, check_gate
from leam_mm.documents.expected_audits import OF_ALL, OF_ENCODERS, OF_GENERATORS, expected_audits
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.publisher_file import read_publisher
from leam_mm.errors import UserError
from leam_mm.release.release_gate import check_release

CONFIGS = Path(__file__).parent.parent / "configs"
EXPECTED = expected_audits(True, True)
PASSED = [metric_row(name, 0.1, passed=True) for name in EXPECTED]


def test_expected_audits_follow_what_is_released() -> None:
    assert set(EXPECTED) == {*OF_ALL, *OF_ENCODERS, *OF_GENERATORS}
    assert set(expected_audits(True, False)) == {*OF_ALL, *OF_ENCODERS}
    assert set(expected_audits(False, True)) == {*OF_ALL, *OF_GENERATORS}


def test_a_release_passes_only_if_every_audit_has_passed() -> None:
    check_gate(release_facts(metrics=PASSED), PublisherFields())
    for number in range(len(PASSED)):
        with pytest.raises(UserError, match=rf"{EXPECTED[number]} \(missing\)"):
            check_gate(release_facts(metrics=PASSED[:number] + PASSED[number + 1 :]), PublisherFields())


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        ({"passed": False}, "failed"),
        ({"passed": None}, "inconclusive"),
        ({}, "inconclusive"),
        ({"passed": 0}, "failed"),
    ],
)
def test_other_verdicts_need_a_reason_which_the_card_shows(row: dict, verdict: str) -> None:
    part = metric_row("audit/memorization/near_copies", 0.1, **row)
    facts = release_facts(metrics=[*PASSED, part])
    with pytest.raises(UserError, match=rf"near_copies \({verdict}\).*audit/memorization/near_copies: REASON"):
        check_gate(facts, PublisherFields())
    for name in ("audit/memorization", "audit/memorization/near_copies"):
        publisher = PublisherFields(audit_exceptions={name: "known, see section 4"})
        check_gate(facts, publisher)
        assert ["memorization/near copies", verdict, "known, see section 4"] in audit_rows(facts, publisher, "en")
    assert {state.verdict for state in audit_states(facts)} == {"passed", verdict}


def test_reasons_of_audits_that_passed_are_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    facts, publisher = release_facts(metrics=PASSED), PublisherFields(audit_exceptions={"audit/energy": "x"})
    check_gate(facts, publisher)
    assert "audit/energy of release.yaml excuses an audit that passed" in caplog.text
    assert ["energy", "passed", ""] in audit_rows(facts, publisher, "en")


def test_reasons_name_audits() -> None:
    with pytest.raises(UserError, match=r"audit/memorisation of release\.yaml names no audit: use one of audit/enc"):
        check_gate(release_facts(metrics=PASSED), PublisherFields(audit_exceptions={"audit/memorisation": "x"}))


@pytest.mark.parametrize("name", ["quickstart", "emoji", "finetune"])
def test_the_pipelines_fields_are_valid_and_pass_the_gate(name: str) -> None:
    path = CONFIGS / f"release_{name}.yaml"
    publisher = read_publisher(path)
    excused = set(publisher.audit_exceptions or {})
    # These two run audits; those that pass on every machine have no reason.
    passed = [row for row in PASSED if row["name"] not in excused] if name != "finetune" else []
    facts = release_facts(metrics=passed, licence=publisher.licence or "Apache-2.0")
    check_gate(facts, publisher)
    if name != "finetune":
        check_release(replace(facts, stages=[replace(stage, base={}) for stage in facts.stages]), publisher)
    assert f"configs/release_{name}.yaml" in (CONFIGS / f"pipeline_{name}.yaml").read_text()
    assert excused | {row["name"] for row in passed} == set(EXPECTED)
