"""Opt-out compliance: reading of recorded signals, counts, withdrawn items and age, on shards with known answers."""

import json
from itertools import product
from pathlib import Path

import pytest
from toys.published import withdraw, write_published

from data_tools.links.withdrawn_lists import lists_of_shards
from data_tools.rights.file_rights import rights_in_file
from data_tools.rights.reservations import Signal, decide
from leam_mm.audits.audit import AuditContext
from leam_mm.audits.opt_out import OptOut
from leam_mm.audits.opt_out_status import legal_basis, opt_out_status, recorded_signals
from leam_mm.audits.stored_samples import rate_interval
from leam_mm.controls.control_shards import control_image, every, signal, write_control_shards
from leam_mm.data.legal_basis import LegalBasis, basis_of
from leam_mm.errors import UserError

SIGNALS = [
    signal("robots.txt", "allowed", False),
    signal("robots.txt", "Disallow: /", True),
    signal("tdmrep.json", "/: 1", True, "/.well-known/tdmrep.json"),
    signal("header:tdm-reservation", "0", False, "/a.png"),
    signal("header:tdm-reservation", "maybe", False, "/a.png"),
    signal("header:x-robots-tag", "noai", True, "/a.png"),
    signal("registry", "lakes.example", True, "list.txt"),
]


def audited(shards: Path, audit: OptOut) -> dict[str, dict]:
    results = audit.run(AuditContext(None, None, shards.parent, shards=shards))
    return {row["name"]: row for row in (result.as_dict() for result in results)}


@pytest.mark.parametrize("basis", [*LegalBasis, "unknown", None])
def test_violations_are_those_that_the_collecting_programs_refuse(basis: str | None) -> None:
    """All pairs of signals, against the function that decides while images are collected."""
    violated = 0
    for first, second in product(SIGNALS, SIGNALS):
        record = {"legal_basis": basis, "url": "https://lakes.example/a.png", "consent": {"origin": [first, second]}}
        refused = decide([Signal(**first), Signal(**second)], basis_of(basis)) is not None
        assert (opt_out_status(record)[0] == "violated") == refused, (first, second)
        violated += refused
    assert 0 < violated < len(SIGNALS) ** 2


def test_a_redirect_to_another_site_brings_the_basis_of_that_site() -> None:
    noai = {"kind": "header:x-robots-tag", "value": "noai", "source": "https://cdn.example/a.png", "reserved": True}
    record = {"legal_basis": "licensed", "licence": "CC-BY-4.0", "url": "https://lakes.example/a.png"}
    response = {"signals": [noai], "legal_basis": "art4_general"}
    assert opt_out_status(record | {"consent": {"response": response}})[0] == "violated"
    assert opt_out_status(record | {"consent": {"response": response | {"legal_basis": "licensed"}}})[0] == "covered"
    own = noai | {"source": "https://www.lakes.example/a.png"}  # of the licensed site itself
    assert opt_out_status(record | {"consent": {"response": response | {"signals": [own]}}})[0] == "asked"


def test_damaged_evidence_counts_as_refusing_and_none_as_unknown() -> None:
    for rows in (["x"], [None], [{"kind": "tdmrep.json"}], [{"reserved": "no"}]):
        assert opt_out_status({"consent": {"page_rights": rows}})[0] == "violated"
    for consent in (None, [], "x", {"origin": "x"}, {"response": []}, {"response": {"signals": {}}}, {}):
        assert opt_out_status({"legal_basis": "art4_general", "consent": consent}) == ("unknown", "")
        assert recorded_signals({"consent": consent}) == []
    assert opt_out_status({"legal_basis": "licensed"})[0] == "unknown"  # a licence that nothing names
    assert legal_basis({"legal_basis": 3}) is None and opt_out_status({"legal_basis": "synthetic"})[0] == "synthetic"


def test_counts_coverage_and_age(tmp_path: Path) -> None:
    refused = {"consent": {"origin": [SIGNALS[0], SIGNALS[5]]}}
    shards = write_control_shards(tmp_path / "shards", every(8, refused, ({}, {"consent": {}}, {})))
    found = audited(shards, OptOut(today="2026-11-11"))
    slices = found["audit/opt_out"]["slices"]
    # Numbers 0, 8 and 16 are refused; of the others 1, 4, 7, 10, 13, 19 and 22 have no evidence.
    assert (slices["status=violated"], slices["status=unknown"], slices["status=asked"]) == (3, 7, 14)
    assert slices["violated by header:x-robots-tag"] == 3
    assert found["audit/opt_out"]["value"] == 3 and found["audit/opt_out"]["samples"] == 17
    assert slices["violations per sample"]["value"] == pytest.approx(3 / 17)
    assert found["audit/opt_out/coverage"]["value"] == pytest.approx(17 / 24)
    assert found["audit/opt_out/evidence_age"]["value"] == pytest.approx(9.5)
    assert {name: row["verdict"] for name, row in found.items()} == {
        "audit/opt_out": "fail", "audit/opt_out/coverage": "fail", "audit/opt_out/evidence_age": "pass",
    }  # fmt: skip


def test_shards_without_evidence_decide_nothing(tmp_path: Path) -> None:
    shards = write_control_shards(tmp_path / "shards", lambda number: {"consent": {}, "legal_basis": "unknown"})
    found = audited(shards, OptOut())
    assert found["audit/opt_out"]["value"] is None and found["audit/opt_out"]["verdict"] == "inconclusive"
    assert "the status of 100.0% is unknown" in found["audit/opt_out"]["note"]
    assert found["audit/opt_out/coverage"]["verdict"] == "fail" and len(found) == 2


def test_a_part_of_the_samples_bounds_the_rest(tmp_path: Path) -> None:
    shards = write_control_shards(tmp_path / "shards")
    found = audited(shards, OptOut(samples=12))
    assert found["audit/opt_out"]["samples"] == 12 and "12 drawn from 24" in found["audit/opt_out"]["note"]
    assert found["audit/opt_out"]["slices"]["violations per sample"]["high"] == 3 / 12
    coverage = found["audit/opt_out/coverage"]
    assert coverage["value"] == 1 and coverage["low"] < 0.95 and coverage["verdict"] == "inconclusive"


def test_undated_checks_are_not_young(tmp_path: Path) -> None:
    shards = write_control_shards(tmp_path / "shards", every(12, {"fetched_at": None}))
    age = audited(shards, OptOut())["audit/opt_out/evidence_age"]
    assert age["verdict"] == "inconclusive" and "2 checks have no date" in age["note"]


def test_withdrawn_samples_are_found_by_the_lists_of_withdraw_samples(tmp_path: Path) -> None:
    """A real withdrawal; then the shards of before are audited beside its lists, as if it had been undone."""
    shards = write_published(tmp_path / "shards")
    before = write_published(tmp_path / "before")
    withdraw("--shards", shards, "--url", "https://img.site2.example/7.png", "--apply", "--unsigned")
    gone = audited(shards, OptOut(withdrawn=lists_of_shards))["audit/opt_out/withdrawn"]
    assert (gone["value"], gone["verdict"]) == (0, "pass") and "0 of 1 keys" in gone["note"]
    still = audited(before, OptOut(withdrawn=lists_of_shards))["audit/opt_out/withdrawn"]
    assert (still["value"], still["verdict"]) == (1, "fail")
    unread = audited(before, OptOut())["audit/opt_out/withdrawn"]
    assert unread["verdict"] == "not_run" and "set `withdrawn` of OptOut" in unread["note"]


def test_rights_in_the_image_file_count(tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    mining = 'xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/" plus:DataMining="http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED"'
    rdf = f'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description {mining}/></rdf:RDF>'
    info.add_itxt("XML:com.adobe.xmp", f'<x:xmpmeta xmlns:x="adobe:ns:meta/">{rdf}</x:xmpmeta>')
    marked = control_image(5, pnginfo=info)
    assert any(one.reserved for one in rights_in_file(marked))
    shards = write_control_shards(tmp_path / "shards", images=lambda n: marked if n == 5 else control_image(n))
    assert audited(shards, OptOut())["audit/opt_out"]["verdict"] == "pass"
    assert audited(shards, OptOut(file_rights=rights_in_file))["audit/opt_out"]["value"] == 1


def test_damaged_shards_give_one_line(tmp_path: Path) -> None:
    shards = write_control_shards(tmp_path / "shards")
    (shards / "00001.index.parquet").write_bytes(b"x")
    found = audited(shards, OptOut())["audit/opt_out"]
    assert found["slices"]["status=unknown"] == 8 and found["verdict"] == "inconclusive"
    (shards / "manifest.jsonl").write_text(json.dumps({"shard": "../a.tar"}))
    with pytest.raises(UserError, match=r"^[^\n]*manifest\.jsonl: a line is not a shard entry[^\n]*$"):
        audited(shards, OptOut())
    with pytest.raises(UserError, match="samples is 0: give at least 1"):
        OptOut(samples=0)
    with pytest.raises(UserError, match=r"today is 'x': write it as YYYY-MM-DD"):
        OptOut(today="x")


def test_rule_of_three_is_the_exact_bound_to_two_percent() -> None:
    for samples in (100, 1000, 10_000):
        assert rate_interval(0, samples)[1] == pytest.approx(1 - 0.05 ** (1 / samples), rel=0.02)
    assert rate_interval(0, 0) == (0.0, 1.0) and rate_interval(0, 2) == (0.0, 1.0)
    low, high = rate_interval(1, 100)  # Clopper and Pearson, as tables of the binomial distribution give it
    assert (low, high) == pytest.approx((0.000253, 0.0545), rel=2e-3)


def test_few_samples_drawn_from_many_do_not_pass(tmp_path: Path) -> None:
    shards = write_control_shards(tmp_path / "shards", samples=40)
    verdicts = {
        number: audited(shards, OptOut(samples=number))["audit/opt_out"]["verdict"] for number in (1, 29, 30, None)
    }
    assert verdicts == {1: "inconclusive", 29: "inconclusive", 30: "pass", None: "pass"}
