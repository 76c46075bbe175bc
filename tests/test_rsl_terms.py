"""rights/rsl_terms.py beyond the cases of rights_cases.yaml: hostile documents and links, and how often is fetched."""

import time
from pathlib import Path

import pytest
from toys.servers import Server

from data_tools.network.image_fetch import FetchSetting
from data_tools.rights.robots_rules import RobotsRules
from data_tools.rights.rsl_terms import (
    MOST_DOCUMENTS,
    document_link,
    file_signals,
    header_links,
    robots_links,
    rsl_signals,
)

IMAGE = "https://a.example/img/x.png"
REFUSAL = b"<rsl><content url='/'><license><prohibits>all</prohibits></license></content></rsl>"


def said(text: str, *targets: str) -> list[tuple[bool, str]]:
    found = rsl_signals(text, "page:rsl", "https://a.example/l.xml", targets or (IMAGE,))
    return [(signal.reserved, signal.value) for signal in found]


def test_a_signal_holds_the_deciding_words() -> None:
    licence = "<license><permits>search</permits><payment type='crawl'/></license>"
    text = f"<rsl><content url='/img/'>{licence}</content></rsl>"
    assert said(text) == [(True, "/img/: permits usage search, payment crawl")]
    assert said(text, "https://a.example/page", "https://a.example/img/y") == said(text)
    assert said(text, "https://b.example/", IMAGE) == []  # paths belong to the origin of the first address


@pytest.mark.parametrize(
    "text",
    [
        "<rsl>" + "<content url='/'>" * 20_000,
        "<rsl>" + "<a>" * 100_000,
        "<rsl>" + "<content url='/x'><license/></content>" * 2000 + "</rsl>",
        "<" * 400_000 + "<rsl ",
        "<rsl " + "a='b' " * 60_000 + "/>",
        "<!DOCTYPE r [" + "<!ENTITY a 'x'>" * 9000 + "]><rsl></rsl>",
        "<?xml version='1.0'?>" * 10_000 + "<rsl/>",
        "<rsl>" + "x" * 600_000,
    ],
)
def test_hostile_documents_take_little_time_and_reserve(text: str) -> None:
    begin = time.process_time()
    assert said(text) == [(True, "its terms cannot be read")]
    assert time.process_time() - begin < 2


def test_hostile_links_take_little_time() -> None:
    begin = time.process_time()
    assert header_links([("Link", "<a>;rel=" * 50_000)], IMAGE) == []
    many = [("Link", f"</{number}.xml>; rel=license") for number in range(50)]
    assert len(header_links(many, IMAGE)) == MOST_DOCUMENTS
    text = "User-agent: *\n" + "License: /l{}.xml\n" * 10_000
    assert robots_links(text, "LeamBot", IMAGE) == ["https://a.example/l{}.xml"]
    assert time.process_time() - begin < 2
    for target in ("file:///etc/passwd", "ftp://a.example/l.xml", "http://[", ""):
        assert document_link(target, "license", "application/rsl+xml", "") is None


def test_a_document_that_cannot_be_read_reserves() -> None:
    for status, text, reserved in ((200, "<html>", None), (404, None, None), (403, None, True), (None, None, True)):
        found = [signal.reserved for signal in file_signals(status, text, "header:rsl", "x", [IMAGE])]
        assert found == ([] if reserved is None else [reserved])


def test_a_document_is_fetched_once_and_kept_as_evidence(server: Server, tmp_path: Path) -> None:
    server.answers["/l.xml"] = (200, {"Content-Type": "application/rsl+xml"}, REFUSAL)
    setting = FetchSetting("", "", "LeamBot", "https://lab.example", allow_private=["127.0.0.1"], timeout=1)
    for _ in range(2):  # the second reads the file of the first
        rules = RobotsRules(setting, tmp_path / "answers.jsonl")
        for number in range(3):
            (signal,) = rules.terms(f"{server.url}/l.xml", "header:rsl", [f"{server.url}/{number}.png"])
            assert signal.reserved and signal.source == f"{server.url}/l.xml"
    assert server.requests == ["/l.xml"]
    assert REFUSAL.decode() in (tmp_path / "answers.jsonl").read_text()
