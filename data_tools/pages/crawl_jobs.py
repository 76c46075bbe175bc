"""Read archives of web pages in several watched processes; each archive's part is whole or not there.

A process says which page it is at. One that dies, or stays at a page for too long, is replaced: the page is put on the
archive's list of pages to leave out, and the archive is read anew. Parts are therefore the same whoever read them.
"""

import contextlib
import json
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_tools.links.language_vote import vote
from data_tools.pages.crawl_rows import LINK_SCHEMA, link_rows, page_row
from data_tools.pages.page_links import PageLimits, PageReading, read_page
from data_tools.pages.warc_pages import Page, PageRefused, folder_pages, warc_pages
from data_tools.work.ledger import LedgerWriter
from leam_mm.errors import UserError

STAGE = "crawl_links"
ROWS = 5000  # links in memory at a time
LEFT_OUT = "page_crash"
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class PageSettings:
    """What decides which links come out.

    Args:
        agent: Our product name, to which pages may speak.
        source: Name of the source, or empty.
        base_url: Address of a folder of HTML files.
        max_page_bytes: Of a page, decompressed.
        suggest_basis: Whether a legal basis may follow from a licence.
    """

    agent: str
    source: str = ""
    base_url: str = ""
    max_page_bytes: int = 2 << 20
    suggest_basis: bool = True


@dataclass(frozen=True)
class CrawlJob:
    """One archive, or some files of a folder.

    Args:
        number: Its place among all.
        path: The archive, or the folder.
        files: Of the folder; empty for an archive.
    """

    number: int
    path: Path
    files: tuple[Path, ...] = ()


def part_names(work: Path, number: int) -> tuple[Path, Path, Path]:
    """Links, ledger, and the counts that say that both are whole."""
    return tuple(work / f"{number:06d}.{end}" for end in ("links.parquet", "ledger.parquet", "done.json"))  # type: ignore[return-value]


def _write(path: Path, content: Any) -> None:
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    temporary.write_text(json.dumps(content, sort_keys=True, ensure_ascii=False))
    os.replace(temporary, path)


def _left_out(work: Path, job: CrawlJob) -> dict[int, str]:
    path = work / f"{job.number:06d}.left_out.json"
    return {int(number): why for number, why in json.loads(path.read_text()).items()} if path.exists() else {}


def crawl_part(work: Path, setting: PageSettings, job: CrawlJob, beat: Any) -> None:
    """Read one archive and write its part.

    Args:
        work: The work folder.
        setting: What decides the links.
        job: The archive.
        beat: Three shared numbers: the page that is being read, since when (monotonic), pages this process has read.
    """
    links, ledger, done = part_names(work, job.number)
    counts: dict[str, Counter[str]] = {
        name: Counter() for name in ("pages", "links", "captions", "licences", "reserving_pages", "skipped_images")
    }
    broken, waiting, parent = None, [], os.getppid()
    temporary = links.with_name(f"{links.name}.tmp-{os.getpid()}")
    with pq.ParquetWriter(temporary, LINK_SCHEMA, compression="zstd") as writer, LedgerWriter(ledger, STAGE) as book:
        pages = _pages(setting, job)
        left_out = _left_out(work, job)
        while True:
            try:
                page = next(pages, None)
            except PageRefused as refused:
                broken = f"{refused.reason} ({refused.value})"
                book.write([page_row(Page(-1, "", archive=job.path.name), refused)])
                counts["pages"][refused.rule] += 1
                break
            if page is None:
                break
            if os.getppid() != parent:
                raise SystemExit(1)  # whoever wanted the part is gone
            beat[0], beat[1] = page.number, time.monotonic()
            outcome = _outcome(page, setting, left_out)
            rows = []
            if isinstance(outcome, PageReading):
                rows = link_rows(page, outcome, setting.source, setting.suggest_basis)
            beat[1], beat[2] = 0.0, beat[2] + 1
            book.write([page_row(page, outcome)])
            waiting += rows
            _count(counts, outcome, rows)
            if len(waiting) >= ROWS:
                writer.write_table(pa.Table.from_pylist(waiting, LINK_SCHEMA))
                waiting = []
        if waiting:
            writer.write_table(pa.Table.from_pylist(waiting, LINK_SCHEMA))
    os.replace(temporary, links)
    _write(done, {name: dict(found) for name, found in counts.items()} | {"broken": broken})


def _pages(setting: PageSettings, job: CrawlJob) -> Iterator[Page]:
    if job.files:
        return folder_pages(job.path, list(job.files), setting.base_url, setting.max_page_bytes)
    return warc_pages(job.path, setting.max_page_bytes)


def _outcome(page: Page, setting: PageSettings, left_out: dict[int, str]) -> PageReading | PageRefused:
    if page.refused is not None:
        return page.refused
    if page.number in left_out:
        return PageRefused(LEFT_OUT, left_out[page.number], "it ended the process that read it, or held it up")
    try:
        return read_page(page, setting.agent, PageLimits())
    except PageRefused as refused:
        return refused
    except (ValueError, RecursionError, AttributeError, TypeError, LookupError) as error:
        return PageRefused("page_error", type(error).__name__, str(error)[:200])


def _count(counts: dict[str, Counter[str]], outcome: PageReading | PageRefused, rows: list[dict[str, Any]]) -> None:
    if isinstance(outcome, PageRefused):
        counts["pages"][outcome.rule] += 1
        return
    counts["pages"]["read"] += 1
    counts["skipped_images"] += outcome.skipped
    counts["reserving_pages"].update({signal.kind for signal in outcome.signals if signal.reserved})
    for row in rows:
        captions = json.loads(row["captions"])
        counts["links"][captions[0]["language"]] += 1
        counts["captions"].update(caption["source"] for caption in captions)
        name = row["licence"]
        counts["licences"][name if name and "://" not in name and len(name) < 30 else "other" if name else "none"] += 1


class _Worker:
    """A process and the job it is at."""

    def __init__(self, work: Path, setting: PageSettings) -> None:
        self.beat = _SPAWN.RawArray("d", 3)
        self.connection, other = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(work, setting, other, self.beat), daemon=True)
        self.process.start()
        other.close()
        self.job: CrawlJob | None = None

    def give(self, job: CrawlJob | None) -> None:
        """Hand over a job; None ends the process."""
        self.job = job
        self.beat[0], self.beat[1] = -1, 0.0
        with contextlib.suppress(OSError):
            self.connection.send(job)

    def held_up(self, seconds: float) -> bool:
        since = self.beat[1]
        return since > 0 and time.monotonic() - since > seconds


def _serve(work: Path, setting: PageSettings, connection: Connection, beat: Any) -> None:
    vote(["warm"])  # opens the language models, whose time is not the first page's
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        if job is None:
            return
        try:
            crawl_part(work, setting, job, beat)
            connection.send("")
        except (OSError, UserError, pa.ArrowException) as error:
            connection.send(f"{job.path}: {str(error).splitlines()[0]}")


def run_jobs(work: Path, setting: PageSettings, jobs: list[CrawlJob], processes: int, page_seconds: float) -> None:
    """Read all archives whose parts are not there yet.

    Args:
        work: The work folder.
        setting: What decides the links.
        jobs: All archives.
        processes: At a time.
        page_seconds: A process that stays longer at a page is replaced.

    Raises:
        UserError: A part cannot be written, or a process dies without being at a page.
    """
    waiting = [job for job in jobs if not part_names(work, job.number)[2].exists()][::-1]
    workers: list[_Worker] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("crawl", total=len(jobs), completed=len(jobs) - len(waiting))
        try:
            workers = [_Worker(work, setting) for _ in range(min(processes, len(waiting)))]
            for worker in workers:
                worker.give(waiting.pop())
            deaths: Counter[int] = Counter()
            past = 0.0
            while busy := [worker for worker in workers if worker.job is not None]:
                wait([worker.connection for worker in busy] + [worker.process.sentinel for worker in busy], 0.5)
                progress.update(
                    bar, description=f"crawl, {past + sum(worker.beat[2] for worker in workers):,.0f} pages"
                )
                for worker in busy:
                    job = worker.job
                    assert job is not None
                    if _ended(worker):
                        worker.give(waiting.pop() if waiting else None)
                        progress.advance(bar)
                    elif worker.held_up(page_seconds) or not worker.process.is_alive():
                        past += worker.beat[2]
                        _leave_out(work, job, worker, deaths, page_seconds)
                        workers[workers.index(worker)] = replacement = _Worker(work, setting)
                        replacement.give(job)
        finally:
            for worker in workers:
                if worker.job is not None:
                    worker.process.kill()
                worker.process.join()
                worker.connection.close()


def _ended(worker: _Worker) -> bool:
    """Whether the job is done; what the process says of a failure is raised."""
    try:
        if not worker.connection.poll():
            return False
        told = worker.connection.recv()
    except (EOFError, OSError):
        return False
    if told:
        raise UserError(f"{told}; mend the cause and start the same command again")
    return True


def _leave_out(work: Path, job: CrawlJob, worker: _Worker, deaths: Counter[int], page_seconds: float) -> None:
    """End a process that is stuck or dead, and put the page it was at on the archive's list."""
    stuck = worker.process.is_alive()
    worker.process.kill()
    worker.process.join()
    at_a_page, number = worker.beat[1] > 0, int(worker.beat[0])
    if not at_a_page:
        deaths[job.number] += 1
        if deaths[job.number] > 1:
            code = worker.process.exitcode
            raise UserError(f"{job.path}: its process died twice (exit code {code}); is there enough memory?")
        return
    why = f"longer than {page_seconds:g} s" if stuck else f"exit code {worker.process.exitcode}"
    _write(work / f"{job.number:06d}.left_out.json", {**_left_out(work, job), number: why})
