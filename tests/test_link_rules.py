import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_tools.links.link_rules import LinkRules, LinkRuleSettings, page_signals
from data_tools.network.link_address import LinkRefused
from leam_mm.data.ledger import link_uid
from leam_mm.errors import UserError

CAPTION = "Eine rote Katze schläft auf dem alten Sofa im Garten"


def apply_rules(setting: LinkRuleSettings, *rows: dict[str, Any], trusted: bool = False) -> list[dict[str, Any]]:
    filled = [{"url": f"https://a.example/{number}.jpg", "caption": CAPTION} | row for number, row in enumerate(rows)]
    names = sorted({name for row in filled for name in row})
    table = pa.table({name: pa.array([row.get(name) for row in filled], pa.string()) for name in names})
    return LinkRules(setting).apply(table, trusted)[0].to_pylist()


def rights(reserved: bool, kind: str = "meta:robots") -> str:
    signal = {"kind": kind, "value": "noai", "source": "https://page.example/", "reserved": reserved}
    return json.dumps({"page_rights": [signal]})


def test_a_good_row_passes_with_derived_columns() -> None:
    (row,) = apply_rules(
        LinkRuleSettings(), {"url": " http://Bücher.example/ä.jpg#x ", "page_url": "https://p.example/"}
    )
    assert row["rule"] is None and row["language"] == "de" and row["legal_basis"] == "art4_general"
    assert row["fetch"] == "http://xn--bcher-kva.example/%C3%A4.jpg" and row["origin"] == "http://xn--bcher-kva.example"
    assert row["uid"] == link_uid(" http://Bücher.example/ä.jpg#x ", "https://p.example/", CAPTION)
    assert row["link_hash"] == hashlib.blake2b(row["fetch"].encode(), digest_size=16).digest()
    assert json.loads(row["evidence"])["language"]["pycld2"] == "de"
    kept = "0" * 32
    assert apply_rules(LinkRuleSettings(), {"uid": kept})[0]["uid"] == kept


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ({"url": "ftp://a.example/a.jpg"}, "scheme"),
        ({"url": "file:///etc/passwd"}, "scheme"),
        ({"url": "http://127.0.0.1/a.jpg"}, "private_address"),
        ({"url": "http://user:word@a.example/a.jpg"}, "host"),
        ({"url": None}, "scheme"),
        ({"caption": "  "}, "caption"),
        ({"caption": None}, "caption"),
        ({"caption": "x" * 6000}, "caption"),
        ({"captions": "{broken"}, "captions"),
        ({"captions": "[" * 100_000}, "captions"),
        ({"consent": "[]"}, "consent"),
        ({"metadata": "7"}, "metadata"),
        ({"legal_basis": "fair_use"}, "legal_basis"),
        ({"consent": rights(True)}, "page_rights"),
        ({"consent": '{"page_rights": "noai"}'}, "page_rights"),
        ({"caption": "anna@example.de"}, "caption"),
    ],
)
def test_rows_that_are_dropped(row: dict[str, Any], rule: str) -> None:
    (found,) = apply_rules(LinkRuleSettings(), row)
    assert found["rule"] == rule and found["reason"] and found["link_hash"] is None and found["uid"]


def test_hostile_rows_are_decided_like_all_others() -> None:
    deep = "[" * 400 + "]" * 400
    half = '[{"text": "\\ud800 rote Katze", "language": "de\\udfff"}]'
    hostile: list[dict[str, Any]] = [
        {"captions": half},
        {"consent": '{"page_rights": [{"kind": "\\ud800", "value": "\\udc00", "source": "x", "reserved": true}]}'},
        {"metadata": f'{{"a": {deep}}}'},
        {"consent": f'{{"page_rights": {deep}}}'},
        {"consent": '{"page_rights": [[]]}'},
        {"consent": '{"page_rights": 7, "x": 1e999}'},
        {"captions": '[{"text": 7, "language": "de"}]'},
        {"captions": '[{"text": "x", "language": ["de"]}]'},
        {"caption": "\x00\x01\u202e\ufeff"},
        {"caption": "<email>" * 700},
        {"url": "http://a.example/" + "x" * 9000},
        {"url": "http://[::ffff:127.0.0.1]/"},
        {"url": "http://[fe80::1%25eth0]/"},
        {"url": "http://a.example:0x50/"},
        {"url": "http://" + "a." * 200 + "example/"},
        {"url": "http://\u202ea.example/"},
        {"url": "//a.example/x"},
        {"uid": "../../etc/passwd"},
        {"page_url": "x" * 100_000, "licence": "\x00", "source": "../..", "language": "e" * 10_000},
    ]
    found = apply_rules(LinkRuleSettings(), *hostile, {})
    assert len(found) == len(hostile) + 1 and found[-1]["rule"] is None
    assert all(row["rule"] is None or row["reason"] for row in found)
    assert found[0]["rule"] is None and found[1]["rule"] == "page_rights" and found[10]["rule"] == "url"
    assert [row["uid"] for row in found if len(row["uid"]) != 32] == []


def test_reservations_follow_from_the_legal_basis(tmp_path: Path) -> None:
    (tmp_path / "sources.yaml").write_text(
        'sources: [{domain: "*.museum.example", basis: licensed, licence: contract 7}]'
    )
    rows = [
        {"consent": rights(True), "legal_basis": "art3_research"},
        {"consent": rights(True), "url": "https://img.museum.example/a.jpg"},
        {"consent": rights(False)},
        {"consent": rights(True)},
    ]
    found = apply_rules(LinkRuleSettings(sources=str(tmp_path / "sources.yaml")), *rows)
    assert [row["rule"] for row in found] == ["page_rights", None, None, "page_rights"]
    assert found[0]["legal_basis"] == "art4_general"  # what a table claims lifts nothing, and is kept
    assert json.loads(found[0]["consent"])["claims"] == {"legal_basis": "art3_research"}
    trusted = apply_rules(LinkRuleSettings(), rows[0], trusted=True)
    assert trusted[0]["rule"] is None and trusted[0]["legal_basis"] == "art3_research"
    assert found[1]["licence"] == "contract 7" and found[1]["legal_basis"] == "licensed"
    assert json.loads(found[3]["evidence"])["signal"]["value"] == "noai"
    with pytest.raises(LinkRefused):
        page_signals('{"page_rights": [{"kind": "meta:robots"}]}')


def test_blocklists(tmp_path: Path) -> None:
    (tmp_path / "domains").write_text("bad.example\n")
    (tmp_path / "urls").write_text(hashlib.sha256(b"https://a.example/1.jpg").hexdigest())
    (tmp_path / "phrases").write_text("rote katze\n")
    setting = LinkRuleSettings(
        domain_lists=[str(tmp_path / "domains")],
        digest_lists=[str(tmp_path / "urls")],
        phrase_lists=[str(tmp_path / "phrases")],
    )
    entries = [{"text": "ROTE  Katze", "language": "de"}]
    rows = [{"url": "https://x.bad.example/"}, {"caption": "other"}, {}, {"caption": "Rotkatze, rot"}]
    rows.append({"caption": "other", "captions": json.dumps(entries)})
    found = [row["rule"] for row in apply_rules(setting, *rows)]
    assert found == ["blocked_domain", "blocked_url", "blocked_phrase", None, "blocked_phrase"]


def test_personal_data_leaves_captions_and_ledger() -> None:
    entries = [{"text": "ruf an: Tel. 030 901820, es lohnt sich", "language": "de"}]
    row = {"caption": f"{CAPTION}, anna@example.de", "captions": json.dumps(entries)}
    (found,) = apply_rules(LinkRuleSettings(), row)
    assert found["rule"] is None and found["caption"] == f"{CAPTION}, <email>"
    assert json.loads(found["captions"])[0]["text"] == "ruf an: Tel. <phone>, es lohnt sich"
    assert "anna" not in json.dumps([value for value in found.values() if isinstance(value, str)])
    assert [item["kind"] for item in json.loads(found["evidence"])["personal_data"]] == ["email", "phone"]
    (found,) = apply_rules(LinkRuleSettings(personal_data={"phone": "drop"}), row)
    assert (found["rule"], found["value"]) == ("personal_data", "phone") and "901820" not in found["evidence"]


def test_languages_to_keep() -> None:
    entries = [
        {"text": "Le chat rouge dort sur le vieux canapé du jardin", "language": "und"},
        {"text": "A red cat sleeps on the old sofa", "language": "en"},
    ]
    rows: list[dict[str, Any]] = [
        {},
        {"caption": "Le chat rouge dort sur le vieux canapé du jardin"},
        {"caption": "xx 17", "language": "fr"},
        {"captions": json.dumps(entries)},
    ]
    assert [row["language"] for row in apply_rules(LinkRuleSettings(), *rows)][:2] == ["de", "fr"]
    found = apply_rules(LinkRuleSettings(keep_languages=["fr"]), *rows)
    assert [row["rule"] for row in found][:2] == ["language", None] and found[0]["value"] == "de"
    assert [entry["language"] for entry in json.loads(found[3]["captions"])] == ["fr"] and found[3]["rule"] is None


def test_each_rule_counts_its_rows() -> None:
    rules = LinkRules(LinkRuleSettings())
    table = pa.table({"url": ["ftp://a.example/", "https://a.example/"], "caption": [CAPTION, CAPTION]})
    _, cost = rules.apply(table)
    assert (cost["address"]["rows"], cost["address"]["dropped"], cost["language"]["rows"]) == (2, 1, 1)
    assert all(entry["cpu_seconds"] >= 0 for entry in cost.values())


def test_the_fingerprint_depends_on_the_content_of_lists(tmp_path: Path) -> None:
    path = tmp_path / "domains"
    path.write_text("a.example")
    setting = LinkRuleSettings(domain_lists=[str(path)])
    before = setting.identity()
    path.write_text("b.example")
    assert setting.identity() != before and json.dumps(before)
    with pytest.raises(UserError, match="missing"):
        LinkRuleSettings(domain_lists=[str(tmp_path / "missing")]).identity()
