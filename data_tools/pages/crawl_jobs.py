"""Read archives of web pages in several supervised processes; the part of each archive is complete or absent.

A process reports the page that it reads. A process that dies or exceeds the time limit at a page is replaced: the page
is added to the archive's list of skipped pages, and the archive is read again. WorkerPool cannot do that: it neither
watches single jobs nor survives the death of a worker.
"""

import contextlib
import json
import multiprocessing
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
from data_tools.work.foreign_error import first_line
from data_tools.work.workers import become_worker
from leam_mm.data.ledger import LedgerWriter
from leam_mm.errors import UserError
from leam_mm.files import atomic_write, write_json

STAGE = "crawl_links"
ROWS = 5000  # links in memory at a time
CRASH = "page_crash"  # rule of pages that crashed or held up their process
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class PageSettings:
    """Settings that decide which links come out.

    Args:
        agent: Our product name, by which pages may address us.
        source: Name of the source, or empty.
        base_url: Web address of a folder of HTML files.
        max_page_bytes: Largest page in bytes, decompressed.
        suggest_basis: Whether a licence may set the legal basis.
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
        number: Its number among all jobs.
        path: The archive, or the folder.
        files: Files of the folder; empty for an archive.
    """

    number: int
    path: Path
    files: tuple[Path, ...] = ()


def part_paths(work: Path, number: int) -> tuple[Path, Path, Path]:
    """Return the paths of a part's links, its ledger, and its counts, which exist once the other two are complete."""
    links, ledger, done = (work / f"{number:06d}.{end}" for end in ("links.parquet", "ledger.parquet", "done.json"))
    return links, ledger, done


def _skipped_pages(work: Path, job: CrawlJob) -> dict[int, str]:
    path = _skip_list(work, job)
    return {int(number): why for number, why in json.loads(path.read_text()).items()} if path.exists() else {}


def _skip_list(work: Path, job: CrawlJob) -> Path:
    return work / f"{job.number:06d}.skipped.json"


def crawl_part(work: Path, settings: PageSettings, job: CrawlJob, beat: Any) -> None:
    """Read one archive and write its part.

    Args:
        work: The work folder.
        settings: Settings that decide the links.
        job: The archive.
        beat: Three shared numbers: number of the page that is being read, the time at which it was begun (monotonic,
            0 between pages), and pages that this process has read.
    """
    links, ledger, done = part_paths(work, job.number)
    counts: dict[str, Counter[str]] = {
        name: Counter() for name in ("pages", "links", "captions", "licences", "reserving_pages", "skipped_images")
    }
    broken, waiting = None, []
    with (
        atomic_write(links) as temporary,
        pq.ParquetWriter(temporary, LINK_SCHEMA, compression="zstd") as writer,
        LedgerWriter(ledger, STAGE) as book,
    ):
        pages = _pages(settings, job)
        skipped = _skipped_pages(work, job)
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
            beat[0], beat[1] = page.number, time.monotonic()
            outcome = _outcome(page, settings, skipped)
            rows = []
            if isinstance(outcome, PageReading):
                rows = link_rows(page, outcome, settings.source, settings.suggest_basis)
            beat[1], beat[2] = 0.0, beat[2] + 1
            book.write([page_row(page, outcome)])
            waiting += rows
            _count(counts, outcome, rows)
            if len(waiting) >= ROWS:
                writer.write_table(pa.Table.from_pylist(waiting, LINK_SCHEMA))
                waiting = []
        if waiting:
            writer.write_table(pa.Table.from_pylist(waiting, LINK_SCHEMA))
    result = {name: dict(found) for name, found in counts.items()} | {"broken": broken}
    write_json(done, result, indent=None, sort_keys=True)


def _pages(settings: PageSettings, job: CrawlJob) -> Iterator[Page]:
    if job.files:
        return folder_pages(job.path, list(job.files), settings.base_url, settings.max_page_bytes)
    return warc_pages(job.path, settings.max_page_bytes)


def _outcome(page: Page, settings: PageSettings, skipped: dict[int, str]) -> PageReading | PageRefused:
    if page.refused is not None:
        return page.refused
    if page.number in skipped:
        return PageRefused(CRASH, skipped[page.number], "it ended the process that read it, or held it up")
    try:
        return read_page(page, settings.agent, PageLimits())
    except PageRefused as refused:
        return refused
    except (ValueError, RecursionError, AttributeError, TypeError, LookupError) as error:
        return PageRefused("page_error", type(error).__name__, first_line(error))


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
    """A process and its current job."""

    def __init__(self, work: Path, settings: PageSettings) -> None:
        self.beat = _SPAWN.RawArray("d", 3)
        self.connection, other = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(work, settings, other, self.beat), daemon=True)
        self.process.start()
        other.close()
        self.job: CrawlJob | None = None

    def give(self, job: CrawlJob | None) -> None:
        """Send a job; None ends the process."""
        self.job = job
        self.beat[0], self.beat[1] = -1, 0.0
        with contextlib.suppress(OSError):
            self.connection.send(job)

    def held_up(self, seconds: float) -> bool:
        since = self.beat[1]
        return since > 0 and time.monotonic() - since > seconds


def _serve(work: Path, settings: PageSettings, connection: Connection, beat: Any) -> None:
    become_worker()
    vote(["warm"])  # loads the language models, so that their time does not count for the first page
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        if job is None:
            return
        try:
            crawl_part(work, settings, job, beat)
            connection.send("")
        except (OSError, UserError, pa.ArrowException) as error:
            connection.send(f"{job.path}: {str(error).splitlines()[0]}")


def run_jobs(work: Path, settings: PageSettings, jobs: list[CrawlJob], processes: int, page_seconds: float) -> None:
    """Read all archives whose parts do not exist yet.

    Args:
        work: The work folder.
        settings: Settings that decide the links.
        jobs: All archives.
        processes: Number of processes.
        page_seconds: Longest time for one page; a process that needs longer is replaced.

    Raises:
        UserError: A part cannot be written, or a process dies twice between pages of one archive.
    """
    waiting = [job for job in jobs if not part_paths(work, job.number)[2].exists()][::-1]
    workers: list[_Worker] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("crawl", total=len(jobs), completed=len(jobs) - len(waiting))
        try:
            workers = [_Worker(work, settings) for _ in range(min(processes, len(waiting)))]
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
                    if _finished(worker):
                        worker.give(waiting.pop() if waiting else None)
                        progress.advance(bar)
                    elif worker.held_up(page_seconds) or not worker.process.is_alive():
                        past += worker.beat[2]
                        _skip_page(work, job, worker, deaths, page_seconds)
                        workers[workers.index(worker)] = replacement = _Worker(work, settings)
                        replacement.give(job)
        finally:
            for worker in workers:
                if worker.job is not None:
                    worker.process.kill()
                worker.process.join()
                worker.connection.close()


def _finished(worker: _Worker) -> bool:
    """Whether the job is done.

    Raises:
        UserError: The process reports a failure.
    """
    try:
        if not worker.connection.poll():
            return False
        failure = worker.connection.recv()
    except (EOFError, OSError):
        return False
    if failure:
        raise UserError(f"{failure}; fix the cause and start the same command again")
    return True


def _skip_page(work: Path, job: CrawlJob, worker: _Worker, deaths: Counter[int], page_seconds: float) -> None:
    """Kill a process that is stuck or dead, and add its current page to the archive's list of skipped pages."""
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
    write_json(_skip_list(work, job), _skipped_pages(work, job) | {number: why}, indent=None, sort_keys=True)
