import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from toys.images import encoded_image, two_coloured_image
from toys.servers import Server

from data_tools.download.image_request import Answer, ImageRequest
from data_tools.network.http_body import retry_after, unpack
from data_tools.network.image_fetch import FetchSetting, TooManyBytesError
from data_tools.rights.reservations import Signal
from leam_mm.data.legal_basis import LegalBasis, basis_of

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

ART4, ART3 = LegalBasis.art4_general, LegalBasis.art3_research


def ask(server: Server, path: str, basis: LegalBasis = ART4, **more: object) -> Answer:
    setting = FetchSetting("", "", "LeamBot", "", allow_private=["127.0.0.1"], timeout=2, **more)  # type: ignore[arg-type]
    return ImageRequest(setting).ask(f"{server.url}{path}", basis)


def test_evidence_of_a_good_answer(server: Server) -> None:
    image = encoded_image(two_coloured_image())
    server.answers["/a"] = (301, {"Location": "/b", "X-Robots-Tag": "otherbot: noai"}, b"")
    server.answers["/b"] = (200, {"Content-Type": "image/png", "ETag": '"x"', "TDM-Reservation": "0"}, image)
    answer = ask(server, "/a")
    assert answer.content == image and not answer.rule
    assert answer.response["hops"] == [
        {"url": f"{server.url}/a", "status": 301, "headers": [["x-robots-tag", "otherbot: noai"]]},
        {"url": f"{server.url}/b", "status": 200, "headers": [["tdm-reservation", "0"]]},
    ]
    assert answer.response["final_url"] == f"{server.url}/b"
    assert (answer.response["bytes"], answer.response["content_type"]) == (len(image), "image/png")
    assert [signal["reserved"] for signal in answer.response["signals"]] == [False, False]
    assert ["etag", '"x"'] in answer.visit["headers"] and 0 <= answer.visit["seconds"] < 2
    assert "date" not in str(answer.response)  # a second visit would find the very same


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Robots-Tag", "noai"),
        ("X-Robots-Tag", "none"),
        ("X-Robots-Tag", "googlebot: nofollow, leambot: noai"),
        ("X-Robots-Tag", "unavailable_after: 25 Jun 2010 15:00:00 PST, noimageai"),
        ("TDM-Reservation", "1"),
        ("Content-Usage", "train-ai=n"),
    ],
)
@pytest.mark.parametrize("hop", ["first", "last"])
def test_a_reservation_on_any_hop_binds_article_4_alone(hop: str, name: str, value: str, server: Server) -> None:
    said = {name: value}
    server.answers["/first"] = (302, {"Location": "/last"} | (said if hop == "first" else {}), b"")
    server.answers["/last"] = (200, said if hop == "last" else {}, b"image")
    refused = ask(server, "/first")
    assert refused.rule == "reservation" and refused.content is None and name.lower() in refused.value
    assert any(signal["reserved"] for signal in refused.response["signals"])
    assert server.requests == ["/first"] if hop == "first" else ["/first", "/last"]
    allowed = ask(server, "/first", ART3)
    assert allowed.content == b"image"  # and what was overridden stands in the evidence
    assert any(signal["reserved"] for signal in allowed.response["signals"])


def test_an_unknown_basis_counts_as_the_strictest() -> None:
    assert [basis_of(word) for word in (None, "", "no idea", " art4_general")] == [ART4] * 4
    assert basis_of("art3_research") is ART3 and basis_of("licensed") is LegalBasis.licensed


def test_origins_are_checked_before_each_hop(server: Server) -> None:
    other = f"http://127.0.0.1:{server.server_port}"
    setting = FetchSetting("", "", "LeamBot", "", allow_private=["127.0.0.1", "localhost"], timeout=2)
    asked: list[str] = []

    def judge(url: str, basis: LegalBasis) -> tuple[Signal | None, list[Signal]]:
        asked.append(url)
        said = Signal("robots.txt", "*: Disallow: /b", "http://127.0.0.1/robots.txt", url.endswith("/b"))
        return (said if said.reserved else None), [said]

    def walk(start: str, **more: object) -> Answer:
        asked.clear()
        changed = FetchSetting(**vars(setting) | more)
        return ImageRequest(changed, judge).ask(f"http://localhost:{server.server_port}{start}", ART3)

    server.answers["/a"] = (302, {"Location": f"{other}/b"}, b"")
    server.answers["/b"] = (200, {}, b"image")
    assert walk("/a").content == b"image" and asked == []  # both hosts are ours
    refused = walk("/a", spare_private=True)
    assert (refused.rule, refused.value) == ("robots.txt", "robots.txt: *: Disallow: /b")
    assert asked == [f"http://localhost:{server.server_port}/a", f"{other}/b"] and server.requests[-1] == "/a"
    refused = walk("/a", spare_private=True, ask_origins="redirects")
    assert refused.rule == "robots.txt" and asked == [f"{other}/b"]


def test_retry_after_is_read_in_both_forms() -> None:
    now = datetime(2026, 11, 1, 12, 0, 0, tzinfo=UTC).timestamp()
    assert retry_after("120", now) == 120.0
    assert retry_after("Sun, 01 Nov 2026 12:01:30 GMT", now) == 90.0
    assert retry_after("Sun, 01 Nov 2026 11:00:00 GMT", now) == 0.0
    assert retry_after("9" * 400, now) == 10**8
    assert [retry_after(text, now) for text in (None, "", "soon", "-5", "1e9", "²")] == [None] * 6


def test_temporary_failures(server: Server) -> None:
    for status in (204, 206, 304, 404, 410, 429, 500, 503):
        server.answers[f"/{status}"] = (status, {"Retry-After": "7"}, b"")
    answers = {status: ask(server, f"/{status}") for status in (204, 206, 304, 404, 410, 429, 500, 503)}
    assert {answer.rule for answer in answers.values()} == {"download"}
    assert [status for status, answer in answers.items() if answer.again] == [429, 500, 503]
    assert {status: answer.wait for status, answer in answers.items() if answer.busy} == {429: 7.0, 503: 7.0}
    assert answers[404].value == "status 404" and answers[404].reached
    server.shutdown()
    server.server_close()
    gone = ask(server, "/404")
    assert gone.again and not gone.reached and gone.rule == "download"


def test_compressed_bodies_are_decompressed_up_to_a_limit(server: Server) -> None:
    import gzip
    import zlib

    raw = zlib.compressobj(wbits=-15)
    packed = {
        "gzip": gzip.compress(b"abc"),
        "deflate": zlib.compress(b"abc"),
        "raw": raw.compress(b"abc") + raw.flush(),
    }
    assert {name: unpack(body, 10) for name, body in packed.items()} == dict.fromkeys(packed, b"abc")
    with pytest.raises(TooManyBytesError, match="over 1000"):
        unpack(gzip.compress(bytes(10_000_000)), 1000)
    for body in (packed["gzip"][:-5], b"", b"\x1f\x8bgarbage", b"plain"):
        with pytest.raises(ValueError, match="damaged"):
            unpack(body, 10)
    server.answers["/packed"] = (200, {"Content-Encoding": "gzip"}, gzip.compress(b"image" * 100))
    answer = ask(server, "/packed")
    assert answer.content == b"image" * 100 and answer.response["content_encoding"] == "gzip"


def test_hostile_answers_are_refused_in_time_with_their_reason() -> None:
    from concurrent.futures import ThreadPoolExecutor

    from hostile_server import HostileServer, network_cases

    hostile = HostileServer()
    cases = hostile.offer(range(1), lambda number: network_cases(number, hostile.port))
    limit = 1.5
    setting = FetchSetting(
        "", "", "LeamBot", "", allow_private=["127.0.0.1"], max_bytes=1_000_000, timeout=1, image_seconds=limit
    )
    request = ImageRequest(setting)

    def timed(url: str) -> tuple[Answer, float]:
        begin = time.monotonic()
        return request.ask(url, ART4), time.monotonic() - begin

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(timed, [url for url, _ in cases]))
    hostile.shutdown()
    hostile.server_close()
    assert len(cases) > 55
    for (_, case), (answer, seconds) in zip(cases, answers, strict=True):
        rule = answer.rule or "kept"
        # What is read as a whole is judged by the decoder later.
        assert rule in case.rules or (rule == "kept" and "decode" in case.rules), (case.name, answer)
        assert bool(answer.reason) == (rule != "kept") and "\n" not in answer.reason, case.name
        assert seconds < limit + 8, case.name
    reserved = next(
        answer
        for (_, case), (answer, _) in zip(cases, answers, strict=True)
        if "endless body" in case.name and "reserved" in case.name
    )
    assert "bytes" not in reserved.response  # its body was not read
