"""The bill of materials is valid CycloneDX 1.7 and holds digests, results with intervals, and measured energy only."""

import json
from pathlib import Path

import pytest
from toys.pages import ENERGY_RECORD, metric_row
from toys.releases import FILES, HOSTILE, counted_content, publisher_fields, release_facts

from leam_mm.documents.ml_bom import ml_bom
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.release_facts import ReleaseFacts, StageFacts


def parts(facts: ReleaseFacts) -> dict[str, dict]:
    found = json.loads(ml_bom(facts, publisher_fields()))
    return {entry["bom-ref"]: entry for entry in found["components"]}


def faults(text: str) -> str:
    validation = pytest.importorskip("cyclonedx.validation.json", reason="needs cyclonedx-python-lib[json-validation]")
    from cyclonedx.schema import SchemaVersion

    error = validation.JsonStrictValidator(SchemaVersion.V1_7).validate_str(text)
    return "" if error is None else str(error)


def test_it_is_valid(tmp_path: Path) -> None:
    content = counted_content(tmp_path / "shards")
    for facts in (release_facts(content), release_facts(None), release_facts(None, stages=[], metrics=[], files={})):
        for publisher in (publisher_fields(), publisher_fields(HOSTILE), PublisherFields()):
            assert not faults(ml_bom(facts, publisher))
    assert not faults(ml_bom(release_facts(content, name=HOSTILE, licence=HOSTILE), publisher_fields()))
    broken = json.loads(ml_bom(release_facts(content), publisher_fields())) | {"unknown": 1}
    assert faults(json.dumps(broken))


def test_weights_have_their_digests_and_the_base_is_an_ancestor() -> None:
    found = parts(release_facts(None))
    assert {entry["name"] for entry in found["part:clip"]["components"]} == {
        "open_clip_model.safetensors", "model.safetensors",
    }  # fmt: skip
    (decoder,) = found["part:codec"]["components"]
    assert decoder["hashes"] == [{"alg": "SHA-256", "content": FILES[decoder["name"]]}]
    (ancestor,) = found["part:codec"]["pedigree"]["ancestors"]
    assert ancestor["name"] == "org/vae" and ancestor["hashes"][0]["content"] == "b" * 64
    assert "pedigree" not in found["part:clip"] and found["library:torch"]["version"] == "2.10.0"


def test_results_are_metrics_with_slice_and_interval() -> None:
    metrics = parts(release_facts(None))["part:clip"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    german, maltese, audit, part = metrics
    assert german == {
        "type": "scenes/top1 (fraction)", "value": "0.5", "slice": "language=de",
        "confidenceInterval": {"lowerBound": "0.4", "upperBound": "0.6"},
    }  # fmt: skip
    assert maltese["value"] == "not measured" and "confidenceInterval" not in maltese
    assert audit["type"] == "audit/languages (fraction)" and "slice" not in audit
    assert part["slice"] == "language=mt" and part["confidenceInterval"]["upperBound"] == "0.8"
    hostile = parts(release_facts(None, metrics=[metric_row("a", slices={"x": True, "y": "z", "n": 1})]))
    found = hostile["part:clip"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert [entry.get("slice") for entry in found] == [None, "n"]


def test_energy_stands_only_where_it_was_measured() -> None:
    found = parts(release_facts(None))
    (use,) = found["part:clip"]["modelCard"]["considerations"]["environmentalConsiderations"]["energyConsumptions"]
    assert use["activityEnergyCost"] == {"value": 2.0, "unit": "kWh"} and "co2CostEquivalent" not in use
    for name in ("part:generator", "part:codec"):
        assert "environmentalConsiderations" not in found[name]["modelCard"].get("considerations", {})
    record = ENERGY_RECORD | {"location_grams": 800.0}
    stage = StageFacts("clip", 10, 5, "ab" * 32, {}, record, {}, {"name": "org/clip"})
    card = parts(release_facts(None, stages=[stage]))["part:clip"]["modelCard"]
    (use,) = card["considerations"]["environmentalConsiderations"]["energyConsumptions"]
    assert use["activity"] == "fine-tuning" and use["co2CostEquivalent"] == {"value": 0.0008, "unit": "tCO2eq"}


def test_the_same_release_gives_the_same_bytes() -> None:
    first, second = (ml_bom(release_facts(None), publisher_fields()) for _ in range(2))
    assert first == second
    assert (
        json.loads(first)["serialNumber"]
        != json.loads(ml_bom(release_facts(None, name="b"), publisher_fields()))["serialNumber"]
    )


def test_audits_are_declared_with_their_conformance() -> None:
    rows = [
        metric_row("audit/energy", passed=True), metric_row("audit/opt_out", passed=False),
        metric_row("audit/provenance", passed=None), metric_row("audit/personal_data", None, verdict="not_run"),
    ]  # fmt: skip
    publisher = PublisherFields(audit_exceptions={"audit/opt_out": "the two links were withdrawn"})
    found = json.loads(ml_bom(release_facts(None, metrics=rows), publisher))
    stated = {one["requirement"].removeprefix("requirement:"): one for one in
              found["declarations"]["attestations"][0]["map"]}  # fmt: skip
    assert stated["audit/energy"]["conformance"] == {"score": 1.0, "rationale": "passed"}
    assert stated["audit/energy"]["claims"] == ["claim:audit/energy"]
    assert stated["audit/opt_out"]["conformance"]["score"] == 0.0
    assert "the two links were withdrawn" in stated["audit/opt_out"]["conformance"]["rationale"]
    assert stated["audit/opt_out"]["counterClaims"] == ["claim:audit/opt_out"]
    assert "score" not in stated["audit/provenance"]["conformance"]
    assert stated["audit/personal_data"]["conformance"] == {"rationale": "missing"}
    assert stated["audit/memorization"]["conformance"] == {"rationale": "missing"}  # expected, and in no line
    assert "counterClaims" not in stated["audit/personal_data"]
    evidence = {one["bom-ref"]: one["description"] for one in found["declarations"]["evidence"]}
    assert evidence["evidence:audit/energy"].startswith("0.5 fraction (0.4 to 0.6), 96 samples")
    assert {one["target"] for one in found["declarations"]["claims"]} == {"release"}
    assert not faults(json.dumps(found))
