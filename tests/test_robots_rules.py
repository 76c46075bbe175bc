"""rights/robots_rules.py and opt_out_registry.py: every case of rights_cases.yaml, with limits, times and visits."""

import gzip
import hashlib
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.network.image_fetch import FetchSetting
from data_tools.rights.opt_out_registry import OptOutRegistry
from data_tools.rights.robots_rules import AI_TXT, MOST_BYTES, ROBOTS, TDMREP, TRUST_TXT, RobotsRules
from leam_mm.data.legal_basis import LegalBasis
from leam_mm.errors import UserError

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
from reservation_conformance import our_faults, program_faults
from rights_server import HOST, PRIVATE, Case, RightsServer, read_cases

ART4 = LegalBasis.art4_general
FILES = (ROBOTS, TDMREP, AI_TXT, *TRUST_TXT)
CLOSED = "User-agent: *\nDisallow: /\n"


def rules(
    cache: Path, agent: str = "LeamBot", now: Callable[[], float] = time.time, limit: float = 20.0, **more: Any
) -> RobotsRules:
    setting = FetchSetting(
        "", "", agent, "https://lab.example", allow_private=[HOST], timeout=limit, image_seconds=limit
    )
    return RobotsRules(setting, cache, now=now, **more)


def paths(case: Case) -> list[str]:
    return sorted(path for path, _ in case.asked)


def test_every_case_is_decided_by_its_rule(tmp_path: Path) -> None:
    cases = read_cases()
    with RightsServer(cases):
        assert our_faults(cases, tmp_path) == []
    assert len(cases) > 260 and sum("refused" in case.row for case in cases) > 160
    unasked = {"meta", "page_headers", "agreed", "registry", "rsl_inline"}
    assert all(paths(case) for case in cases if case.row.get("asked", True) and not unasked & case.row.keys())


@pytest.mark.slow
def test_the_programs_decide_every_case(tmp_path: Path) -> None:
    cases = read_cases()
    with RightsServer(cases):
        assert program_faults(cases, tmp_path) == []


def test_a_wrong_decision_is_noticed(tmp_path: Path) -> None:
    """The benchmark itself: a case with the opposite expectation is reported as a fault."""
    cases = [case for case in read_cases() if case.row["name"] in ("silence", "noai", "robots.txt refuses all")]
    for case in cases:
        case.row["refused"] = "" if case.row.get("refused") else "robots.txt"
    with RightsServer(cases):
        faults = our_faults(cases, tmp_path)
    assert {fault.partition(": ")[0] for fault in faults} == {case.row["name"] for case in cases}
    assert any("the image was asked for" in fault for fault in faults)


def test_an_origin_is_asked_once_by_all_threads_and_runs(tmp_path: Path) -> None:
    case = Case({"robots": "User-agent: *\nDisallow: /no\nCrawl-delay: 2"})
    with RightsServer([case]):
        base = case.url.removesuffix("/image.png")
        first = rules(tmp_path / "origins.jsonl")
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda n: first.decide(f"{base}/{'no' if n % 2 else 'yes'}{n}", ART4)[0], range(40)))
        assert [signal is not None for signal in found] == [bool(n % 2) for n in range(40)]
        second = rules(tmp_path / "origins.jsonl")
        assert second.decide(base + "/no", ART4)[0] and second.crawl_delay(base) == 2.0
        assert paths(case) == sorted(FILES)
        assert rules(tmp_path / "origins.jsonl", "OtherBot").decide(base + "/yes", ART4)[0] is None
        assert len(case.asked) == 2 * len(FILES) and {agent for _, agent in case.asked[len(FILES) :]} == {
            "OtherBot (+https://lab.example)"
        }


@pytest.mark.parametrize(("robots", "holds"), [(CLOSED, 24 * 3600), ({"status": 500}, 3600)])
def test_answers_hold_a_day_and_failures_an_hour(tmp_path: Path, robots: Any, holds: int) -> None:
    case, clock = Case({"robots": robots}), [1_000_000.0]
    with RightsServer([case]):
        ours = rules(tmp_path / "origins.jsonl", now=lambda: clock[0])
        for seconds, asked in (
            (0, 1),
            (holds - 1, 1),
            (holds, 2),
            (0, 3),
        ):  # the last: clock set back
            clock[0] = 1_000_000.0 + seconds
            assert ours.decide(case.url, ART4)[0] is not None
            assert len(case.asked) == asked * len(FILES)


def test_evidence_holds_the_answers(tmp_path: Path) -> None:
    case = Case({"robots": {"to": "/r/1", "body": CLOSED}, "tdmrep": {"status": 500}})
    with RightsServer([case]):
        ours = rules(tmp_path / "origins.jsonl")
        base = case.url.removesuffix("/image.png")
        found = ours.evidence(case.url)
        assert found[ROBOTS] == {
            **{"status": 200, "url": base + "/r/0", "redirects": 2, "bytes": len(CLOSED)},
            "sha256": hashlib.sha256(CLOSED.encode()).hexdigest(),
        }
        assert found[TDMREP] == {"status": 500, "url": base + TDMREP} and found[AI_TXT]["status"] == 404
    (line,) = (tmp_path / "origins.jsonl").read_text().splitlines()
    assert json.loads(line)["files"][ROBOTS]["text"] == CLOSED
    assert json.loads(line)["agent"] == "LeamBot (+https://lab.example)"


def test_a_truncated_or_shared_file_is_continued(tmp_path: Path) -> None:
    cases = [Case({"robots": CLOSED}) for _ in range(3)]
    cache = tmp_path / "origins.jsonl"
    with RightsServer(cases):
        first, second = rules(cache), rules(cache)
        assert first.decide(cases[0].url, ART4)[0]
        with open(cache, "a") as file:
            file.write('{"origin": "http://killed.exam')
        assert second.decide(cases[0].url, ART4)[0] and second.decide(cases[1].url, ART4)[0]
        assert first.decide(cases[1].url, ART4)[0] and first.decide(cases[2].url, ART4)[0]
        assert rules(cache).decide(cases[2].url, ART4)[0]
        assert [len(case.asked) for case in cases] == [len(FILES)] * 3


def test_private_addresses_are_not_requested(tmp_path: Path) -> None:
    case = Case({"robots": {"to": "http://127.0.0.2:9/", "body": ""}})
    with RightsServer([case]):
        ours = rules(tmp_path / "origins.jsonl")
        for url in (case.url, f"http://{PRIVATE}:{case.url.split(':')[2]}", "http://user:pw@site.example/x"):
            forbids, _ = ours.decide(url, LegalBasis.public_domain)
            assert forbids is not None and forbids.value == "no answer"
        assert "loopback" in ours.evidence(case.url)[ROBOTS]["error"]
        assert ours.evidence(case.url)[TDMREP] == {"status": None, "error": "not asked"}
        assert paths(case) == [ROBOTS]
        assert ours.decide("file:/etc/hostname", ART4) == (None, [])


def test_at_most_500_kib_are_read(tmp_path: Path) -> None:
    long = Case({"robots": {"pad": MOST_BYTES, "body": CLOSED}})
    with RightsServer([long]):
        ours = rules(tmp_path / "origins.jsonl")
        assert ours.decide(long.url, ART4)[0] is None
        found = ours.evidence(long.url)[ROBOTS]
        assert found["cut"] and MOST_BYTES - 80 < found["bytes"] <= MOST_BYTES


def test_a_truncated_or_slow_body_refuses(tmp_path: Path) -> None:
    short = Case({"robots": {"body": "User-agent: *\nAllow: /", "headers": ["Content-Length: 4000"]}})
    drips = [Case({"robots": {"body": CLOSED * 100, "drip": seconds}}) for seconds in (0.05, 0.002)]
    with RightsServer([short, *drips]):
        ours = rules(tmp_path / "origins.jsonl", limit=1.0)
        start = time.monotonic()
        for case in (short, *drips):
            forbids, _ = ours.decide(case.url, ART4)
            assert forbids is not None and forbids.value == "no answer"
        assert time.monotonic() - start < 6


def test_compressed_answers_are_read_up_to_the_limit(tmp_path: Path) -> None:
    header = ["Content-Encoding: gzip"]
    plain = Case({"robots": {"latin": gzip.compress(CLOSED.encode()).decode("latin-1"), "headers": header}})
    bomb = Case({"robots": {"latin": gzip.compress(b"#" * 50_000_000).decode("latin-1"), "headers": header}})
    with RightsServer([plain, bomb]):
        ours = rules(tmp_path / "origins.jsonl")
        assert ours.decide(plain.url, ART4)[0].value == "*: Disallow: /"  # type: ignore[union-attr]
        assert ours.decide(bomb.url, ART4)[0].value == "no answer"  # type: ignore[union-attr]
        assert "too many bytes" in ours.evidence(bomb.url)[ROBOTS]["error"]


def test_agreements_override_robots_txt_on_the_hosts_they_name(tmp_path: Path) -> None:
    case = Case({"robots": CLOSED})
    with RightsServer([case]):
        ours = rules(tmp_path / "origins.jsonl", agreed_hosts=[HOST])
        forbids, (signal,) = ours.decide(case.url, LegalBasis.licensed)
        assert forbids is None and signal.kind == "agreement" and not case.asked
        assert ours.decide(case.url, LegalBasis.art3_research)[0] is not None


def test_registries_of_all_formats(tmp_path: Path) -> None:
    url = "https://www.artist.example/works/1.jpg?big"
    digests = [hashlib.new(kind, url.encode()).hexdigest() for kind in ("sha256", "md5")]
    entries = ["# domains", "other.example", "*.photo.example", "https://press.example/images/", digests[0].upper()]
    (tmp_path / "a.txt").write_text("\n".join([*entries, "bücher.example", "", "x.example # why"]))
    found = OptOutRegistry(tmp_path / "a.txt")
    assert found.find(url) == f"sha256 {digests[0]}"
    assert (
        found.find("http://PHOTO.example:8080/x") == found.find("https://a.b.photo.example/") == "domain photo.example"
    )
    assert found.find("http://press.example/images/7.png") == "address press.example/images/"
    assert found.find("https://xn--bcher-kva.example/") == "domain xn--bcher-kva.example"
    # However a link is spelled, it is that of the entry.
    for other in (
        "http://press.example//images/7.png",
        "https://press.example/%2Fimages/7.png",
        "https://press.example/images;x/7.png",
    ):
        assert found.find(other) == "address press.example/images/"
    for other in (
        "http://www.artist.example//works/1.jpg?big&utm_source=x",
        "https://WWW.artist.example:443/works/1.jpg?big#top",
    ):
        assert found.find(other) == f"sha256 {digests[0]}"
    for free in (
        "https://press.example/image",
        "https://notother.example/",
        "https://artist.example/",
        "http://[::1/",
        "",
    ):
        assert found.find(free) is None
    (tmp_path / "b.csv").write_text(f"comment,md5\nhello,{digests[1]}\n,{'0' * 32}\n")
    assert OptOutRegistry(tmp_path / "b.csv").find(url) == f"md5 {digests[1]}"
    pq.write_table(pa.table({"domain": ["artist.example", None], "n": [1, 2]}), tmp_path / "c.parquet")
    assert OptOutRegistry(tmp_path / "c.parquet").find(url) == "domain artist.example"
    assert (
        hashlib.sha256((tmp_path / "c.parquet").read_bytes()).hexdigest() in OptOutRegistry(tmp_path / "c.parquet").name
    )


def test_unreadable_registries_are_refused(tmp_path: Path) -> None:
    for name, content, message in (
        ("a.txt", b"example.org\nno domain at all\n", "entry 2 is 'no domain at all'"),
        ("b.txt", b"# nothing\n", "holds no entry"),
        ("c.csv", b"name,value\n1,2\n", "none of the columns entry"),
        ("d.parquet", b"no parquet", "cannot be read"),
        ("e.json", b"[]", "ending '.json'"),
        ("f.txt", b"\xff\xfe", "cannot be read"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            OptOutRegistry(tmp_path / name)
    with pytest.raises(UserError, match="cannot be read"):
        OptOutRegistry(tmp_path / "missing.txt")
