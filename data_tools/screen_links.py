"""Decide which links of a table may be fetched at all, before a single byte of an image is asked for.

    python data_tools/screen_links.py --table links.parquet --output screened --agent-contact https://lab.example/bot
    python data_tools/screen_links.py --table crawl/*.parquet --output screened --agent-contact https://lab.example/bot
        --sources sources.yaml --block-domains domains.txt --keep-languages de fr mt --personal-data phone=drop

Rules, in order: the row is whole; http(s), no private address; blocklists of domains, addresses' digests and phrases;
the legal basis of its source; rights that the page reserves; personal data in captions (redacted or dropped); language;
the same address twice; and what its origin says in robots.txt, tdmrep.json, ai.txt and in registries, asked once from
each origin, many origins at a time and never two connections to one.

OUTPUT/links.parquet    links that stay, ordered so that every origin's are spread evenly, for download_shards --table
OUTPUT/ledger.parquet   every link in the order of the tables: rule, value and evidence of its fate
OUTPUT/origins.jsonl    each origin: its answers with status, SHA-256 and time, its links, the delay it wants; its being
                        there tells download_shards that origins were asked
OUTPUT/answers.jsonl    the answers themselves, with their texts
OUTPUT/summary.json     counts and CPU time of each rule

Memory does not grow with the table. A killed run goes on in OUTPUT.work when the same command is given again. The same
tables, settings and answers give the same links.parquet and ledger.parquet, byte for byte.
"""

import argparse
import json
import logging
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from data_tools.links.disk_buckets import DiskBuckets, read_bucket
from data_tools.links.host_shuffle import hashed
from data_tools.links.link_duplicates import LINKS as HASHES
from data_tools.links.link_duplicates import LinkDuplicates, hash_numbers
from data_tools.links.link_rules import LinkRules, ScreenSetting
from data_tools.links.link_sources import LinkSources
from data_tools.links.link_table import link_batches
from data_tools.links.personal_data import KINDS
from data_tools.links.robots_screen import LINKS, RobotsScreen, verdict_tables
from data_tools.links.row_filters import CHUNK, chunk_cost, filter_rows, read_chunk
from data_tools.links.screened_folder import RANGE, Counts, counted, write_decisions
from data_tools.network.image_fetch import FetchSetting
from data_tools.network.link_address import LinkRefused, check_link
from data_tools.rights.opt_out_registry import OptOutRegistry
from data_tools.rights.robots_rules import RobotsRules
from data_tools.work.work_folder import open_work_folder
from leam_mm.errors import UserError, run
from leam_mm.files import file_sha256

log = logging.getLogger(__name__)
ASKED = 200_000  # links in a bucket of origins, on average
LIBRARIES = ("phonenumbers", "python-stdnum", "publicsuffixlist", "py3langid", "pycld2", "protego", "pyarrow")


def parse_arguments(args: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told, rules = parser.add_argument, ScreenSetting()
    told("--table", type=Path, nargs="+", required=True, help="parquet, csv or jsonl with url and caption (or more)")
    told("--output", type=Path, required=True, help="folder of the results; must not exist yet")
    told("--overwrite", action="store_true", help="replace OUTPUT if it exists")
    told("--sources", type=Path, help="YAML of legal bases: data_tools/links/link_sources.py (everything is article 4)")
    for name, what in (("domains", "domains"), ("urls", "md5, sha1 or sha256 of addresses"), ("phrases", "phrases")):
        told(
            f"--block-{name}", action="append", default=[], metavar="FILE", help=f"{what}, one a line; may be repeated"
        )
    told(
        "--registry",
        type=Path,
        action="append",
        default=[],
        help="opt-out registry: data_tools/rights/opt_out_registry.py",
    )
    told(
        "--personal-data",
        action="append",
        default=[],
        metavar="KIND=ACTION",
        help=f"redact, drop or keep; kinds: all, {', '.join(KINDS)} (all=redact)",
    )
    told("--strict-personal-data", action="store_true", help="also act on what is only written like personal data")
    told("--keep-languages", nargs="+", default=[], metavar="CODE", help="und stands for what cannot be told (all)")
    told("--max-caption", type=int, default=rules.max_caption, help="longest caption in characters (%(default)s)")
    told(
        "--allow-private", action="append", default=[], metavar="HOST", help="trust this private host; may be repeated"
    )
    told("--agent-name", default="leam_mm", help="who we say we are (%(default)s)")
    told("--agent-contact", default="", help="page or address where site owners reach you")
    told("--skip-origins", action="store_true", help="ask nobody; robots.txt and reservations stay unknown")
    told("--connections", type=int, default=64, help="origins asked at a time (%(default)s)")
    told("--timeout", type=float, default=10, help="seconds to wait for an origin's answer (%(default)s)")
    told(
        "--delay", type=float, default=0.2, help="seconds between requests to one origin, for its budget (%(default)s)"
    )
    told("--seed", type=int, default=rules.seed, help="of the order (%(default)s)")
    told("--processes", type=int, default=2, help="that judge rows (%(default)s)")
    told("--keep-work", action="store_true", help="leave OUTPUT.work")
    settings = parser.parse_args(args)
    for name in ("max_caption", "connections", "processes"):
        if getattr(settings, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(settings, name)}: give at least 1")
    if not settings.timeout > 0 or not settings.delay >= 0:
        raise UserError("--timeout must be above 0 and --delay not below it: give seconds")
    return settings


def screen_setting(settings: argparse.Namespace) -> ScreenSetting:
    """What decides of rows, from the command line; the files are opened by those who use them."""
    actions: dict[str, str] = {}
    for pair in settings.personal_data:
        kind, _, action = pair.partition("=")
        actions |= dict.fromkeys(KINDS if kind == "all" else (kind,), action)
    return ScreenSetting(
        sources=str(settings.sources or ""),
        domain_lists=settings.block_domains,
        digest_lists=settings.block_urls,
        phrase_lists=settings.block_phrases,
        personal_data=actions,
        strict_personal_data=settings.strict_personal_data,
        keep_languages=sorted(settings.keep_languages),
        max_caption=settings.max_caption,
        allow_private=sorted(settings.allow_private),
        seed=settings.seed,
    )


def find_duplicates(work: Path, chunks: int, rows: int) -> Path:
    """Part the links that passed by their hashes, and note those that stand there twice."""
    output = work / "duplicates"
    if not output.exists():
        known = LinkDuplicates(work / "hashes", rows)
        for number in range(chunks):
            table = read_chunk(work / "rows", number, ["link_hash", "uid"])
            place = np.arange(number * CHUNK, number * CHUNK + table.num_rows)
            whole = pa.table([pa.array(place), table["link_hash"], table["uid"]], schema=HASHES)
            known.add(whole.filter(pc.is_valid(whole["link_hash"])))
        with DiskBuckets(output) as buckets:
            known.find(buckets, RANGE)
    return output


def part_by_origin(work: Path, chunks: int, buckets: int, duplicates: Path) -> Path:
    """Part the links that are left by their origins."""
    output = work / "origins"
    if output.exists():
        return output
    names = ["fetch", "origin", "source", "legal_basis"]
    place, twice = -1, np.zeros(0, np.int64)
    with DiskBuckets(output) as parted:
        for number in range(chunks):
            if place != number * CHUNK // RANGE:
                place = number * CHUNK // RANGE
                found = [part["row"].to_numpy() for part in read_bucket(duplicates, place)]
                twice = np.concatenate([np.zeros(0, np.int64), *found])
            table = read_chunk(work / "rows", number, [*names, "link_hash"])
            row = np.arange(number * CHUNK, number * CHUNK + table.num_rows)
            stays = pc.is_valid(table["link_hash"]).to_numpy() & ~np.isin(row, twice)
            table, row = table.filter(pa.array(stays)), row[stays]
            words = table["origin"].combine_chunks().dictionary_encode()
            numbers = np.array([hashed(word) for word in words.dictionary.to_pylist()], np.uint64)
            origin = numbers[words.indices.to_numpy()] if len(numbers) else np.zeros(0, np.uint64)
            columns = [pa.array(row), *(table[name] for name in names), pa.array(origin)]
            links = pa.table([*columns, pa.array(hash_numbers(table["link_hash"]))], schema=LINKS)
            parted.write(links, (origin % np.uint64(buckets)).astype(np.int64))
    return output


def require_contact(settings: argparse.Namespace, hosts: Iterable[str | None]) -> None:
    """Refuse to ask strangers' hosts without saying who asks."""
    stranger = next((host for host in hosts if host and host not in settings.allow_private), None)
    if stranger and not settings.agent_contact and not settings.skip_origins:
        raise UserError(
            f"--agent-contact is missing: give a page or address where the owner of {stranger} can reach you"
        )


def first_hosts(table: Path) -> Iterator[str]:
    """Hosts of a table's beginning, so that nobody waits an hour to be told what is missing."""
    for url in next(link_batches(table, 1000), pa.table({"url": []}))["url"].to_pylist():
        with suppress(LinkRefused):
            yield check_link(url, Path("/"), False, [])[2]


def asked_hosts(links: Path, buckets: int) -> Iterator[str | None]:
    """Hosts that are to be asked."""
    for number in range(buckets):
        for table in read_bucket(links, number):
            yield from (urlsplit(origin).hostname for origin in pc.unique(table["origin"]).to_pylist())


def part_verdicts(work: Path, buckets: int) -> Path:
    """Part what was decided of origins' links by the links' place in the table."""
    output, verdicts = work / "parted", work / "verdicts"
    if not output.exists():
        partial = work / "parted.partial"
        with DiskBuckets(partial / "fates") as fates, DiskBuckets(partial / "places") as places:
            for number in range(buckets):
                for written, tables in zip((fates, places), verdict_tables(verdicts, number), strict=True):
                    for table in tables:
                        written.write(table, table["row"].to_numpy() // RANGE)
        os.replace(partial, output)
    return output


@contextmanager
def counted_cost(work: Path, name: str) -> Iterator[None]:
    """Write down the CPU seconds of a stage; what a killed run spent on it is lost."""
    begin = time.process_time()
    yield
    path = work / f"{name}.cost"
    before = float(path.read_text()) if path.exists() else 0.0
    path.write_text(str(before + time.process_time() - begin))


def origin_screen(settings: argparse.Namespace, work: Path) -> RobotsScreen:
    """The one who asks, or who asks nobody."""
    sources, rules = LinkSources(settings.sources), None
    if settings.skip_origins:
        log.warning("no origin is asked (--skip-origins): robots.txt and reservations of these links are not known")
    else:
        names = ("agent_name", "agent_contact", "allow_private", "timeout")
        fetch = FetchSetting("", "", **{name: getattr(settings, name) for name in names})
        rules = RobotsRules(fetch, work / "answers.jsonl", [OptOutRegistry(path) for path in settings.registry])
    return RobotsScreen(rules, sources, settings.connections, settings.delay, settings.seed)


def write_summary(
    path: Path,
    settings: argparse.Namespace,
    work: Path,
    shape: tuple[int, int, int],
    counts: Counts,
    asked: Counter[str],
) -> dict[str, Any]:
    """Tell what every rule dropped and cost."""
    chunks, rows, kept = shape
    cost: dict[str, Any] = chunk_cost(work / "rows", chunks)
    for name in ("duplicates", "origins", "writing"):
        cost[name] = {"rows": rows, "cpu_seconds": float((work / f"{name}.cost").read_text())}
    for entry in cost.values():
        entry["cpu_ms_per_row"] = round(1e3 * entry["cpu_seconds"] / entry["rows"], 6) if entry["rows"] else None
    total = sum(entry["cpu_seconds"] for entry in cost.values())
    known = {name: value for name, value in vars(settings).items() if name not in ("table", "output", "overwrite")}
    summary = {
        "rows": rows,
        "kept": kept,
        "dropped": counted(counts.dropped),
        **{name: counted(numbers) for name, numbers in counts.kept.items()},
        "origins": {"network": "not asked" if settings.skip_origins else "asked", **asked},
        "cost": cost,
        "cpu_ms_per_row": 1e3 * total / rows if rows else None,
        "settings": known,
        "libraries": {name: version(name) for name in LIBRARIES},
    }
    path.write_text(json.dumps(summary, indent=1, ensure_ascii=False, default=str) + "\n", "utf-8")
    return summary


def screen(settings: argparse.Namespace, work: Path, setting: ScreenSetting, bar: Progress) -> dict[str, Any]:
    """Do all stages in the work folder, then give the output its name."""
    output: Path = settings.output
    task = bar.add_task("rows", total=None)
    chunks, rows = filter_rows(
        settings.table, work / "rows", setting, settings.processes, lambda done: bar.advance(task, done)
    )
    bar.update(task, total=rows)
    if not rows:
        raise UserError(f"{settings.table[0]} holds no row; give tables with at least one link")
    with counted_cost(work, "duplicates"):
        duplicates = find_duplicates(work, chunks, rows)
    buckets = -(-rows // ASKED)
    with counted_cost(work, "origins"):
        links = part_by_origin(work, chunks, buckets, duplicates)
        require_contact(settings, asked_hosts(links, buckets))
        asking = origin_screen(settings, work)
        (work / "verdicts").mkdir(exist_ok=True)
        for number in bar.track(range(buckets), description="groups of origins"):
            asking.bucket(links, number, work / "verdicts")
        parted = part_verdicts(work, buckets)
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    asked: Counter[str] = Counter()
    with counted_cost(work, "writing"):
        counts = write_decisions(partial, work / "rows", chunks, duplicates, parted, work)
        # download_shards takes origins.jsonl as the word that robots.txt was obeyed: without asking there is none.
        place = work if settings.skip_origins else partial
        with (place / "origins.jsonl").open("wb") as file:
            for number in range(buckets):
                for line in (work / "verdicts" / f"{number:06d}.jsonl").read_bytes().splitlines(keepends=True):
                    file.write(line)
                    asked["origins"] += 1
                    asked["refusing all"] += not json.loads(line)["kept"]
    if (work / "answers.jsonl").exists():
        shutil.copyfile(work / "answers.jsonl", partial / "answers.jsonl")
    kept = sum(counts.kept["language"].values())
    summary = write_summary(partial / "summary.json", settings, work, (chunks, rows, kept), counts, asked)
    if output.exists():
        shutil.rmtree(output)
    os.replace(partial, output)
    return summary


def main(args: list[str] | None = None) -> None:
    """Screen the tables."""
    settings = parse_arguments(args)
    output: Path = settings.output
    if output.exists() and not settings.overwrite:
        raise UserError(f"{output} exists already: give another --output, or --overwrite to replace it")
    begin = time.perf_counter()
    setting = screen_setting(settings)
    LinkRules(setting)  # what is wrong with a list or a setting is told before anything is done
    require_contact(settings, first_hosts(settings.table[0]))
    work = output.with_name(output.name + ".work")
    asked = ("agent_name", "agent_contact", "skip_origins", "delay")
    identity = setting.identity() | {name: getattr(settings, name) for name in asked}
    identity |= {f"table {number}": file_sha256(path) for number, path in enumerate(settings.table)}
    identity |= {f"registry {number}": file_sha256(path) for number, path in enumerate(settings.registry)}
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with open_work_folder(work, identity), Progress(*columns, console=console) as bar:
        summary = screen(settings, work, setting, bar)
    if not settings.keep_work:
        shutil.rmtree(work)
    seconds = time.perf_counter() - begin
    print(
        f"{output}: {summary['kept']} of {summary['rows']} links stay, {summary['rows'] / seconds:.0f} rows/s, "
        f"{summary['cpu_ms_per_row']:.3f} ms CPU a row"
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    run(main)
