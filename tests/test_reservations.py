"""data_tools/rights/reservations.py and its grammar: identities and limits that rights_cases.yaml does not show."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from data_tools.rights.reservation_grammar import path_matches, tdm_rules, usage_refusals
from data_tools.rights.reservations import (
    Signal,
    ai_txt_signals,
    decide,
    header_signals,
    meta_signals,
    robots_delay,
    robots_signals,
    tdmrep_signals,
)
from leam_mm.data.legal_basis import LegalBasis

URL, AGENT = "https://site.example/a/b.jpg?x=1", "LeamBot"
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
LONG = 60_000


def headers(*lines: tuple[str, str], fetched_at: datetime = NOW) -> list[Signal]:
    return header_signals(lines, AGENT, URL, fetched_at)


def test_a_signal_holds_the_deciding_words_and_their_source() -> None:
    (found,) = headers(("x-robots-tag", "googlebot: noindex, leambot: nosnippet, noai"))
    assert found == Signal("header:x-robots-tag", "leambot: noai", URL, True)
    (free,) = headers(("X-Robots-Tag", " googlebot: noindex "))
    assert (free.value, free.reserved) == ("googlebot: noindex", False)
    (tdm,) = headers(("TDM-Policy", "https://p.example/1"), ("TDM-Reservation", "1"))
    assert (tdm.value, tdm.reserved) == ("1 https://p.example/1", True)
    assert headers(("Content-Type", "image/png")) == []


def test_a_date_holds_from_its_exact_second() -> None:
    line = ("X-Robots-Tag", "unavailable_after: Sun, 22 Nov 2026 13:00:00 +0100")
    assert headers(line)[0].reserved
    assert headers(line)[0].value == "unavailable_after: 2026-11-22T13:00:00+01:00"
    assert not headers(line, fetched_at=NOW - timedelta(seconds=1))[0].reserved


def test_reservations_bind_article_four_and_access_rules_bind_all() -> None:
    noai, closed = Signal("header:x-robots-tag", "noai", URL, True), Signal("robots.txt", "*: Disallow: /", URL, True)
    free = Signal("robots.txt", "allowed", URL, False)
    for basis in LegalBasis:
        assert decide([free, noai], basis) == (noai if basis is LegalBasis.art4_general else None)
        assert decide([noai, closed], basis) is closed
        assert decide([free], basis) is None


def test_a_header_overrides_the_file_of_its_own_origin_only() -> None:
    file = tdmrep_signals('[{"location": "/", "tdm-reservation": 1}]', URL)
    assert decide(file, LegalBasis.art4_general) == file[0]
    assert decide(file + headers(("TDM-Reservation", "0")), LegalBasis.art4_general) is None
    unset = headers(("TDM-Reservation", "perhaps"))
    assert decide(file + unset, LegalBasis.art4_general) == file[0]
    elsewhere = header_signals([("TDM-Reservation", "0")], AGENT, "https://other.example/b.jpg", NOW)
    assert decide(file + elsewhere, LegalBasis.art4_general) == file[0]
    header = headers(("TDM-Reservation", "1"))
    assert decide(tdmrep_signals('[{"location": "/", "tdm-reservation": 0}]', URL) + header, LegalBasis.art4_general)


def test_meta_tags_have_no_agents_within_their_text() -> None:
    kinds = {
        (s.kind, s.value, s.reserved)
        for s in meta_signals([("Robots", "NoAI"), ("tdm-reservation", "1")], AGENT, URL, NOW)
    }
    assert kinds == {("meta:robots", "NoAI", True), ("meta:tdm-reservation", "1", True)}
    assert meta_signals([("googlebot", "noai"), ("description", "none")], AGENT, URL, NOW) == []
    assert meta_signals([("robots", "max-image-preview:large, noml")], AGENT, URL, NOW)[0].value == "noml"
    assert meta_signals([("Content-Usage", "train-ai=n")], AGENT, URL, NOW)[0].reserved


@pytest.mark.parametrize(
    ("pattern", "target", "covered"),
    [
        ("/a", "/abc", True),
        ("/a$", "/abc", False),
        ("/*.png$", "/x/y.png", True),
        ("/*.png$", "/x.png?y", False),
        ("/a*b*c", "/a-b-c-d", True),
        ("/a*b*c$", "/abcb", False),
        ("/*a*a$", "/a", False),
        ("*", "/", True),
        ("", "/x", True),
        ("/%7Ejoe", "/~joe/x", True),
        ("/caf\u00e9", "/caf%c3%a9", True),
        ("/a%2Fb", "/a/b", False),
        ("/a%2fb", "/a%2Fb", True),
        ("/path/foo-%24", "/path/foo-$", True),
        ("/A", "/a", False),
        ("/x?size=", "/x?size=3", True),
    ],
)
def test_paths(pattern: str, target: str, covered: bool) -> None:
    assert path_matches(pattern, target) is covered


def test_usage_dictionaries() -> None:
    """Examples of aipref-vocab-07, 6.5 and further ones; the last member of a name wins."""
    assert usage_refusals("train-ai=n") == ["train-ai=n"]
    for neutral in (
        'train-ai=y, train-ai, search=n, search="n"',
        "train-ai;allow=n, train-ai=y",
        "train-ai=?0",
        "",
    ):
        assert usage_refusals(neutral) == []
    assert usage_refusals('train-ai;has;parameters="?";') == []
    for refusal in ('="n"', "='n'", '="N"', " = 'No'", "=\u201cn\u201d", '=" n "', '="n";q=1', "=`n`", '": "n"'):
        for name in ("train-ai", "TRAIN-AI", "search=y, train-ai", "ai-train"):
            assert len(usage_refusals(name + refusal)) == 1, name + refusal
    for neutral in ('train-ai="y"', 'search="n"', "train-ai='nobody'", 'train-ai="n", train-ai=y', 'note="train-ai"'):
        assert usage_refusals(neutral) == []
    assert usage_refusals("a=(1 2);q=1.0, b=:AA==:, tdm=n ,search=y") == ["tdm=n"]
    assert usage_refusals("search=yes,ai-train=no,use=reference") == ["ai-train=no"]


def test_groups_of_robots_txt_apply_to_the_agents_they_name() -> None:
    own = "User-agent: leambot\nContent-Usage: /a/ train-ai=n\nCrawl-delay: 7\n\n"
    text = own + "User-agent: *\nDisallow: /\nCrawl-delay: 3\n"
    ours = robots_signals(text, 200, URL, AGENT)
    assert [(s.kind, s.reserved) for s in ours] == [("robots.txt", False), ("robots.txt:content-usage", True)]
    assert ours[1].value == "/a/ train-ai=n" and ours[1].source == "https://site.example/robots.txt"
    theirs = robots_signals(text, 200, URL, "OtherBot")
    assert [(s.value, s.reserved) for s in theirs] == [("*: Disallow: /", True)]
    assert (robots_delay(text, AGENT), robots_delay(text, "OtherBot"), robots_delay("", AGENT)) == (7.0, 3.0, None)
    above = robots_signals("Content-Signal: ai-train=no\nUser-agent: x\nDisallow: /", 200, URL, AGENT)
    assert [s.reserved for s in above] == [False, True]


def test_contradicting_rules_of_equal_paths_refuse() -> None:
    text = "User-agent: *\nContent-Usage: /a train-ai=y\nContent-Usage: /a train-ai=n\n"
    assert robots_signals(text, 200, URL, AGENT)[1].reserved


@pytest.mark.parametrize(("status", "reserved"), [(None, True), (500, True), (599, True), (404, False), (301, False)])
def test_answers_without_a_file(status: int | None, reserved: bool) -> None:
    (found,) = robots_signals(None, status, URL, AGENT)
    assert found.reserved is reserved and (str(status) in found.value or status is None)


def test_ai_txt_concerns_training_and_not_access() -> None:
    found = ai_txt_signals("User-Agent: *\nDisallow: *.jpg", URL, AGENT)
    assert found[0].kind == "ai.txt" and found[0].reserved
    assert decide(found, LegalBasis.art3_research) is None and decide(found, LegalBasis.art4_general)
    assert ai_txt_signals(None, URL) == [] and ai_txt_signals(" <html>", URL) == []


def test_tdm_files_of_unusual_forms() -> None:
    assert tdm_rules('{"location": "a/", "tdm-reservation": true}') == [("/a/", True, "1")]
    assert tdm_rules('[{"tdm-reservation": 1}, 7, null, {"location": "/x", "tdm-reservation": null}]') == [
        ("/", True, "1")
    ]
    assert tdm_rules('[{"location": "https://site.example/a", "tdm-reservation": 0}]') == [("/a", False, "0")]
    assert tdm_rules('[{"location": "/", "tdm-reservation": 0},]') == []
    assert tdm_rules('"text"') == tdm_rules("7") == tdm_rules("") == []


HOSTILE = ["a:" * LONG, "," * LONG, "unavailable_after:" * 4000, "leambot: " + "x" * LONG, "[" * LONG, "a;" * LONG]
HOSTILE += ['"' + "\\" * LONG, "train-ai" * 9000, "a=" + '"' * LONG, "\0" * LONG]
HOSTILE += ["Content-Usage: /" + "*a" * LONG + " train-ai=n", "Disallow: /" + "*a" * LONG + "$"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_take_little_time(text: str) -> None:
    start = time.process_time()
    headers(("X-Robots-Tag", text), ("Content-Usage", text), ("TDM-Reservation", text))
    meta_signals([("robots", text)], AGENT, URL, NOW)
    robots_signals("User-agent: *\n" + text, 200, URL + "a" * 2000, AGENT)
    ai_txt_signals(text, URL, AGENT)
    tdmrep_signals(text, URL)
    assert time.process_time() - start < 5
