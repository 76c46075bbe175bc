"""Download the images of a table of links with img2dataset and write final shards.

    python data_tools/download_shards.py --table links.parquet --output shards --agent-contact https://lab.example/bot
    python data_tools/download_shards.py --folder images --output shards
    python data_tools/download_shards.py --table links.parquet --output shards ... --retry-failed

Two passes. img2dataset hands the links out in parts, which download/download_worker.py fetches into ``OUTPUT.work``:
politely, within limits, and with rights looked up in the headers of every hop; a killed run goes on there. Then every
image is checked and mended (samples/image_repair.py) and the shards are written in the order of the table. A
sample's key is its row in the table, so the same table, answers and settings give the same tar files, byte for byte:
what belongs to the clock stands in ledger.parquet, and ``fetched_at`` in the samples only with --record-time.
``ledger.parquet`` tells the fate of every row: which rule looked at which value, kept or not, and why, with evidence.

What screen_links has screened (its origins.jsonl lies beside the table) is not screened again; of another table every
stranger's origin is asked for its robots.txt, tdmrep.json and ai.txt here, as are origins that redirects lead to.

--retry-failed asks again for the links that failed for a reason that may have passed (rule ``download``) and builds the
shards anew from the samples that are there and those that came now: the bytes, and so the Merkle root, are those of a
run in which all of them had come at once, however often it was tried.

Addresses in OUTPUT.blocklists, which withdraw_samples leaves, are never fetched again.

--slice I/N fetches every N-th part only and writes no shards: configs/clusters/slurm_download.sh. A proxy named in the
environment is used; its own address must then be public, or be named by --allow-private.
"""

import argparse
import itertools
import json
import logging
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from data_tools.download.download_folder import fetch_identity, finished_rows, write_seal
from data_tools.download.fetched_part import fetch_parts
from data_tools.download.image_repair_pool import Fetched, repaired_rows
from data_tools.download.image_request import AGAIN
from data_tools.links.blocklists import DigestList
from data_tools.links.link_rows import LinkRow, LinkRows
from data_tools.network.image_fetch import FetchSetting
from data_tools.samples.image_repair import RESIZE_MODES, ImageRule
from data_tools.samples.sample_record import sample_record
from data_tools.samples.tombstones import copy_evidence
from data_tools.work.ledger import LEDGER, LedgerWriter, evidence_text
from data_tools.work.work_folder import open_work_folder
from leam_mm.data.shard_index import ShardWriter, merkle_root, read_samples
from leam_mm.errors import UserError, run

log = logging.getLogger(__name__)
STAGE = "download_shards"
EXTRA = {"pyspark": "spark", "ray": "ray"}


def parse_arguments(args: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--table", type=Path, help="parquet, csv or jsonl with the columns url and caption (or more)")
    source.add_argument("--folder", type=Path, help="folder of images, each with its caption in a .txt file beside it")
    parser.add_argument("--output", type=Path, required=True, help="folder of the final shards; must not exist yet")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT if it exists")
    parser.add_argument("--retry-failed", action="store_true", help="ask again for links that failed in OUTPUT")
    rule, fetch = ImageRule(), FetchSetting("", "", "", "")
    told = parser.add_argument
    told("--size", type=int, default=rule.size, help="side in pixels that --resize aims at (%(default)s)")
    told("--resize", choices=RESIZE_MODES, default=rule.resize, help="how (%(default)s)")
    told("--format", choices=("png", "jpg", "webp"), default=rule.format, help="of images encoded again (%(default)s)")
    told("--max-pixels", type=int, default=rule.max_pixels, help="largest image decoded (%(default)s)")
    told("--max-bytes", type=int, default=rule.max_bytes, help="largest file fetched (%(default)s)")
    told("--min-side", type=int, default=rule.min_side, help="smallest side kept (%(default)s)")
    told("--max-hops", type=int, default=fetch.max_hops, help="redirects followed (%(default)s)")
    told("--image-seconds", type=float, default=fetch.image_seconds, help="longest for one image (%(default)s)")
    told("--part-seconds", type=float, default=fetch.part_seconds, help="longest for one part (%(default)s)")
    told("--part-bytes", type=int, default=fetch.part_bytes, help="most bytes of one part (%(default)s)")
    told("--samples-per-shard", type=int, default=1000, help="samples in each tar (%(default)s)")
    told("--processes", type=int, default=fetch.processes, help="worker processes (%(default)s)")
    told("--threads", type=int, default=fetch.threads, help="connections in each process (%(default)s)")
    told("--connections-per-host", type=int, default=fetch.connections_per_host, help="at a time (%(default)s)")
    told("--delay-per-host", type=float, default=fetch.delay_per_host, help="seconds between requests (%(default)s)")
    told(
        "--longest-wait", type=float, default=fetch.longest_wait, help="seconds for a host's Retry-After (%(default)s)"
    )
    told("--spare-private", action="store_true", help="treat hosts of --allow-private like strangers' in all this")
    told("--skip-origins", action="store_true", help="ask no origin for its robots.txt, tdmrep.json and ai.txt")
    told("--registry", action="append", default=[], help="opt-out registry: data_tools/rights/opt_out_registry.py")
    told("--timeout", type=float, default=fetch.timeout, help="seconds to wait for an answer (%(default)s)")
    told("--retries", type=int, default=fetch.retries, help="further attempts for a failed link (%(default)s)")
    told(
        "--distributor", choices=("multiprocessing", "pyspark", "ray"), default=fetch.distributor, help="(%(default)s)"
    )
    told("--cluster", default="", metavar="ADDRESS", help="Spark master or Ray head; without it, this machine")
    told("--slice", default="0/1", metavar="I/N", help="fetch every N-th part from the I-th on, write no shards")
    told("--allow-file", action="store_true", help="read file: addresses of this machine, too")
    told(
        "--allow-private", action="append", default=[], metavar="HOST", help="trust this private host; may be repeated"
    )
    told("--min-success", type=float, default=0.9, help="least share of rows kept (%(default)s)")
    told("--agent-name", default="leam_mm", help="who we say we are (%(default)s)")
    told("--agent-contact", default="", help="page or address where site owners reach you")
    told("--record-time", action="store_true", help="write fetched_at into the samples, too")
    told("--keep-work", action="store_true", help="leave the original bytes in OUTPUT.work")
    settings = parser.parse_args(args)
    least: dict[str, float] = dict.fromkeys(("size", "samples_per_shard", "processes", "threads", "max_bytes"), 1)
    least |= dict.fromkeys(("max_pixels", "connections_per_host", "part_bytes"), 1)
    least |= dict.fromkeys(("timeout", "image_seconds", "part_seconds"), 0.1)
    least |= dict.fromkeys(("delay_per_host", "longest_wait", "max_hops", "retries"), 0)
    for name, low in least.items():
        if not getattr(settings, name) >= low:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(settings, name)}: give at least {low}")
    if not 0 <= settings.min_success <= 1:
        raise UserError(f"--min-success is {settings.min_success}: give a share between 0 and 1")
    if settings.distributor in EXTRA and find_spec(settings.distributor) is None:
        extra = EXTRA[settings.distributor]
        raise UserError(f"--distributor {settings.distributor}: it is not installed; run pip install -e '.[{extra}]'")
    number, _, jobs = settings.slice.partition("/")
    if not (number.isdigit() and jobs.isdigit() and int(number) < int(jobs)):
        raise UserError(f"--slice is {settings.slice!r}: give I/N with I from 0 to N - 1, such as 3/16")
    settings.slice = (int(number), int(jobs))
    return settings


def screened_origins(table: Path | None) -> Path | None:
    """The list of origins that screen_links has left beside the table, if it was there."""
    path = table.with_name("origins.jsonl") if table else None
    return path if path is not None and path.is_file() else None


def screened_hosts(origins: Path | None) -> tuple[dict[str, float], list[str]]:
    """What the list of screened origins says of hosts: delays that robots.txt asks for, and who has agreed."""
    delays: dict[str, float] = {}
    agreed: set[str] = set()
    if origins is None:
        return delays, []
    with origins.open(encoding="utf-8") as lines:
        for line in lines:
            found = json.loads(line)
            host = urlsplit(str(found["origin"])).hostname or ""
            if delay := found.get("crawl_delay"):
                delays[host] = max(delays.get(host, 0.0), float(delay))
            if found.get("agreed"):
                agreed.add(host)
    return delays, sorted(agreed)


def write_shards(
    links: LinkRows,
    old: Iterator[dict[str, Any] | None],
    fetched: Iterator[tuple[int, Fetched]],
    settings: argparse.Namespace,
    seal: dict[str, Any],
) -> tuple[int, str]:
    """Second pass: write in the order of the table what was kept before and what came now.

    Args:
        links: The table.
        old: Of every row what a finished folder's ledger says, or None.
        fetched: What came, in the order of the table.
        settings: Of the command line.
        seal: What decides the bytes of the shards.

    Returns:
        How many samples were kept, and the Merkle root of the shards.
    """
    output: Path = settings.output
    failed_ledger = output.with_name(output.name + ".failed-ledger.parquet")
    before = read_samples(output) if settings.retry_failed else iter(())
    reasons: Counter[str] = Counter()
    with ShardWriter(output, settings.samples_per_shard) as writer:
        with LedgerWriter(writer.partial / LEDGER, STAGE) as ledger:
            for row, known in zip(links, old, strict=False):
                decision = row.decision
                if known is not None and known["kept"]:
                    key, members = next(before)
                    if key != known["key"]:
                        raise UserError(f"{output}: {LEDGER} and the shards do not fit (sample {key}); download anew")
                    writer.write(key, members)
                    decision = known
                elif row.fetch and (known is None or known["rule"] == AGAIN):
                    number, found = next(fetched)
                    if number != row.number:
                        raise UserError(f"row {row.number} did not come back: delete {output}.work and start again")
                    if made := _sample(row, found, settings):
                        writer.write(decision["key"], made)
                elif known is not None:
                    decision = known
                reasons[decision["rule"]] += 1
                ledger.write([decision])
        kept, rows = reasons.pop("kept", 0), links.survey.rows
        if kept < settings.min_success * rows or not kept:
            os.replace(writer.partial / LEDGER, failed_ledger)
            told = ", ".join(f"{name} {count}" for name, count in reasons.most_common(8))
            raise UserError(
                f"only {kept} of {rows} rows could be kept ({kept / rows:.1%}, --min-success "
                f"{settings.min_success}): {told}; see {failed_ledger}; to go on, give a lower --min-success and then "
                f"--retry-failed, or delete {output}.work to fetch anew"
            )
        write_seal(writer.partial, seal)
        copy_evidence(output, writer.partial)
    failed_ledger.unlink(missing_ok=True)
    return kept, merkle_root(writer.entries)


def _sample(row: LinkRow, found: Fetched, settings: argparse.Namespace) -> dict[str, bytes] | None:
    """The members of a sample, or None; the row's decision tells which and why."""
    decision, image = row.decision, found.image
    decision.update(fetched_at=found.fetched_at, bytes=found.bytes, sha256=found.sha256)
    decision["evidence"] = evidence_text(found.response | found.visit)
    if image is None:
        decision.update(rule=found.rule, value=found.value, reason=found.reason)
        return None
    moment = found.fetched_at if settings.record_time else None
    record = sample_record(row.source, decision, image, settings.agent_name, moment, found.response)
    decision.update(rule="kept", kept=True, value=";".join(image.transforms), reason="")
    decision.update(width=image.width, height=image.height)
    text = json.dumps(record, ensure_ascii=False, sort_keys=True)
    return {image.extension: image.content, "json": text.encode()}


def main(args: list[str] | None = None) -> None:
    """Run both passes."""
    settings = parse_arguments(args)
    output: Path = settings.output
    if output.exists() and not (settings.overwrite or settings.retry_failed):
        raise UserError(f"{output} exists already: give another --output, or --overwrite to replace it")
    begin = time.perf_counter()
    withdrawn = output.with_name(output.name + ".blocklists") / "url_sha256.txt"  # of data_tools/withdraw_samples.py
    blocked = DigestList(withdrawn) if withdrawn.is_file() else None
    links = LinkRows(settings.table, settings.folder, settings.allow_file, settings.allow_private, blocked)
    survey = links.survey
    if survey.stranger and not settings.agent_contact:
        raise UserError(
            f"--agent-contact is missing: give a page or address where the owner of {survey.stranger} can reach you"
        )
    shared = vars(FetchSetting("", "", "", "")).keys() & vars(settings).keys()
    wanted = FetchSetting(
        **{"links": "", "output": ""} | {name: getattr(settings, name) for name in shared - {"output"}}
    )
    screened = screened_origins(settings.table)
    crawl_delay, agreed_hosts = screened_hosts(screened)
    wanted = replace(
        wanted,
        allow_file=links.allow_file,
        allow_private=sorted(settings.allow_private),
        ask_origins="none" if settings.skip_origins else "redirects" if screened else "all",
        crawl_delay=crawl_delay,
        agreed_hosts=agreed_hosts,
        registries=[str(Path(path).resolve()) for path in settings.registry],
    )
    rule = ImageRule(**{name: getattr(settings, name) for name in asdict(ImageRule())})
    identity = fetch_identity(wanted, survey.digest)
    further = {name: getattr(settings, name) for name in ("samples_per_shard", "record_time")}
    seal = identity | asdict(rule) | further

    def old() -> Iterator[dict[str, Any] | None]:
        return finished_rows(output, seal) if settings.retry_failed else itertools.repeat(None)

    def asked() -> Iterator[tuple[int, str, str | None]]:
        for row, known in zip(links, old(), strict=False):
            if row.fetch and (known is None or (not known["kept"] and known["rule"] == AGAIN)):
                yield row.number, row.fetch, row.source.get("legal_basis")

    count = sum(1 for _ in asked()) if settings.retry_failed else survey.fetch
    work = output.with_name(output.name + ".work")
    if settings.retry_failed:
        if not count:
            print(f"{output}: no link failed for a reason that may have passed; nothing to do")
            return
        # Named by what is missing: a retry that was killed at its end is not taken for the beginning of the next.
        work = output.with_name(f"{output.name}.retry-{count}")
    part_size = min(1000, max(20, -(-count // (4 * settings.processes))))
    fetched_with = identity | {"blocked": blocked.sha256 if blocked else None}
    with open_work_folder(work, fetched_with, {"rows_per_part": part_size}, settings.slice) as chosen:
        size = chosen["rows_per_part"]
        place = f"links.{settings.slice[0]}"
        setting = replace(
            wanted,
            rows_per_part=size,
            links=str((work / place).resolve()),
            output=str((work / "raw").resolve()),
        )
        fetch_parts(work, setting, asked, count, settings.slice)
        if settings.slice != (0, 1):
            print(f"{work}: slice {settings.slice[0]} of {settings.slice[1]} is fetched; no shards are written yet")
            return
        expected = (number for number, *_ in asked())
        fetched = repaired_rows(work / "raw", expected, count, size, rule, settings.processes)
        kept, root = write_shards(links, old(), fetched, settings, seal)
    if not settings.keep_work:
        shutil.rmtree(work, ignore_errors=True)  # what a killed run had started may be leaving only now
    seconds = time.perf_counter() - begin
    print(f"{output}: {kept} of {survey.rows} rows kept, {survey.rows / seconds:.0f} rows/s, Merkle root {root}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    run(main)
