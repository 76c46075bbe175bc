import threading
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from toys.warc import WarcFile

from data_tools.pages.crawl_jobs import CrawlJob, PageSettings, crawl_part, part_paths, run_jobs

PAGE = '<html lang="de"><img src="/{n}.jpg" alt="Eine alte Kirche"></html>'


@pytest.fixture
def slow(tmp_path: Path) -> CrawlJob:
    attributes = " ".join(f"a{number}=1" for number in range(150_000))  # the parser compares each with each
    with WarcFile(tmp_path / "slow.warc") as file:
        file.add("https://a.example/1", PAGE.format(n=1))
        file.add("https://a.example/slow", f"<div {attributes}>")
        file.add("https://a.example/2", PAGE.format(n=2))
    (tmp_path / "work").mkdir()
    return CrawlJob(0, tmp_path / "slow.warc")


def fates(work: Path) -> list[tuple[str, str]]:
    rows = pq.read_table(part_paths(work, 0)[1]).to_pylist()
    return [(row["rule"], row["value"]) for row in rows]


@pytest.mark.slow
def test_a_page_that_holds_up_its_process_is_left_out(slow: CrawlJob, tmp_path: Path) -> None:
    run_jobs(tmp_path / "work", PageSettings("leam_mm"), [slow], 1, 3.0)
    assert fates(tmp_path / "work") == [("read", "1 links"), ("page_crash", "longer than 3 s"), ("read", "1 links")]


@pytest.mark.slow
def test_a_page_that_ends_its_process_is_left_out(slow: CrawlJob, tmp_path: Path) -> None:
    def kill() -> None:
        for _ in range(600):
            time.sleep(0.1)
            busy = [child for child in psutil.Process().children() if child.cpu_times().user > 4]
            if busy:  # it is at the slow page: the language models take less
                busy[0].kill()
                return

    killer = threading.Thread(target=kill)
    killer.start()
    run_jobs(tmp_path / "work", PageSettings("leam_mm"), [slow], 1, 60.0)
    killer.join()
    assert fates(tmp_path / "work")[1] == ("page_crash", "exit code -9")


def test_a_part_in_this_process(tmp_path: Path) -> None:
    with WarcFile(tmp_path / "a.warc.gz") as file:
        for number in range(3):
            file.add(f"https://a.example/{number}", PAGE.format(n=number))
    beat = [0.0, 0.0, 0.0]
    crawl_part(tmp_path, PageSettings("leam_mm"), CrawlJob(7, tmp_path / "a.warc.gz"), beat)
    links, ledger, done = part_paths(tmp_path, 7)
    assert pq.read_metadata(links).num_rows == pq.read_metadata(ledger).num_rows == 3 and done.exists()
    assert beat == [2, 0.0, 3] and not list(tmp_path.glob("*.tmp-*"))
