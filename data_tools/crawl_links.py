"""Make a table of image links from web pages: WARC files, or folders of HTML files.

    python data_tools/crawl_links.py --warc crawl/*.warc.gz --output crawl_links --processes 8
    python data_tools/crawl_links.py --html site --base-url https://museum.example/ --output museum_links

OUTPUT/links.parquet    a row for each image that has a text: url, caption, captions with source and language, page_url,
                        language (of the page), licence, legal_basis, attribution, consent, metadata, uid
OUTPUT/ledger.parquet   a row for each page or other answer: its number of links, or why it was not read
OUTPUT/summary.json     counts

The table is the input of screen_links --table. What a page says about rights is stored in ``consent`` and applied
there. ``licence`` is set only if a page of the image's own site (registered domain) names one for that very image;
``legal_basis`` only if, in addition, nothing on the page reserves rights: public_domain for CC0 and the public domain
mark, licensed for licences open to everybody. It counts in screen_links if --sources trusts this table by name: whoever
trusts it trusts the archives, too. What the page of another site states is kept as a claim in ``consent``.
Each archive is one job. A killed run continues in OUTPUT.work when the same command is given again. The same archives
and settings give the same bytes. A page that crashes the parser or takes longer than --page-seconds is skipped with
that reason; its archive is read again without it.
"""

import json
import logging
import os
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq

from data_tools.pages.crawl_jobs import CrawlJob, PageSettings, part_paths, run_jobs
from data_tools.pages.crawl_rows import LINK_SCHEMA
from data_tools.pages.warc_pages import archive_digest, folder_files
from data_tools.work.work_folder import open_work_folder
from leam_mm.command_line import PositiveFloat, PositiveInt, parse_settings
from leam_mm.data.ledger import LEDGER, SCHEMA
from leam_mm.data.parquet_file import own_parquet
from leam_mm.errors import UserError, run
from leam_mm.files import replace_folder

log = logging.getLogger(__name__)
PAGES_PER_PART = 1000  # of a folder
WARC_SUFFIXES = (".warc", ".warc.gz", ".warc.zst")


@dataclass
class CrawlSettings:
    """Settings of crawl_links.

    Args:
        output: Folder of the results; must not exist yet.
        warc: WARC files, or folders with WARC files; @FILE stands for the lines of a file.
        html: Folder of HTML files, read with all its subfolders.
        base_url: Web address of that folder.
        source: Name of the source, for screen_links --sources.
        processes: Number of archives read at a time.
        max_page_bytes: Largest page in bytes, decompressed.
        page_seconds: Longest time for one page.
        agent_name: Our product name, for pages that address crawlers by name.
        no_legal_basis: Suggest no legal basis, whatever licences say.
        allow_broken: Succeed although an archive could not be read to its end.
    """

    output: Path
    warc: list[Path] = field(default_factory=list)
    html: Path | None = None
    base_url: str = ""
    source: str = ""
    processes: PositiveInt = os.cpu_count() or 1
    max_page_bytes: PositiveInt = 2 << 20
    page_seconds: PositiveFloat = 60.0
    agent_name: str = "leam_mm"
    no_legal_basis: bool = False
    allow_broken: bool = False

    def __post_init__(self) -> None:
        """Check the input and the output."""
        if bool(self.warc) == bool(self.html):
            raise UserError("give either --warc FILES or --html FOLDER")
        address = urlsplit(self.base_url)
        if self.html and (address.scheme not in ("http", "https") or not address.hostname):
            raise UserError(f"--base-url is {self.base_url!r}: give the http(s) address of the folder")
        if self.output.exists():
            raise UserError(f"{self.output} exists already: give another --output")

    def page_settings(self) -> PageSettings:
        """Return the settings that decide which links come out."""
        return PageSettings(
            agent=self.agent_name,
            source=self.source,
            base_url=self.base_url,
            max_page_bytes=self.max_page_bytes,
            suggest_basis=not self.no_legal_basis,
        )


def find_jobs(settings: CrawlSettings) -> list[CrawlJob]:
    """Return one job for each archive, or for each thousand files of a folder, in order."""
    if settings.html:
        if not settings.html.is_dir():
            raise UserError(f"--html {settings.html} is not a folder")
        files = folder_files(settings.html)
        if not files:
            raise UserError(f"--html {settings.html} holds no .html, .htm or .xhtml file")
        parts = [files[start : start + PAGES_PER_PART] for start in range(0, len(files), PAGES_PER_PART)]
        return [CrawlJob(number, settings.html, tuple(part)) for number, part in enumerate(parts)]
    archives: list[Path] = []
    for path in settings.warc:
        inside = (
            sorted(file for file in path.rglob("*") if file.name.endswith(WARC_SUFFIXES)) if path.is_dir() else [path]
        )
        if not inside or not all(file.is_file() for file in inside):
            raise UserError(f"--warc {path} is not a file, nor a folder with {', '.join(WARC_SUFFIXES)}")
        archives += inside
    if len({path.resolve() for path in archives}) < len(archives):
        raise UserError("--warc names the same file twice")
    return [CrawlJob(number, path) for number, path in enumerate(archives)]


def read_word_files(words: list[str]) -> list[str]:
    """Replace each ``@FILE`` of a command line by the lines of that file."""
    found: list[str] = []
    for word in words:
        try:
            lines = Path(word[1:]).read_text("utf-8").splitlines() if word.startswith("@") else [word]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{word} cannot be read ({error}): give a text file, one path a line") from None
        found += [line for line in lines if line or word == ""]
    return found


def crawl_identity(settings: PageSettings, jobs: list[CrawlJob]) -> dict[str, Any]:
    """Return the settings and the digests of archives that decide the result."""
    archives = [[job.path.name, *map(archive_digest, job.files or (job.path,))] for job in jobs]
    return {"settings": vars(settings), "archives": archives}


def merge(work: Path, jobs: list[CrawlJob], output: Path) -> dict[str, Any]:
    """Join the parts in the order of the archives, move the results to the output folder, and return the summary."""
    folder = work / "output"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for index, (name, schema) in enumerate((("links.parquet", LINK_SCHEMA), (LEDGER, SCHEMA))):
        with pq.ParquetWriter(folder / name, schema, compression="zstd") as writer:
            for job in jobs:
                with own_parquet(part_paths(work, job.number)[index]) as part:
                    for batch in part.iter_batches(10_000):
                        writer.write_batch(batch)
    archives = []
    counts: dict[str, Counter[str]] = {}
    for job in jobs:
        done = json.loads(part_paths(work, job.number)[2].read_text("utf-8"))
        archives.append({"name": job.path.name, **{name: sum(done[name].values()) for name in ("pages", "links")}})
        archives[-1] |= {"broken": done["broken"]} if done["broken"] else {}
        for name, found in done.items():
            if isinstance(found, dict):
                counts.setdefault(name, Counter()).update(found)
    summary: dict[str, Any] = {name: dict(sorted(found.items())) for name, found in counts.items()}
    summary["archives"] = archives
    text = json.dumps(summary, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    (folder / "summary.json").write_text(text, "utf-8")
    replace_folder(folder, output)
    return summary


def main(args: list[str] | None = None) -> None:
    """Read all archives and join their results."""
    settings = parse_settings(CrawlSettings, __doc__, read_word_files(sys.argv[1:] if args is None else args))
    begin = time.perf_counter()
    jobs, page_settings = find_jobs(settings), settings.page_settings()
    work = settings.output.with_name(settings.output.name + ".work")
    with open_work_folder(work, crawl_identity(page_settings, jobs)):
        run_jobs(work, page_settings, jobs, settings.processes, settings.page_seconds)
        summary = merge(work, jobs, settings.output)
        shutil.rmtree(work)
    speed = sum(summary["pages"].values()) / (time.perf_counter() - begin)
    links, read = sum(summary["links"].values()), summary["pages"].get("read", 0)
    print(f"{settings.output}: {links} links from {read} pages in {len(jobs)} parts, {speed:.0f} answers/s")
    broken = [archive["name"] for archive in summary["archives"] if "broken" in archive]
    if broken:
        message = f"{len(broken)} archives could not be read to their end, the first is {broken[0]}"
        if not settings.allow_broken:
            raise UserError(f"{message}: {settings.output} holds the rest; fetch them again, or give --allow-broken")
        log.warning("%s", message)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    run(main)
