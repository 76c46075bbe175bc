import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toys.servers import Server

from data_tools.download.download_worker import FETCHED, LINKS, Part, PartDownloader, part_file
from data_tools.network.image_fetch import FetchSetting


def fetch(server: Server, tmp_path: Path, paths: list[str], basis: str = "", **more: object) -> list[dict]:
    """Fetch one part in this process and give its rows in the order of the table."""
    (tmp_path / "raw").mkdir(exist_ok=True)
    setting = FetchSetting(
        **{"links": str(tmp_path / "links"), "output": str(tmp_path / "raw"), "agent_name": "LeamBot"}  # type: ignore[arg-type]
        | {"agent_contact": "", "allow_private": ["127.0.0.1"], "timeout": 2, "threads": 8, "ask_origins": "none"}
        | more
    )
    rows = [{"part": 7, "row": i, "url": f"{server.url}{path}", "legal_basis": basis} for i, path in enumerate(paths)]
    Part(setting, pa.Table.from_pylist(rows, LINKS)).fetch()
    found = pq.read_table(part_file(tmp_path / "raw", 7))
    assert found.schema == FETCHED and [path.name for path in (tmp_path / "raw").iterdir()] == ["00007.parquet"]
    return sorted(found.to_pylist(), key=lambda row: row["row"])


def test_rows_come_back_with_bytes_reasons_and_evidence(server: Server, tmp_path: Path) -> None:
    server.answers["/a"] = (200, {"Content-Type": "image/png"}, b"image")
    server.answers["/b"] = (200, {"X-Robots-Tag": "noai"}, b"image")
    good, refused, gone = fetch(server, tmp_path, ["/a", "/b", "/c"])
    assert good["content"] == b"image" and good["rule"] == "" and len(good["sha256"]) == 64
    assert json.loads(good["response"])["content_type"] == "image/png"
    assert json.loads(good["visit"])["attempts"] == 1 and good["fetched_at"].startswith("20")
    assert (refused["rule"], refused["content"], refused["sha256"]) == ("reservation", None, None)
    assert (gone["rule"], gone["value"]) == ("download", "status 404")
    (allowed,) = fetch(server, tmp_path, ["/b"], basis="art3_research")
    assert allowed["content"] == b"image" and "noai" in allowed["response"]


def test_a_busy_host_is_paused_and_asked_again(server: Server, tmp_path: Path) -> None:
    server.answers["/a"] = (503, {"Retry-After": "1"}, b"")

    class Healing(dict):
        def get(self, path: str, default: object = None) -> object:
            answer = super().get(path, default)
            self[path] = (200, {}, b"image")
            return answer

    server.answers = Healing(server.answers)
    begin = time.monotonic()
    (row,) = fetch(server, tmp_path, ["/a"], retries=1)
    assert row["content"] == b"image" and json.loads(row["visit"])["attempts"] == 2
    assert 0.9 < time.monotonic() - begin < 15 and server.requests == ["/a", "/a"]


def test_a_host_that_asks_for_a_long_pause_is_not_asked_again(server: Server, tmp_path: Path) -> None:
    for number in range(20):
        server.answers[f"/{number}"] = (429, {"Retry-After": "86400"}, b"")
    rows = fetch(server, tmp_path, [f"/{number}" for number in range(20)], threads=1, retries=3)
    assert {row["rule"] for row in rows} == {"download"} and len(server.requests) == 1
    assert {row["value"] for row in rows} == {"patience"} and "to be left alone" in rows[5]["reason"]


def test_a_part_ends_in_time_and_within_its_bytes(server: Server, tmp_path: Path) -> None:
    server.answers["/drip"] = (200, {"Content-Length": "500"}, b"")
    for number in range(4):
        server.answers[f"/{number}"] = (200, {}, bytes(1000))
    begin = time.monotonic()
    rows = fetch(server, tmp_path, ["/drip", "/0"], part_seconds=0.7, image_seconds=30.0, timeout=30)
    assert time.monotonic() - begin < 15
    assert [row["value"] for row in rows] == ["part_seconds", ""]
    rows = fetch(server, tmp_path, [f"/{number}" for number in range(4)], part_bytes=2500)
    assert sorted(row["value"] for row in rows) == ["", "", "part_bytes", "part_bytes"]


def test_requests_to_a_host_keep_their_delay(server: Server, tmp_path: Path) -> None:
    server.answers |= {f"/{number}": (200, {}, b"x") for number in range(4)}
    begin = time.monotonic()
    fetch(server, tmp_path, [f"/{number}" for number in range(4)], delay_per_host=0.2, spare_private=True)
    assert time.monotonic() - begin > 0.55


def test_strangers_origins_are_asked_first(server: Server, tmp_path: Path) -> None:
    server.answers["/robots.txt"] = (200, {}, b"User-agent: *\nDisallow: /b\n")
    server.answers |= {path: (200, {}, b"x") for path in ("/a", "/b")}
    allowed, refused = fetch(
        server, tmp_path, ["/a", "/b"], basis="art3_research", ask_origins="all", spare_private=True, delay_per_host=0.0
    )
    assert allowed["content"] == b"x" and (refused["rule"], refused["content"]) == ("robots.txt", None)
    assert server.requests.count("/robots.txt") == 1 and "/b" not in server.requests


def test_a_crawl_delay_is_kept_from_the_first_request_on(server: Server, tmp_path: Path) -> None:
    server.answers["/robots.txt"] = (200, {}, b"User-agent: *\nCrawl-delay: 0.3\n")
    server.answers |= {path: (200, {}, b"x") for path in ("/a", "/b", "/c")}
    begin = time.monotonic()
    fetch(server, tmp_path, ["/a", "/b", "/c"], spare_private=True, ask_origins="all", threads=1, delay_per_host=0.0)
    assert 0.55 < time.monotonic() - begin < 15


def test_a_part_that_cannot_be_written_is_reported_to_the_distributor(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    setting = FetchSetting(
        str(tmp_path / "links"), str(tmp_path / "absent"), "LeamBot", "", allow_private=["127.0.0.1"]
    )
    table = pa.Table.from_pylist([{"part": 0, "row": 0, "url": f"{server.url}/a", "legal_basis": None}], LINKS)
    with pa.ipc.new_file(str(tmp_path / "0.feather"), table.schema) as writer:
        writer.write_table(table)
    task = (0, str(tmp_path / "0.feather"))
    assert PartDownloader(setting, resizer=None)(task) == (False, task)
    assert (tmp_path / "0.feather").exists() and "Traceback" in capfd.readouterr().err
    (tmp_path / "absent").mkdir()
    assert PartDownloader(setting, resizer=None)(task) == (True, task)
    assert not (tmp_path / "0.feather").exists() and part_file(tmp_path / "absent", 0).exists()
