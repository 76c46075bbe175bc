import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import brotli
import psutil
import pyarrow.parquet as pq
import pytest
from toys.recipes import ROOT
from toys.warc import WarcFile

from data_tools.crawl_links import main
from data_tools.links.link_table import read_links
from data_tools.pages.crawl_jobs import CrawlJob, PageSettings, crawl_part, part_paths, run_jobs
from leam_mm.errors import UserError

PAGE = '<html lang="de"><title>Seite {n}</title><img src="/{n}.jpg" alt="Eine alte Kirche im Schnee"></html>'


def rows(folder: Path, name: str = "links.parquet") -> list[dict]:
    return pq.read_table(folder / name).to_pylist()


def crawl(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("warc") / "a.warc.gz"
    reserve = (
        '<meta name="robots" content="noai"><script type="application/ld+json">{"@type": "ImageObject", "contentUrl":'
    )
    zero = (
        ' "/z.jpg", "license": "https://creativecommons.org/publicdomain/zero/1.0/", "creditText": "Museum"}</script>'
    )
    with WarcFile(path) as file:
        file.add("https://a.example/1", PAGE.format(n=1))
        file.add(
            "https://a.example/free",
            '<script type="application/ld+json">{"@type": "ImageObject", "contentUrl":'
            + zero
            + '<html lang="en"><img src="z.jpg" alt="A map"><img src="y.jpg" alt="Another map">',
        )
        file.add(
            "https://a.example/both",
            reserve + zero + '<html lang="en"><img src="z.jpg" alt="A map">',
            headers=(("TDM-Reservation", "1"), ("TDM-Policy", "https://a.example/p")),
        )
        file.add(
            "https://a.example/gz", gzip.compress(PAGE.format(n=2).encode()), headers=(("Content-Encoding", "gzip"),)
        )
        file.add(
            "https://a.example/br", brotli.compress(PAGE.format(n=3).encode()), headers=(("Content-Encoding", "br"),)
        )
        file.add("https://a.example/plain", PAGE.format(n=4), headers=(("Content-Encoding", "gzip"),))
        file.add("https://a.example/broken", b"\x1f\x8bnothing", headers=(("Content-Encoding", "gzip"),))
        file.add("https://a.example/bomb", gzip.compress(b"<p>" * 3_000_000), headers=(("Content-Encoding", "gzip"),))
        file.add("https://a.example/large", b"<p>" * 1_000_000)
        file.add("https://a.example/strange", PAGE.format(n=5)[6:], headers=(("Content-Encoding", "rot13"),))
        file.add("https://a.example/404", PAGE.format(n=6), status="404 Not Found")
        file.add("https://a.example/a.jpg", b"\xff\xd8", kind="image/jpeg")
        file.add("file:///etc/passwd", PAGE.format(n=7))
        file.add("http://[::1", PAGE.format(n=8))
        file.add("https://a.example/empty", "")
        file.add("https://a.example/tags", "<i><form>" * 60_000)
        file.add("https://a.example/last", PAGE.format(n=9))
    return path


@pytest.fixture(scope="module")
def result(archive: Path) -> Path:
    crawl("--warc", archive, "--output", archive.parent / "out", "--processes", 1, "--source", "test")
    return archive.parent / "out"


def test_every_answer_has_its_row_in_the_ledger(result: Path) -> None:
    ledger = rows(result, "ledger.parquet")
    rules = {(row["url"] or "").rpartition("/")[2]: row["rule"] for row in ledger}
    assert len(ledger) == 17 and rules == {
        **dict.fromkeys(("1", "free", "both", "gz", "br", "plain", "last"), "read"),
        **{"broken": "page_encoding", "strange": "page_encoding", "bomb": "page_size", "large": "page_size"},
        **{"404": "page_status", "a.jpg": "page_type", "passwd": "page_address", "[::1": "page_address"},
        **{"empty": "page_empty", "tags": "page_size"},
    }
    assert all(row["kept"] == (row["rule"] == "read") and (row["kept"] or row["reason"]) for row in ledger)
    assert all(row["fetched_at"] == "2026-01-02T03:04:05+00:00" and row["stage"] == "crawl_links" for row in ledger)
    assert [row["url"].rpartition("/")[2] for row in rows(result)] == [
        *("1.jpg", "z.jpg", "y.jpg", "z.jpg", "2.jpg", "3.jpg", "4.jpg", "9.jpg")
    ]
    summary = json.loads((result / "summary.json").read_text())
    assert summary["pages"]["read"] == 7 and sum(summary["links"].values()) == 8
    assert summary["reserving_pages"] == {"header:tdm-reservation": 1, "meta:robots": 1}


def test_rows_are_those_of_a_table_of_links(result: Path) -> None:
    table = read_links(result / "links.parquet")
    first, free, other, both = table.to_pylist()[:4]
    assert first["caption"] == "Eine alte Kirche im Schnee" and first["page_url"] == "https://a.example/1"
    assert first["language"] == "de" and first["licence"] is first["legal_basis"] is None
    assert json.loads(first["captions"]) == [
        {"text": first["caption"], "language": "de", "source": "alt", "machine_translated": False}
    ]
    assert json.loads(first["metadata"]) == {"page_language_by": "html", "page_title": "Seite 1"}
    assert (free["licence"], free["legal_basis"], free["attribution"]) == ("CC0-1.0", "public_domain", "Museum")
    assert other["licence"] is other["legal_basis"] is None
    assert both["licence"] == "CC0-1.0" and both["legal_basis"] is None
    rights = json.loads(both["consent"])["page_rights"]
    assert {(one["kind"], one["reserved"]) for one in rights} == {
        ("meta:robots", True),
        ("header:tdm-reservation", True),
    }
    assert json.loads(both["consent"])["page"]["archive"] == "a.warc.gz"


def test_compressions_processes_and_runs_give_the_same_bytes(archive: Path, tmp_path: Path) -> None:
    for name in ("b.warc", "c.warc.zst"):
        with WarcFile(tmp_path / name) as file:
            for number in range(10):
                file.add(f"https://{name}.example/{number}", PAGE.format(n=number))
    given = [archive, tmp_path / "b.warc", tmp_path / "c.warc.zst"]
    for processes in (1, 2):
        crawl("--warc", *given, "--output", tmp_path / f"out{processes}", "--processes", processes)
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2")
    assert len(rows(tmp_path / "out1")) == 28 and not (tmp_path / "out1.work").exists()


def test_a_broken_archive_gives_what_can_be_read_and_an_error(archive: Path, tmp_path: Path) -> None:
    content = archive.read_bytes()
    (tmp_path / "torn.warc.gz").write_bytes(content[:900] + b"garbage" * 30 + content[1100:])
    (tmp_path / "none.warc.gz").write_bytes(b"hello")
    given = ("--warc", tmp_path, "--processes", 1)
    with pytest.raises(UserError, match="2 archives could not be read to their end"):
        crawl(*given, "--output", tmp_path / "out")
    broken = [row for row in rows(tmp_path / "out", "ledger.parquet") if row["rule"] == "broken_archive"]
    assert len(broken) == 2 and all(row["reason"] for row in broken)


def test_folder_of_html(tmp_path: Path) -> None:
    (tmp_path / "site" / "sub").mkdir(parents=True)
    (tmp_path / "site" / "sub" / "a b.html").write_text(PAGE.format(n=1))
    (tmp_path / "site" / "index.htm").write_text(PAGE.format(n=2))
    (tmp_path / "outside.html").write_text(PAGE.format(n=3))
    (tmp_path / "site" / "link.html").symlink_to(tmp_path / "outside.html")
    crawl("--html", tmp_path / "site", "--base-url", "https://m.example/x/", "--output", tmp_path / "out")
    found = {row["page_url"]: row["url"] for row in rows(tmp_path / "out")}
    assert found == {
        "https://m.example/x/index.htm": "https://m.example/2.jpg",
        "https://m.example/x/sub/a%20b.html": "https://m.example/1.jpg",
    }


def test_another_setting_is_refused_in_the_same_work_folder(archive: Path, tmp_path: Path) -> None:
    work = tmp_path / "out.work"
    work.mkdir()
    (work / "fingerprint.json").write_text(json.dumps({"settings": {"agent": "other"}, "archives": []}))
    with pytest.raises(UserError, match="started with another agent"):
        crawl("--warc", archive, "--output", tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "either --warc FILES or --html"),
        (("--warc", "missing.warc"), "not a file"),
        (("--html", "missing", "--base-url", "https://a.example"), "not a folder"),
        (("--html", "missing"), "--base-url"),
        (("--warc", "a", "--page-seconds", "0"), "more than 0"),
    ],
)
def test_wrong_commands(arguments: tuple[str, ...], word: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=word):
        crawl(*arguments, "--output", tmp_path / "out")


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_bytes(tmp_path: Path) -> None:
    for number in range(4):
        with WarcFile(tmp_path / f"{number}.warc.gz") as file:
            for page in range(400):
                file.add(f"https://{number}.example/{page}", PAGE.format(n=page))
    command = [sys.executable, str(ROOT / "data_tools" / "crawl_links.py"), "--warc", str(tmp_path), "--processes", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "--output", str(tmp_path / "whole")], env=environment, check=True, capture_output=True)
    killed = 0
    for attempt in range(20):
        child = subprocess.Popen(
            [*command, "--output", str(tmp_path / "killed")],
            env=environment,
            stdout=-3,
            stderr=-3,
            start_new_session=True,
        )
        time.sleep(1.5 + 0.35 * attempt)
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
            killed += 1
        child.wait()
        if (tmp_path / "killed").exists():
            break
    assert killed
    subprocess.run([*command, "--output", str(tmp_path / "killed")], env=environment, check=False, capture_output=True)
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")


@pytest.fixture
def slow(tmp_path: Path) -> CrawlJob:
    attributes = " ".join(f"a{number}=1" for number in range(150_000))  # the parser compares each with each
    with WarcFile(tmp_path / "slow.warc") as file:
        file.add("https://a.example/1", PAGE.format(n=1))
        file.add("https://a.example/slow", f"<div {attributes}>")
        file.add("https://a.example/2", PAGE.format(n=2))
    (tmp_path / "work").mkdir()
    return CrawlJob(0, tmp_path / "slow.warc")


def page_rules(work: Path) -> list[tuple[str, str]]:
    rows = pq.read_table(part_paths(work, 0)[1]).to_pylist()
    return [(row["rule"], row["value"]) for row in rows]


@pytest.mark.slow
def test_a_page_that_holds_up_its_process_is_skipped(slow: CrawlJob, tmp_path: Path) -> None:
    run_jobs(tmp_path / "work", PageSettings("leam_mm"), [slow], 1, 3.0)
    assert page_rules(tmp_path / "work") == [
        ("read", "1 links"),
        ("page_crash", "longer than 3 s"),
        ("read", "1 links"),
    ]


@pytest.mark.slow
def test_a_page_that_ends_its_process_is_skipped(slow: CrawlJob, tmp_path: Path) -> None:
    def kill() -> None:
        for _ in range(600):
            time.sleep(0.1)
            busy = [child for child in psutil.Process().children() if child.cpu_times().user > 4]
            if busy:  # at the slow page: loading the language models takes less
                busy[0].kill()
                return

    killer = threading.Thread(target=kill)
    killer.start()
    run_jobs(tmp_path / "work", PageSettings("leam_mm"), [slow], 1, 60.0)
    killer.join()
    assert page_rules(tmp_path / "work")[1] == ("page_crash", "exit code -9")


def test_a_part_in_this_process(tmp_path: Path) -> None:
    with WarcFile(tmp_path / "a.warc.gz") as file:
        for number in range(3):
            file.add(f"https://a.example/{number}", PAGE.format(n=number))
    beat = [0.0, 0.0, 0.0]
    crawl_part(tmp_path, PageSettings("leam_mm"), CrawlJob(7, tmp_path / "a.warc.gz"), beat)
    links, ledger, done = part_paths(tmp_path, 7)
    assert pq.read_metadata(links).num_rows == pq.read_metadata(ledger).num_rows == 3 and done.exists()
    assert beat == [2, 0.0, 3] and not list(tmp_path.glob("*.tmp-*"))
