"""Audit of provenance: each field's validity, recomputed digests and roots, lineage of runs, latents and releases."""

import json
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from toys.published import derived_from, write_published

from leam_mm.audits.audit import AuditContext
from leam_mm.audits.licence_names import is_licence_address, is_spdx
from leam_mm.audits.provenance import Provenance
from leam_mm.audits.provenance_fields import field_states
from leam_mm.checkpoint import load_module
from leam_mm.controls.control_shards import (
    control_image,
    control_record,
    every,
    write_control_run,
    write_control_shards,
)
from leam_mm.data.shard_index import ShardFolder, ShardWriter
from leam_mm.errors import UserError

DAY = datetime(2026, 11, 1, tzinfo=UTC)
RECORD = control_record(0, control_image(0))


def audited(folder: Path, audit: Provenance | None = None, **inputs: Any) -> dict[str, dict]:
    results = (audit or Provenance()).run(AuditContext(inputs.pop("clip", None), None, folder, **inputs))
    return {row["name"]: row for row in (result.as_dict() for result in results)}


def test_licences_are_spdx_expressions() -> None:
    right = ["CC0-1.0", "CC-BY-4.0", "CC-BY-NC-SA-3.0-DE", "MIT OR Apache-2.0", "(MIT AND CC-BY-SA-4.0) OR ISC"]
    right += ["LicenseRef-own.terms", "DocumentRef-a:LicenseRef-b", "DL-DE-BY-2.0", "EUPL-1.2+"]
    wrong = ["", "free", "CC BY 4.0", "cc-by-4.0", "CC-BY-5.0", "MIT OR", "MIT MIT", "OR", "MIT " * 400, "CC-BY-4.0-XX"]
    assert all(map(is_spdx, right)) and not any(map(is_spdx, wrong))
    assert is_licence_address("https://www.etalab.gouv.fr/licence") and not is_licence_address("https://lakes.example")
    assert not is_licence_address("javascript:alert(1)") and not is_licence_address("http://[x")


def test_licences_are_those_of_the_published_list() -> None:
    """Against the SPDX list in the package license-expression."""
    spdx = pytest.importorskip("license_expression", reason="needs license-expression").get_spdx_licensing()
    known = set(spdx.known_symbols)
    ports = ("", "-AT", "-AU", "-DE", "-FR", "-IGO", "-JP", "-NL", "-UK", "-US")
    versions = ("1.0", "2.0", "2.1", "2.5", "3.0", "4.0")
    parts = (("BY", "BY-NC", "ND", "SA", "PDM"), ("", "-NC"), ("", "-ND", "-SA"), versions, ports)
    names = {f"CC-{a}{b}{c}-{v}{j}" for a, b, c, v, j in product(*parts)}
    assert not [name for name in names if is_spdx(name) and name not in known]
    assert not [name for name in known if name.startswith("CC-") and not is_spdx(name)]


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("source", {"domain": "", "attribution": None}),
        ("url or id", {"url": "17.png", "uid": "17"}),
        ("licence", {"licence": "free to use"}),
        ("licence", {"licence": None, "legal_basis": "licensed"}),
        ("sha256", {"sha256": "ab" * 20}),
        ("sha256", {"sha256": None}),
        ("language", {"captions": [{"text": "a", "language": "en"}, {"text": "b", "language": "und"}]}),
        ("language", {"captions": []}),
        ("opt-out status", {"consent": {}}),
        ("processing chain", {"transforms": None}),
        ("processing chain", {"transforms": [3]}),
    ],
)
def test_each_field_can_be_invalid_alone(field: str, change: dict) -> None:
    assert set(field_states(RECORD, DAY).values()) == {True}
    states = field_states(RECORD | change, DAY)
    assert [name for name, state in states.items() if not state] == [field] or field == "licence"
    assert not states[field]


def test_dates_are_of_the_web_and_of_the_past() -> None:
    for wrong in (None, datetime(1970, 1, 1, tzinfo=UTC), datetime(2090, 1, 1, tzinfo=UTC)):
        assert [n for n, state in field_states(RECORD, wrong).items() if not state] == ["collection date"]
    assert not any(field_states({}, None).values())  # a record that cannot be read
    by_agreement = {"domain": "", "attribution": None, "consent": {"agreement": {"rights_holder": "Museum of Lakes"}}}
    assert field_states(RECORD | by_agreement, DAY)["source"]


def test_completeness_is_that_of_the_worst_field(tmp_path: Path) -> None:
    def change(number: int) -> dict[str, str]:
        return {"licence": "?"} if number % 6 == 0 else {"domain": ""} if number % 8 == 1 else {}

    found = audited(tmp_path, shards=write_control_shards(tmp_path / "shards", change))["audit/provenance"]
    slices = {name: part["value"] for name, part in found["slices"].items()}
    assert slices["licence"] == found["value"] == pytest.approx(20 / 24) and slices["source"] == pytest.approx(21 / 24)
    assert slices["sha256"] == 1 and found["verdict"] == "fail" and found["note"].endswith("that of licence")


def test_a_part_of_the_samples_widens_the_interval(tmp_path: Path) -> None:
    shards = write_control_shards(tmp_path / "shards")
    found = audited(tmp_path, Provenance(samples=12), shards=shards)["audit/provenance"]
    assert found["value"] == 1 and found["low"] < 0.7 and found["verdict"] == "inconclusive"
    assert "12 samples drawn from 24" in found["note"]


def test_images_are_recomputed_where_they_are_stored_as_fetched(tmp_path: Path) -> None:
    changed = every(2, {"transforms": ["resize:border:256", "encode:png"]})
    shards = write_control_shards(tmp_path / "shards", changed, stored=lambda n: control_image(n + 100 * (n % 2 == 0)))
    found = audited(tmp_path, shards=shards)["audit/provenance/integrity"]
    assert found["slices"]["images recomputed"] == 12 and found["verdict"] == "pass" and found["samples"] == 15
    assert audited(tmp_path, Provenance(recompute=0), shards=shards)["audit/provenance/integrity"]["samples"] == 3


@pytest.mark.parametrize("position", [600, -2000])
def test_any_byte_of_a_tar_counts(tmp_path: Path, position: int) -> None:
    shards = write_control_shards(tmp_path / "shards")
    tar = bytearray((shards / "00002.tar").read_bytes())
    tar[position] ^= 1
    (shards / "00002.tar").write_bytes(tar)
    found = audited(tmp_path, shards=shards)["audit/provenance/integrity"]
    assert (
        found["verdict"] == "fail" and "shards/00002.tar: its sha256 is not the one in manifest.jsonl" in found["note"]
    )


def test_latents_belong_to_the_shards_that_they_were_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = write_control_shards(tmp_path / "shards")
    latents = tmp_path / "latents"
    with ShardWriter(latents, 8) as writer:
        writer.write("a", {"json": b"{}"})
    (latents / "encoding.json").write_text(json.dumps({"shards": ShardFolder(shards).merkle_root}))
    run = write_control_run(tmp_path / "generator", latents)
    inside = audited(tmp_path, clip=run, shards=shards)["audit/provenance/lineage"]
    assert inside["verdict"] == "pass" and "no commit of the code is recorded for clip" in inside["note"]
    latents = latents.rename(tmp_path / "moved")
    lost = audited(tmp_path, clip=run, shards=shards)["audit/provenance/lineage"]
    assert lost["verdict"] == "fail" and "latents has the root" in lost["note"]
    given = audited(tmp_path, Provenance(further=[latents]), clip=run, shards=shards)
    assert {row["verdict"] for row in given.values()} == {"pass"}


def test_models_of_others_and_loaded_ones(tmp_path: Path, toy_checkpoints: dict[str, Path]) -> None:
    shards = write_control_shards(tmp_path / "shards")
    found = audited(tmp_path, clip=load_module(toy_checkpoints["clip"]), shards=shards)["audit/provenance/lineage"]
    assert found["verdict"] == "fail" and "clip: no Merkle root of its data" in found["note"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other/open_clip_config.json").write_text("{}")
    assert "audit/provenance/lineage" not in audited(tmp_path, clip=tmp_path / "other", shards=shards)


def test_a_release_names_the_roots_of_its_stages(built_release: Path, tmp_path: Path) -> None:
    shards = built_release.parent / "shards"
    found = audited(tmp_path, shards=shards, release=built_release)["audit/provenance/lineage"]
    # The toys' generator names latents that were never there.
    assert found["value"] == 1 and "generator: its data l has the root efefefefefef" in found["note"]
    assert set(found["slices"]) == {"clip", "generator", "codec"}


def test_keep_lists_are_read_and_named(tmp_path: Path) -> None:
    kept, _ = derived_from(write_published(tmp_path / "shards"), tmp_path)
    found = audited(tmp_path, shards=kept)
    assert found["audit/provenance"]["samples"] == ShardFolder(kept).samples < 23
    assert "+keep." in next(iter(found["audit/provenance/integrity"]["slices"]["merkle roots"].values()))


def test_bad_settings_give_one_line() -> None:
    for wrong in ({"samples": 0}, {"recompute": -1}):
        with pytest.raises(UserError, match=r"^Provenance: samples is .*, recompute .*: give at least 1, and"):
            Provenance(**wrong)
