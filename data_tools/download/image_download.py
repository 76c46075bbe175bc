"""Download the images of a table of links in two passes: fetch in parts, then check, repair and write shards."""

import itertools
import json
import logging
import math
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from data_tools.download.download_seal import fetch_identity, finished_rows, write_seal
from data_tools.download.fetched_part import fetch_parts
from data_tools.download.image_repair_pool import Fetched, repaired_rows, withdrawn_sample
from data_tools.download.image_request import AGAIN
from data_tools.links.image_folder import NOT_ASKED, Fault, FolderColumns
from data_tools.links.link_rows import LinkRow, LinkRows
from data_tools.links.link_sources import LinkSources
from data_tools.links.screening_evidence import screened_origins
from data_tools.links.withdrawn_lists import RULE as WITHDRAWN
from data_tools.links.withdrawn_lists import WithdrawnLists, lists_beside, read_lists
from data_tools.network.image_fetch import FetchSetting
from data_tools.network.link_address import host_of, trusted_hosts
from data_tools.network.proxies import allowed_proxies
from data_tools.samples.image_repair import ImageFormat, ImageRule, ResizeMode
from data_tools.samples.sample_record import sample_record
from data_tools.work.work_folder import open_work_folder
from leam_mm.command_line import NonNegativeFloat, NonNegativeInt, PositiveInt, Range, Share
from leam_mm.data.ledger import LEDGER, LedgerWriter, evidence_text
from leam_mm.data.shard_index import ShardWriter, merkle_root, read_samples
from leam_mm.data.tombstones import copy_evidence
from leam_mm.errors import UserError

log = logging.getLogger(__name__)
STAGE = "download_shards"
EXTRA = {"pyspark": "spark", "ray": "ray"}
Seconds = Annotated[float, Range(least=0.1)]


@dataclass
class DownloadSettings(FolderColumns):
    """Settings of a download.

    Args:
        output: Folder of the final shards; must not exist yet.
        table: Table of links, or folder of its parts; see docs/data.md for formats and columns.
        folder: Folder of images with captions, instead of --table; see docs/data.md for its forms.
        sources: YAML file of legal bases, see data_tools/links/link_sources.py; without it, links that screen_links has
            not decided rest on article 4, whatever legal basis the table claims.
        overwrite: Replace OUTPUT if it exists.
        retry_failed: Fetch the links again that failed in OUTPUT.
        size: Side in pixels that --resize aims at.
        resize: How images are resized; see data_tools/samples/image_repair.py.
        format: Format of images that are encoded again.
        max_pixels: Largest image that is decoded.
        max_bytes: Largest file that is fetched.
        min_side: Smallest side of images that are kept, in pixels.
        max_hops: Largest number of redirects to follow.
        image_seconds: Time limit for one image.
        part_seconds: Time limit for one part.
        part_bytes: Size limit of one part.
        samples_per_shard: Number of samples in each tar.
        processes: Number of worker processes.
        threads: Number of connections in each process.
        connections_per_host: Number of simultaneous connections to one host.
        delay_per_host: Seconds between requests to one host.
        longest_wait: Longest Retry-After of a host to wait for, in seconds.
        spare_private: Apply budgets and rights checks to hosts of --allow-private as well.
        skip_origins: Ask no origin for its robots.txt, tdmrep.json, ai.txt and trust.txt.
        registry: Opt-out registry, see data_tools/rights/opt_out_registry.py; may be repeated.
        timeout: Seconds to wait for an answer.
        retries: Number of further attempts for a failed link.
        distributor: Who distributes the parts to workers.
        cluster: Address of a Spark master or Ray head; by default this machine.
        slice: I/N fetches every N-th part, starting with part I, and writes no shards.
        allow_file: Also read file: addresses of this machine.
        allow_private: Private host to trust; may be repeated.
        allow_proxy: Proxy of the environment to use, as host or host:port; may be repeated.
        min_success: Smallest share of rows to keep; below it, no shards are written.
        agent_name: Name in the User-Agent header.
        agent_contact: Page or address where site owners reach you.
        record_time: Also write fetched_at into the samples.
        keep_work: Keep the original bytes in OUTPUT.work.
    """

    output: Path
    table: Path | None = None
    folder: Path | None = None
    sources: Path | None = None
    overwrite: bool = False
    retry_failed: bool = False
    size: PositiveInt = ImageRule.size
    resize: ResizeMode = ImageRule.resize
    format: ImageFormat = ImageRule.format
    max_pixels: PositiveInt = ImageRule.max_pixels
    max_bytes: PositiveInt = ImageRule.max_bytes
    min_side: int = ImageRule.min_side
    max_hops: NonNegativeInt = FetchSetting.max_hops
    image_seconds: Seconds = FetchSetting.image_seconds
    part_seconds: Seconds = FetchSetting.part_seconds
    part_bytes: PositiveInt = FetchSetting.part_bytes
    samples_per_shard: PositiveInt = 1000
    processes: PositiveInt = FetchSetting.processes
    threads: PositiveInt = FetchSetting.threads
    connections_per_host: PositiveInt = FetchSetting.connections_per_host
    delay_per_host: NonNegativeFloat = FetchSetting.delay_per_host
    longest_wait: NonNegativeFloat = FetchSetting.longest_wait
    spare_private: bool = False
    skip_origins: bool = False
    registry: list[str] = field(default_factory=list)
    timeout: Seconds = FetchSetting.timeout
    retries: NonNegativeInt = FetchSetting.retries
    distributor: Literal["multiprocessing", "pyspark", "ray"] = "multiprocessing"
    cluster: str = ""
    slice: str = "0/1"
    allow_file: bool = False
    allow_private: list[str] = field(default_factory=list)
    allow_proxy: list[str] = field(default_factory=list)
    min_success: Share = 0.9
    agent_name: str = "leam_mm"
    agent_contact: str = ""
    record_time: bool = False
    keep_work: bool = False

    def __post_init__(self) -> None:
        """Check what the types of the fields cannot express."""
        if (self.table is None) == (self.folder is None):
            raise UserError("give --table or --folder, and only one of them")
        if self.distributor in EXTRA and find_spec(self.distributor) is None:
            extra = EXTRA[self.distributor]
            raise UserError(f"--distributor {self.distributor} is not installed: run pip install -e '.[{extra}]'")
        number, _, jobs = self.slice.partition("/")
        if not (number.isdigit() and jobs.isdigit() and int(number) < int(jobs)):
            raise UserError(f"--slice is {self.slice!r}: give I/N with I from 0 to N - 1, such as 3/16")
        self.allow_private = trusted_hosts("--allow-private", self.allow_private)

    @property
    def piece(self) -> tuple[int, int]:
        """Number of this job, and number of jobs."""
        number, _, jobs = self.slice.partition("/")
        return int(number), int(jobs)


def screened_hosts(origins: Path | None) -> tuple[dict[str, float], list[str]]:
    """Read the crawl delays of robots.txt and the hosts that agreed from the origins.jsonl of screen_links."""
    delays: dict[str, float] = {}
    agreed: set[str] = set()
    if origins is None:
        return delays, []
    with origins.open(encoding="utf-8") as lines:
        for line in lines:
            found = json.loads(line)
            host = host_of(str(found["origin"]))
            if delay := found.get("crawl_delay"):
                delays[host] = max(delays.get(host, 0.0), float(delay))
            if found.get("agreed"):
                agreed.add(host)
    return delays, sorted(agreed)


def _fetch_setting(
    settings: DownloadSettings, allow_file: bool, origins: Path | None, agreed: tuple[str, ...]
) -> FetchSetting:
    """Return the settings of the fetching processes, without those that depend on the work folder."""
    crawl_delay, agreed_hosts = screened_hosts(origins)
    shared = vars(FetchSetting("", "", "", "")).keys() & vars(settings).keys() - {"output"}
    return replace(
        FetchSetting(**{"links": "", "output": ""} | {name: getattr(settings, name) for name in shared}),
        allow_file=allow_file,
        allow_private=settings.allow_private,
        ask_origins="none" if settings.skip_origins else "redirects" if origins else "all",
        crawl_delay=crawl_delay,
        agreed_hosts=sorted({*agreed_hosts, *agreed}),
        registries=[str(Path(path).resolve()) for path in settings.registry],
    )


def download_images(
    settings: DownloadSettings, own_table: bool = False, refused: Mapping[str, Fault] | None = None
) -> None:
    """Run both passes and print what was kept.

    Args:
        settings: Settings of the download.
        own_table: Whether the caller wrote the table, so that its legal bases count.
        refused: Faults by address of rows that the caller refuses.

    Raises:
        UserError: The output exists, a link cannot be fetched by anyone, or too few rows could be kept.
    """
    output = settings.output
    if output.exists() and not (settings.overwrite or settings.retry_failed):
        raise UserError(f"{output} exists already: give another --output, or --overwrite to replace it")
    begin = time.perf_counter()
    withdrawn = read_lists(lists_beside(output))
    sources, table = LinkSources(settings.sources), settings.table
    origins = screened_origins(table) if table else None
    trusted = own_table or origins is not None or bool(table and sources.trusts(table))
    allowed = settings.allow_file, settings.allow_private
    links = LinkRows(table, settings.folder, *allowed, withdrawn, sources, trusted, refused, settings)
    if not own_table:
        print(links.description, file=sys.stderr)
    survey = links.survey
    if survey.claims:
        log.warning(
            "%d rows of %s claim a legal basis, which lifts no reservation: --sources can trust the table by name",
            *(survey.claims, table or settings.folder),
        )
    if survey.foreign_host and not settings.agent_contact:
        raise UserError(
            f"--agent-contact is missing: give a page or address where the owner of {survey.foreign_host} can reach you"
        )
    if survey.foreign_host:
        allowed_proxies(settings.allow_proxy)  # fail before anything is fetched
    fetch = _fetch_setting(settings, links.allow_file, origins, survey.agreed)
    rule = ImageRule(**{name: getattr(settings, name) for name in asdict(ImageRule())})
    identity = fetch_identity(fetch, survey.digest)
    further = {name: getattr(settings, name) for name in ("samples_per_shard", "record_time")}
    seal = identity | asdict(rule) | further

    def earlier() -> Iterator[dict[str, Any] | None]:
        return finished_rows(output, seal) if settings.retry_failed else itertools.repeat(None)

    def to_fetch() -> Iterator[tuple[int, str, str | None]]:
        for row, old in zip(links, earlier(), strict=False):
            if row.fetch and (old is None or (not old["kept"] and old["rule"] == AGAIN)):
                yield row.number, row.fetch, row.source.get("legal_basis")

    count = sum(1 for _ in to_fetch()) if settings.retry_failed else survey.fetch
    work = output.with_name(output.name + ".work")
    if settings.retry_failed:
        if not count:
            print(f"{output}: no link failed for a temporary reason; nothing to do")
            return
        # The name has the number of failed links: a retry killed at its end is not continued by the next retry.
        work = output.with_name(f"{output.name}.retry-{count}")
    chosen = {"rows_per_part": min(1000, max(20, -(-count // (4 * settings.processes))))}
    fetched_with = identity | {"blocked": withdrawn.sha256}
    with open_work_folder(work, fetched_with, chosen, settings.piece) as first:
        size, (number, jobs) = first["rows_per_part"], settings.piece
        fetch = replace(fetch, rows_per_part=size, links=str((work / f"links.{number}").resolve()))
        fetch_parts(work, replace(fetch, output=str((work / "raw").resolve())), to_fetch, count, settings.piece)
        if jobs > 1:
            print(f"{work}: slice {number} of {jobs} is fetched; no shards are written yet")
            return
        expected = (row for row, *_ in to_fetch())
        fetched = repaired_rows(work / "raw", expected, count, size, rule, settings.processes, withdrawn.folders)
        kept, root = write_shards(links, earlier(), fetched, settings, seal, withdrawn)
        if not settings.keep_work:
            shutil.rmtree(work, ignore_errors=True)  # processes of a killed run may still be ending
    seconds = time.perf_counter() - begin
    print(f"{output}: {kept} of {survey.rows} rows kept, {survey.rows / seconds:.0f} rows/s, Merkle root {root}")


def write_shards(
    links: LinkRows,
    earlier: Iterator[dict[str, Any] | None],
    fetched: Iterator[tuple[int, Fetched]],
    settings: DownloadSettings,
    seal: dict[str, Any],
    withdrawn: WithdrawnLists,
) -> tuple[int, str]:
    """Second pass: write the samples of an earlier run and those fetched now, in the order of the table.

    Args:
        links: The table.
        earlier: For every row, its row in the ledger of an earlier run, or None.
        fetched: Fetched images, in the order of the table.
        settings: Settings of the download.
        seal: Settings that decide the bytes of the shards.
        withdrawn: What was withdrawn; such samples of an earlier run are left out.

    Returns:
        Number of samples, and Merkle root of the shards.
    """
    output = settings.output
    failed_ledger = output.with_name(output.name + ".failed-ledger.parquet")
    before = read_samples(output) if settings.retry_failed else iter(())
    rules: Counter[str] = Counter()
    said: dict[str, str] = {}  # the first reason of each rule
    with ShardWriter(output, settings.samples_per_shard) as writer:
        with LedgerWriter(writer.partial / LEDGER, STAGE) as ledger:
            for row, old in zip(links, earlier, strict=False):
                decision = row.decision
                if old is not None and old["kept"]:
                    key, members = next(before)
                    if key != old["key"]:
                        raise UserError(f"{output}: {LEDGER} and the shards differ at sample {key}; download anew")
                    how = withdrawn_sample(members, old["evidence"], withdrawn)
                    decision = old
                    if how is None:
                        writer.write(key, members)
                    else:
                        reason = "on the lists of withdrawals beside the shards"
                        decision = old | {"kept": False, "rule": WITHDRAWN, "value": how, "reason": reason}
                elif row.fetch and (old is None or old["rule"] == AGAIN):
                    number, found = next(fetched)
                    if number != row.number:
                        raise UserError(f"row {row.number} was not fetched: delete {output}.work and start again")
                    if sample := _sample(row, found, settings):
                        writer.write(decision["key"], sample)
                elif old is not None:
                    decision = old
                rules[decision["rule"]] += 1
                said.setdefault(decision["rule"], str(decision.get("reason") or ""))
                ledger.write([decision])
        kept, rows = rules.pop("kept", 0), links.survey.rows - sum(rules[name] for name in NOT_ASKED)
        if kept < settings.min_success * rows or not kept:
            os.replace(writer.partial / LEDGER, failed_ledger)  # out of the folder that is removed now
            reasons = ", ".join(f"{name} {count}" for name, count in rules.most_common(8))
            common = rules.most_common(1)[0][0]
            reasons += f" (the first of {common}: {said[common]:.200})"
            raise UserError(
                f"only {kept} of {rows} rows could be kept ({kept / max(rows, 1):.1%}, --min-success "
                f"{settings.min_success}): {reasons}; see {failed_ledger}; {_way_on(settings, kept, rows)}"
            )
        write_seal(writer.partial, seal)
        copy_evidence(output, writer.partial)
    failed_ledger.unlink(missing_ok=True)
    return kept, merkle_root(writer.entries)


def _way_on(settings: DownloadSettings, kept: int, rows: int) -> str:
    """Return what to do where too few rows could be kept."""
    anew = f"delete {settings.output}.work to fetch all of them anew"
    if not kept:
        return f"correct the table or the options, and delete {settings.output}.work if options change"
    least = math.floor(1000 * kept / rows) / 1000
    if settings.retry_failed:
        return f"start the same command again later, or with --min-success {least:g}"
    return (
        f"start the same command with --min-success {least:g}, which writes shards of what is fetched already, and "
        f"after it once more with --retry-failed, which fetches what failed for a temporary reason; or {anew}"
    )


def _sample(row: LinkRow, found: Fetched, settings: DownloadSettings) -> dict[str, bytes] | None:
    """Return the members of a sample, or None if it is dropped; complete the row's decision."""
    decision, image = row.decision, found.image
    decision.update(fetched_at=found.fetched_at, bytes=found.bytes, sha256=found.sha256)
    decision["evidence"] = evidence_text(found.response | found.visit)
    if image is None:
        decision.update(rule=found.rule, value=found.value, reason=found.reason)
        return None
    fetched_at = found.fetched_at if settings.record_time else None
    source = row.source
    if basis := found.response.get("legal_basis"):  # it led to another site, for which the owner's licence says nothing
        source = source | {"legal_basis": basis, "licence": None}
        decision.update(legal_basis=basis, licence=None)
    record = sample_record(source, decision, image, settings.agent_name, fetched_at, found.response)
    decision.update(rule="kept", kept=True, value=";".join(image.transforms), reason="")
    decision.update(width=image.width, height=image.height)
    text = json.dumps(record, ensure_ascii=False, sort_keys=True)
    return {image.extension: image.content, "json": text.encode()}
