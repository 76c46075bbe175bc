"""Contract of audits: the rule of verdicts, the line in results.jsonl, and what documents and the gate read of it."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from toys.releases import release_facts

from leam_mm.audits.audit import PASSED, PREFIX, Audit, AuditContext, AuditResult, NotRun, Threshold
from leam_mm.audits.opt_out import OptOut
from leam_mm.audits.personal_data import PersonalData
from leam_mm.audits.provenance import Provenance
from leam_mm.audits.run_audits import run_audits
from leam_mm.controls.control_shards import every, write_control_run, write_control_shards
from leam_mm.documents.audits import audit_states, check_gate
from leam_mm.documents.expected_audits import expected_audits
from leam_mm.documents.publisher import PublisherFields
from leam_mm.errors import UserError
from leam_mm.evaluate_commands.audit_command import main
from leam_mm.evaluators.results import RESULTS, read_results

RESULT = AuditResult("lakes", 0.5, 0.4, 0.6, "fraction", 100, Threshold(least=0.3, most=0.7))
ENDS = (-math.inf, -1.0, 0.0, 0.3, 0.5, 0.7, 1.0, math.inf)


def test_the_whole_interval_decides() -> None:
    """All pairs of ends against the definition: every point passes, no point passes, or some do."""
    threshold = Threshold(least=0.3, most=0.7)
    for low, high in product(ENDS, ENDS):
        if low <= high:
            passing = [0.3 <= point <= 0.7 for point in (*(end for end in ENDS if low <= end <= high), low, high)]
            covered = low < 0.3 and high > 0.7  # both ends fail, and the middle passes
            wanted = "pass" if all(passing) else "fail" if not any(passing) and not covered else "inconclusive"
            assert threshold.verdict(low, high) == wanted, (low, high)


@pytest.mark.parametrize(
    ("threshold", "low", "high", "verdict"),
    [
        (Threshold(), -math.inf, math.inf, "pass"),
        (Threshold(least=0.0), math.nan, 1.0, "inconclusive"),
        (Threshold(least=0.0), 0.5, math.nan, "inconclusive"),
        (Threshold(least=0.0), 0.5, math.inf, "pass"),
        (Threshold(most=1.0), 0.5, math.nan, "inconclusive"),
        (Threshold(least=0.0, most=1.0), math.nan, math.nan, "inconclusive"),
        (Threshold(most=1.0), math.nan, 0.5, "inconclusive"),
        (Threshold(least=2.0), math.nan, 1.0, "fail"),
    ],
)
def test_unknown_ends_decide_nothing(threshold: Threshold, low: float, high: float, verdict: str) -> None:
    result = replace(RESULT, threshold=threshold, low=low, high=high)
    assert result.verdict == verdict
    assert json.loads(json.dumps(result.as_dict(), allow_nan=False))["verdict"] == result.verdict


@pytest.mark.parametrize(
    ("changes", "verdict", "note"),
    [
        ({}, "pass", ""),
        ({"low": None}, "inconclusive", ""),
        ({"high": None}, "inconclusive", ""),
        ({"low": None, "high": 0.2}, "fail", ""),
        ({"low": 0.71, "high": 0.9, "value": 0.8}, "fail", ""),
        ({"low": 0.3, "high": 0.7}, "pass", ""),
        ({"value": None, "low": None, "high": None, "reason": "why"}, "inconclusive", "why"),
        ({"threshold": None}, "inconclusive", ""),
        ({"fewest": 101}, "inconclusive", "100 samples, at least 101 are needed"),
        ({"fewest": 100}, "pass", ""),
        ({"undecided": "guard", "reason": "why"}, "inconclusive", "guard; why"),
        ({"undecided": "guard", "low": 0.8, "high": 0.9}, "inconclusive", "guard"),
        ({"not_run": True, "reason": "no shards", "fewest": 101}, "not_run", "no shards"),
    ],
)
def test_verdict_and_note_of_a_line(changes: dict, verdict: str, note: str) -> None:
    row = replace(RESULT, **changes).as_dict()
    assert (row["verdict"], row["note"], row["passed"]) == (verdict, note, PASSED[verdict])
    assert row["name"] == "audit/lakes" and set(row) >= {"threshold", "maps_to", "slices", "unit", "samples"}


class Fixed(Audit):
    """An audit with a fixed result, or without an input."""

    def __init__(self, name: str, result: AuditResult | None = None) -> None:
        self.name, self.result = name, result

    def run(self, context: AuditContext) -> list[AuditResult]:
        if self.result is None:
            raise NotRun("no lake was given: add --lake")
        return [replace(self.result, audit=self.name)]


def lines(folder: Path, audits: Sequence[Audit]) -> list[dict]:
    """Lines of results.jsonl as a release reads them."""
    run_audits(audits, AuditContext(None, None, folder), lambda line: None)
    return list(read_results(folder).values())


def test_documents_and_the_gate_read_the_lines(tmp_path: Path) -> None:
    names = [name.removeprefix(PREFIX) for name in expected_audits(True, True)]
    passing = lines(tmp_path / "pass", [Fixed(name, RESULT) for name in names])
    facts = release_facts(metrics=passing)
    assert {state.verdict for state in audit_states(facts)} == {"passed"}
    check_gate(facts, PublisherFields())
    other = {
        "fail": {"low": 0.8, "high": 0.9},
        "inconclusive": {"low": 0.1},
        "failed": {"value": 0.9, "low": 0.9, "high": 0.9},
    }
    for changes in other.values():
        rows = lines(tmp_path / str(changes), [Fixed(names[0], replace(RESULT, **changes))])
        with pytest.raises(UserError, match=rf"audit/{names[0]} \((failed|inconclusive)\)"):
            check_gate(release_facts(metrics=[*passing[1:], *rows]), PublisherFields())
    rows = lines(tmp_path / "not_run", [Fixed(names[0])])
    assert rows[0]["note"] == "no lake was given: add --lake" and rows[0]["verdict"] == "not_run"
    with pytest.raises(UserError, match=rf"audit/{names[0]} \(missing\)"):
        check_gate(release_facts(metrics=[*passing[1:], *rows]), PublisherFields())


def test_the_newest_verdict_counts(tmp_path: Path) -> None:
    for low in (0.1, 0.4):
        run_audits([Fixed("lakes", replace(RESULT, low=low))], AuditContext(None, None, tmp_path), lambda line: None)
    assert len((tmp_path / RESULTS).read_text().splitlines()) == 2
    assert read_results(tmp_path)["audit/lakes"]["verdict"] == "pass"


def test_audits_of_data_pass_the_gate_on_clean_shards(tmp_path: Path) -> None:
    """Their three expected names; a reservation that was ignored and a planted address are refused by name."""
    shards = write_control_shards(tmp_path / "shards")
    clip = write_control_run(tmp_path / "clip", shards)
    audits = [OptOut(), Provenance(), PersonalData()]
    run_audits(audits, AuditContext(clip, None, tmp_path / "clean", shards=shards), lambda line: None)
    rows = list(read_results(tmp_path / "clean").values())
    assert {row["verdict"] for row in rows} == {"pass"} and len(rows) == 8
    found = {state.name for state in audit_states(release_facts(metrics=rows)) if state.verdict == "missing"}
    assert not found & {"audit/opt_out", "audit/provenance", "audit/personal_data"} and "audit/energy" in found
    planted = {"captions": [{"text": "write to anna@example.de", "language": "en"}], "consent": {}}
    wrong = write_control_shards(tmp_path / "wrong", every(2, planted))
    run_audits(audits, AuditContext(clip, None, tmp_path / "bad", shards=wrong), lambda line: None)
    states = {
        state.name: state.verdict
        for state in audit_states(release_facts(metrics=list(read_results(tmp_path / "bad").values())))
    }
    assert states["audit/personal_data"] == states["audit/provenance"] == "failed"
    assert states["audit/opt_out"] == "inconclusive" and states["audit/opt_out/coverage"] == "failed"


def test_the_command_runs_audits_by_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = write_control_shards(tmp_path / "shards", samples=8)
    config = tmp_path / "audit.yaml"
    config.write_text(f"""
output: {tmp_path / "out"}
shards: {shards}
audits:
- class_path: leam_mm.audits.opt_out.OptOut
  init_args:
    file_rights: data_tools.rights.file_rights.rights_in_file
    withdrawn: data_tools.links.withdrawn_lists.lists_of_shards
    today: 2026-11-29
- class_path: leam_mm.audits.provenance.Provenance
  init_args: {{further: [], recompute: 4}}
- class_path: leam_mm.audits.personal_data.PersonalData
  init_args: {{face_detector: {{class_path: data_tools.vetting.face_cascade.FaceCascade}}}}
- class_path: leam_mm.audits.openness.Openness
- class_path: leam_mm.audits.release_documents.ReleaseDocuments
""")
    main(["--config", str(config)])
    printed = capsys.readouterr().out
    assert "opt_out                  pass" in printed and "openness                 not_run" in printed
    assert "no release was given: add --release" in printed
    rows = read_results(tmp_path / "out")
    assert rows["audit/opt_out"]["settings"]["samples"] is None and (tmp_path / "out/report.html").is_file()
    assert rows["audit/documents"]["verdict"] == "not_run" and "audit/personal_data/faces" in rows
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"^[^\n]*leam_mm_release\.json cannot be read [^\n]*give a release folder$"):
        main(["--config", str(config), "--release", str(tmp_path / "empty")])


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_value_that_is_not_finite_decides_nothing(value: float) -> None:
    for threshold in (Threshold(least=0.8), Threshold(most=0.8)):
        assert AuditResult("x", value, value, value, "ratio", 9, threshold).verdict == "inconclusive"
