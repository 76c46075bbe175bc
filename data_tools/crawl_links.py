"""Make a table of image links from web pages: WARC files, or folders of HTML.

    python data_tools/crawl_links.py --warc crawl/*.warc.gz --output crawl_links --processes 8
    python data_tools/crawl_links.py --html site --base-url https://museum.example/ --output museum_links

OUTPUT/links.parquet    a row for each image of a page that has a text: url, caption, captions with source and language,
                        page_url, language (of the page), licence, legal_basis, attribution, consent, metadata, uid
OUTPUT/ledger.parquet   a row for each page or other answer: its links, or the rule and reason why it was not read
OUTPUT/summary.json     counts

Give it to screen_links --table OUTPUT/links.parquet. What a page says of rights stands in ``consent`` and is judged
there. ``licence`` is filled only where the page names one for that very image, ``legal_basis`` only where in addition
nothing on the page reserves rights: CC0 and the public domain mark -> public_domain, licences open to all -> licensed.
Each archive is a job of its own; a killed run goes on in OUTPUT.work when the same command is given again. The same
archives and settings give the same bytes. A page that crashes the parser or takes longer than --page-seconds is left
out, with that reason; its archive is read anew without it.
"""

import argparse
import fcntl
import json
import logging
import os
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq

from data_tools.pages.crawl_jobs import CrawlJob, PageSettings, part_names, run_jobs
from data_tools.pages.crawl_rows import LINK_SCHEMA
from data_tools.pages.warc_pages import archive_digest, folder_files
from data_tools.work.ledger import LEDGER, SCHEMA
from leam_mm.errors import UserError, run

log = logging.getLogger(__name__)
PAGES_PER_PART = 1000  # of a folder
WARC_SUFFIXES = (".warc", ".warc.gz", ".warc.zst")


def parse_arguments(args: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, fromfile_prefix_chars="@")
    told = parser.add_argument
    told(
        "--warc", type=Path, nargs="+", default=[], help="WARC files, or folders that hold some; @FILE names one a line"
    )
    told("--html", type=Path, help="folder of HTML files, read with all its folders")
    told("--base-url", default="", help="where that folder's files stand on the web")
    told("--output", type=Path, required=True, help="folder of the results; must not exist yet")
    told("--source", default="", help="name of the source, for screen_links --sources")
    told("--processes", type=int, default=os.cpu_count() or 1, help="archives read at a time (%(default)s)")
    told("--max-page-bytes", type=int, default=2 << 20, help="of a page, decompressed (%(default)s)")
    told("--page-seconds", type=float, default=60.0, help="a page may take (%(default)s)")
    told("--agent-name", default="leam_mm", help="who we are, where pages speak to crawlers by name (%(default)s)")
    told("--no-legal-basis", action="store_true", help="suggest none, whatever licences say")
    told("--allow-broken", action="store_true", help="end well although an archive could not be read to its end")
    settings = parser.parse_args(args)
    if bool(settings.warc) == bool(settings.html):
        raise UserError("give either --warc FILES or --html FOLDER")
    address = urlsplit(settings.base_url)
    if settings.html and (address.scheme not in ("http", "https") or not address.hostname):
        raise UserError(f"--base-url is {settings.base_url!r}: give the http(s) address that the folder stands for")
    for name in ("processes", "max_page_bytes", "page_seconds"):
        if getattr(settings, name) <= 0:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(settings, name)}: give more than 0")
    if settings.output.exists():
        raise UserError(f"{settings.output} exists already: give another --output")
    return settings


def find_jobs(settings: argparse.Namespace) -> list[CrawlJob]:
    """One job for each archive, or for each thousand files of a folder, in order."""
    if settings.html:
        if not settings.html.is_dir():
            raise UserError(f"--html {settings.html} is no folder")
        files = folder_files(settings.html)
        if not files:
            raise UserError(f"--html {settings.html} holds no .html, .htm or .xhtml file")
        parts = [files[place : place + PAGES_PER_PART] for place in range(0, len(files), PAGES_PER_PART)]
        return [CrawlJob(number, settings.html, tuple(part)) for number, part in enumerate(parts)]
    archives: list[Path] = []
    for path in settings.warc:
        inside = (
            sorted(file for file in path.rglob("*") if file.name.endswith(WARC_SUFFIXES)) if path.is_dir() else [path]
        )
        if not inside or not all(file.is_file() for file in inside):
            raise UserError(f"--warc {path} is no file, and no folder that holds {', '.join(WARC_SUFFIXES)}")
        archives += inside
    if len({path.resolve() for path in archives}) < len(archives):
        raise UserError("--warc names the same file twice")
    return [CrawlJob(number, path) for number, path in enumerate(archives)]


def open_work(output: Path, setting: PageSettings, jobs: list[CrawlJob]) -> Path:
    """Create the work folder, or go on in it if archives and settings are the same."""
    work = output.with_name(output.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    record = work / "fingerprint.json"
    contents = [[archive_digest(path) for path in job.files or (job.path,)] for job in jobs]
    identity = {
        "setting": vars(setting),
        "archives": [[job.path.name, *digests] for job, digests in zip(jobs, contents, strict=True)],
    }
    text = json.dumps(identity, sort_keys=True)
    if record.exists() and record.read_text() != text:
        old = json.loads(record.read_text())
        what = "settings" if old["setting"] != json.loads(text)["setting"] else "archives"
        raise UserError(f"{work} was begun with other {what}: start with the old ones, or delete that folder")
    temporary = work / f"fingerprint.json.tmp-{os.getpid()}"
    temporary.write_text(text)
    os.replace(temporary, record)
    return work


def merge(work: Path, jobs: list[CrawlJob], output: Path) -> dict[str, Any]:
    """Join the parts in the order of the archives, write the summary, and put the folder into its place."""
    folder = work / "output"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    counts: dict[str, Counter[str]] = {}
    for place, (name, schema) in enumerate((("links.parquet", LINK_SCHEMA), (LEDGER, SCHEMA))):
        with pq.ParquetWriter(folder / name, schema, compression="zstd") as writer:
            for job in jobs:
                with pq.ParquetFile(part_names(work, job.number)[place]) as part:
                    for batch in part.iter_batches(10_000):
                        writer.write_batch(batch)
    archives = []
    for job in jobs:
        done = json.loads(part_names(work, job.number)[2].read_text())
        archives.append({"name": job.path.name, **{name: sum(done[name].values()) for name in ("pages", "links")}})
        archives[-1] |= {"broken": done["broken"]} if done["broken"] else {}
        for name, found in done.items():
            if isinstance(found, dict):
                counts.setdefault(name, Counter()).update(found)
    summary: dict[str, Any] = {name: dict(sorted(found.items())) for name, found in counts.items()}
    summary["archives"] = archives
    (folder / "summary.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    os.replace(folder, output)
    return summary


def main(args: list[str] | None = None) -> None:
    """Read all archives, join what they gave."""
    settings = parse_arguments(args)
    begin = time.perf_counter()
    jobs = find_jobs(settings)
    setting = PageSettings(
        agent=settings.agent_name,
        source=settings.source,
        base_url=settings.base_url,
        max_page_bytes=settings.max_page_bytes,
        suggest_basis=not settings.no_legal_basis,
    )
    work = open_work(settings.output, setting, jobs)
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{work} is in use by another run: wait for it, or choose another --output") from None
        run_jobs(work, setting, jobs, settings.processes, settings.page_seconds)
        summary = merge(work, jobs, settings.output)
    shutil.rmtree(work)
    speed = sum(summary["pages"].values()) / (time.perf_counter() - begin)
    links, read = sum(summary["links"].values()), summary["pages"].get("read", 0)
    print(f"{settings.output}: {links} links from {read} pages in {len(jobs)} parts, {speed:.0f} answers/s")
    broken = [archive["name"] for archive in summary["archives"] if "broken" in archive]
    if broken:
        told = f"{len(broken)} archives could not be read to their end, the first is {broken[0]}"
        if not settings.allow_broken:
            raise UserError(f"{told}: {settings.output} holds the rest; fetch them anew, or give --allow-broken")
        log.warning("%s", told)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    run(main)
