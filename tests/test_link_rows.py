import json
from pathlib import Path

import pytest
from PIL import Image

from data_tools.links import link_rows
from data_tools.links.link_rows import LinkRows
from data_tools.links.link_sources import LinkSources
from leam_mm.data.ledger import link_uid
from leam_mm.errors import UserError

TABLE = """url,caption,legal_basis,captions,page_url
http://a.example/1.png,one,licensed,,http://a.example/
file:///etc/passwd,two,,,
http://10.0.0.1/x.png,three,,,
http://b.example/4.png,,,,
http://b.example/5.png,five,,[1,
http://own.example/6.png,six,,,
"""


@pytest.fixture()
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(link_rows, "BATCH", 2)  # several batches
    (tmp_path / "links.csv").write_text(TABLE)
    return tmp_path / "links.csv"


def test_rows_come_in_the_order_of_the_table(table: Path) -> None:
    rows = LinkRows(table, None, False, ["own.example"])
    found = list(rows)
    assert [row.number for row in found] == list(range(6)) == [int(row.decision["key"]) for row in found]
    assert [row.decision.get("rule") for row in found] == [
        None,
        "scheme",
        "private_address",
        "caption",
        "captions",
        None,
    ]
    assert [bool(row.fetch) for row in found] == [True, False, False, False, False, True]
    assert all(row.fetch or row.decision["reason"] for row in found)
    assert found[0].decision["uid"] == link_uid("http://a.example/1.png", "http://a.example/", "one")
    assert found[0].decision["legal_basis"] == "art4_general" and found[0].decision["domain"] == "a.example"
    assert json.loads(found[0].source["consent"] or "") == {"claims": {"legal_basis": "licensed"}}
    trusted = next(iter(LinkRows(table, None, False, [], trusted=True)))
    assert trusted.decision["legal_basis"] == "licensed" and not trusted.source.get("consent")
    assert list(rows)[3].decision == found[3].decision  # every iteration is the same


def test_the_survey_counts_and_names_a_stranger(table: Path) -> None:
    survey = LinkRows(table, None, False, ["own.example"]).survey
    assert (survey.rows, survey.fetch, survey.foreign_host) == (6, 2, "a.example")
    assert LinkRows(table, None, False, ["own.example", "a.example"]).survey.foreign_host is None


def test_the_digest_changes_with_any_value(table: Path) -> None:
    def digest(text: str) -> str:
        table.write_text(text)
        return LinkRows(table, None, False, []).survey.digest

    same = digest(TABLE)
    assert digest(TABLE) == same
    others = [TABLE.replace("six", "sex"), TABLE.replace("one,licensed", "one,"), TABLE + "http://c.example/,c,,,\n"]
    assert len({same, *map(digest, others)}) == 4


def test_a_folder_is_a_table_of_files(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("text")
    (row,) = LinkRows(None, tmp_path, False, [])
    assert row.fetch == (tmp_path / "a.png").as_uri() and row.decision["url"] == "file:a.png"


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "links.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no row"):
        LinkRows(tmp_path / "links.jsonl", None, False, [])


def test_sources_decide_and_pages_that_reserve_are_heard(tmp_path: Path) -> None:
    """The column of a table lifts nothing by itself; entries of the sources and trusted tables do."""
    (tmp_path / "sources.yaml").write_text(
        "sources: [{domain: '*.museum.example', basis: licensed, licence: contract 7}]\ntrust_tables: [own.jsonl]\n"
    )
    rights = json.dumps({"page_rights": [{"kind": "meta:robots", "value": "noai", "source": "x", "reserved": True}]})
    hosts = ("img.museum.example", "a.example", "a.example", "a.example")
    bases = (None, "public_domain", "art3_research", "fair_use")
    lines = [
        json.dumps({"url": f"https://{host}/{n}.png", "caption": "x", "legal_basis": basis, "consent": rights})
        for n, (host, basis) in enumerate(zip(hosts, bases, strict=True))
    ]
    (tmp_path / "links.jsonl").write_text("\n".join(lines))
    sources = LinkSources(tmp_path / "sources.yaml")
    table = tmp_path / "links.jsonl"
    rows = LinkRows(table, None, False, [], sources=sources, trusted=sources.trusts(table))
    assert [row.decision.get("rule") for row in rows] == [None, "page_rights", "page_rights", "page_rights"]
    assert next(iter(rows)).decision["licence"] == "contract 7" and rows.survey.agreed == ("img.museum.example",)
    own = table.rename(tmp_path / "own.jsonl")
    rows = LinkRows(own, None, False, [], sources=sources, trusted=sources.trusts(own))
    assert [row.decision.get("rule") for row in rows] == [None, None, None, "page_rights"]


def test_terms_to_which_a_page_links_are_read_by_screening_alone(tmp_path: Path) -> None:
    consent = json.dumps({"page_terms": ["https://a.example/license.xml"]})
    row = {"url": "https://a.example/1.png", "caption": "x", "consent": consent}
    (tmp_path / "links.jsonl").write_text(json.dumps(row))
    for trusted, rule in ((False, "page_rights"), (True, None)):
        (found,) = LinkRows(tmp_path / "links.jsonl", None, False, [], trusted=trusted)
        assert found.decision.get("rule") == rule
