"""The self-test: every control on its side, controls on both sides of every audit and metric, and that it can fail."""

import importlib
import inspect
import json
import pkgutil
from pathlib import Path

import pytest

import leam_mm.audits
import leam_mm.evaluators
from leam_mm.audits import energy
from leam_mm.audits.audit import Audit, AuditResult, Threshold
from leam_mm.controls.all_controls import all_controls
from leam_mm.controls.control import Control, Outcome
from leam_mm.controls.run_controls import run_controls
from leam_mm.errors import UserError
from leam_mm.evaluate_commands import selftest_command
from leam_mm.evaluate_commands.selftest_command import SELFTEST, SelftestOptions, selftest
from leam_mm.evaluators.evaluator import Evaluator

CONTROLS = all_controls()
# Subjects of the metrics that each evaluator measures.
DISTANCES = ("frechet_distance", "kernel_distance", "cmmd", "precision", "recall")
METRICS: dict[str, tuple[str, ...]] = {
    "ZeroShot": ("zero_shot",),
    "Retrieval": ("retrieval",),
    "Reconstruction": ("reconstruction", "frechet_distance"),
    "Compositional": ("compositional",),
    "Generation": DISTANCES,
    "TextToImage": ("text_to_image", "text_to_image/judge"),
    "ClipScore": ("clip_score",),
    "RecognisedCaptions": ("recognised_captions", "subject_judge"),
}
# Metrics that commands measure without an evaluator.
OTHERS = (
    *("frechet_infinity", "mind", "wavelet_distance", "inception_score", "density", "coverage"),
    *("linear_probe", "few_shot", "intervals", "compare"),
)
EXCEPTIONS = {
    "PromptGrid": "draws images and measures nothing",
    "BeforeAfter": "measures with the evaluators of its two models; it has no metric of its own",
}


def subclasses(package: object, base: type) -> dict[str, type]:
    """Subclasses of a base class in the modules of a package, by name."""
    found = {}
    for entry in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):  # type: ignore[attr-defined]
        for name, value in vars(importlib.import_module(entry.name)).items():
            if (
                inspect.isclass(value)
                and issubclass(value, base)
                and value.__module__ == entry.name
                and value is not base
            ):
                found[name] = value
    return found


def sides(subject: str) -> set[bool]:
    return {control.positive for control in CONTROLS if control.subject == subject}


@pytest.mark.parametrize(
    "control",
    [
        pytest.param(one, id=f"{one.subject}: {one.name}", marks=[pytest.mark.slow] if one.slow else [])
        for one in CONTROLS
    ],
)
def test_control(control: Control, tmp_path: Path) -> None:
    outcome = control.run(tmp_path)
    assert outcome.right, f"expected {control.expected}, found {outcome.found}"


def test_every_audit_has_controls_on_both_sides() -> None:
    audits = subclasses(leam_mm.audits, Audit)
    assert {"OptOut", "Provenance", "PersonalData", "Openness", "ReleaseDocuments"} <= audits.keys()
    assert all(audit.name for audit in audits.values()), "an audit has no name"
    missing = [name for name, audit in audits.items() if sides(f"audit/{audit.name}") != {True, False}]
    assert not missing, f"without a positive or a negative control: {missing}"


def test_every_metric_has_controls_on_both_sides() -> None:
    evaluators = subclasses(leam_mm.evaluators, Evaluator)
    known = METRICS.keys() | EXCEPTIONS.keys()
    assert evaluators.keys() == known, "name the metrics of a new evaluator in METRICS, and write their controls"
    subjects = {f"metric/{name}" for names in METRICS.values() for name in names} | {f"metric/{one}" for one in OTHERS}
    missing = sorted(subject for subject in subjects if sides(subject) != {True, False})
    assert not missing, f"without a positive or a negative control: {missing}"


def test_controls_have_names_of_their_own() -> None:
    names = [(control.subject, control.name) for control in CONTROLS]
    assert len(set(names)) == len(names) > 60 and all(subject and name for subject, name in names)
    assert all(subject.partition("/")[0] in ("audit", "metric") for subject, _ in names)


def test_an_audit_that_always_passes_is_missed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each positive control whose audit says pass must be reported."""
    subjects = ("audit/opt_out", "audit/provenance", "audit/openness", "audit/energy")
    chosen = [one for one in CONTROLS if one.subject in subjects]
    assert run_controls(chosen, lambda line: None)["caught"] == len(chosen)
    monkeypatch.setattr(AuditResult, "verdict", property(lambda result: "pass"))
    table = run_controls(chosen, lambda line: None)
    missed = [row for row in table["rows"] if not row["caught"]]
    wrong = {one.name for one in chosen if one.positive or one.expected == "inconclusive"}
    assert {row["control"] for row in missed} == wrong and len(missed) >= 16


def test_an_audit_that_always_fails_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [one for one in CONTROLS if one.subject == "audit/opt_out"]
    monkeypatch.setattr(AuditResult, "verdict", property(lambda result: "fail"))
    missed = {row["control"] for row in run_controls(chosen, lambda line: None)["rows"] if not row["caught"]}
    assert missed >= {one.name for one in chosen if not one.positive}


def test_a_limit_of_energy_that_ignores_the_pixels_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [one for one in CONTROLS if one.name.startswith("whole audit of two models")]
    assert {one.positive for one in chosen} == {True, False}
    monkeypatch.setattr(energy, "IMAGE_SIDE", 64)
    assert run_controls(chosen, lambda line: None)["caught"] == 0


@pytest.mark.parametrize("broken", [0, 1])
def test_a_verdict_that_ignores_its_parts_is_missed(monkeypatch: pytest.MonkeyPatch, broken: int) -> None:
    from leam_mm.audits import memorization

    result = AuditResult("memorization", broken, broken, broken, "count", 1, Threshold(most=0))
    monkeypatch.setattr(memorization, "combined_result", lambda name, parts, maps_to: result)
    chosen = [one for one in CONTROLS if one.subject == "audit/memorization" and one.name.startswith("captions that")]
    rows = run_controls(chosen, lambda line: None)["rows"]
    assert [row["kind"] for row in rows if not row["caught"]] == [("positive", "negative")[broken]]


def test_a_broken_metric_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    from leam_mm.controls import distance_controls

    monkeypatch.setattr(distance_controls, "frechet_distance_of_features", lambda first, second: 0.0)
    rows = run_controls(distance_controls.distance_controls(), lambda line: None)["rows"]
    missed = {(row["subject"], row["kind"]) for row in rows if not row["caught"]}
    assert missed == {("metric/frechet_distance", "positive")}


def _raising(folder: Path) -> Outcome:
    raise ValueError("no such thing")


def test_the_command_writes_its_table_and_fails_with_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = Control("audit/a", "clean", False, "pass", lambda folder: Outcome(f"{folder.is_dir()}", True))
    wrong = Control("audit/a", "planted", True, "fail", lambda folder: Outcome("pass", False))
    broken = Control("metric/b", "broken", True, "1", _raising)
    monkeypatch.setattr(selftest_command, "all_controls", lambda: [good])
    selftest(SelftestOptions(tmp_path))
    assert json.loads((tmp_path / SELFTEST).read_text())["caught"] == 1
    monkeypatch.setattr(selftest_command, "all_controls", lambda: [good, wrong, broken])
    with pytest.raises(UserError, match=r"^2 controls are on the wrong side: planted, broken; see [^\n]*$"):
        selftest(SelftestOptions(tmp_path))
    table = json.loads((tmp_path / SELFTEST).read_text())
    assert (table["controls"], table["caught"], len(table["rows"])) == (3, 1, 3)
    assert table["rows"][0] | {"seconds": 0} == {
        "subject": "audit/a", "control": "clean", "kind": "negative", "expected": "pass", "found": "True",
        "caught": True, "seconds": 0,
    }  # fmt: skip
    assert table["rows"][2]["found"] == "ValueError: no such thing" and "MISSED" in capsys.readouterr().out
    with pytest.raises(UserError, match="--only audit/x: no control has such a subject"):
        selftest(SelftestOptions(tmp_path, "audit/x"))
