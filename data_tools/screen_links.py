"""Screen a table of image links: decide which of them may be fetched, before any image is requested.

    python data_tools/screen_links.py --table links.parquet --output screened --agent-contact https://lab.example/bot
    python data_tools/screen_links.py --table crawl/*.parquet --output screened --agent-contact https://lab.example/bot
        --sources sources.yaml --block-domains domains.txt --keep-languages de fr mt --personal-data phone=drop

The rules, in order: the row is complete; the address is http(s) and not private; blocklists of domains, address digests
and phrases; legal basis of the source; rights reserved by the page; personal data in captions (redacted or dropped);
language; duplicate addresses; robots.txt, tdmrep.json, ai.txt, trust.txt and RSL licences, opt-out registries. Each
origin is asked once, many origins in parallel, never with two connections to one origin.

OUTPUT/links.parquet    links that stay, each origin's spread evenly over the table, for download_shards --table
OUTPUT/ledger.parquet   every link in the order of the tables: rule, value and evidence of its decision
OUTPUT/origins.jsonl    each origin: its answers with status, SHA-256 and time, its links, its delay; download_shards
                        takes this file as proof that the origins were asked
OUTPUT/answers.jsonl    the answers themselves, with their texts
OUTPUT/summary.json     counts and CPU time of each rule; digests that bind links.parquet and origins.jsonl together

Memory does not grow with the table. A killed run continues in OUTPUT.work when the same command is given again. The
same tables, settings and answers give the same links.parquet and ledger.parquet, byte for byte.
"""

import json
import logging
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from data_tools.links.link_columns import TableColumns
from data_tools.links.link_rules import LinkRules, LinkRuleSettings
from data_tools.links.link_sources import LinkSources
from data_tools.links.link_table import describe_table, link_batches, table_parts
from data_tools.links.robots_screen import RobotsScreen
from data_tools.links.row_filters import chunk_cost, filter_rows
from data_tools.links.screen_stages import find_duplicates, group_by_origin, group_by_row, origin_hosts
from data_tools.links.screened_folder import LINKS, Counts, largest_first, write_decisions
from data_tools.links.screening_evidence import ORIGINS, file_digests
from data_tools.network.image_fetch import FetchSetting
from data_tools.network.link_address import LinkRefused, check_link, trusted_hosts
from data_tools.network.proxies import allowed_proxies
from data_tools.rights.opt_out_registry import OptOutRegistry
from data_tools.rights.robots_rules import RobotsRules
from data_tools.work.work_folder import open_work_folder
from leam_mm.command_line import NonNegativeFloat, PositiveFloat, PositiveInt, parse_settings
from leam_mm.data.ledger import LEDGER, read_ledger
from leam_mm.data.personal_data import KINDS
from leam_mm.errors import UserError, run
from leam_mm.files import file_sha256, replace_folder, write_text

log = logging.getLogger(__name__)
BUCKET_ROWS = 200_000  # average number of links in a bucket of origins
LIBRARIES = ("phonenumbers", "python-stdnum", "publicsuffixlist", "py3langid", "pycld2", "protego", "pyarrow")


@dataclass
class ScreenSettings(TableColumns):
    """Settings of screen_links.

    Args:
        table: Tables of links, or folders of their parts; see docs/data.md for formats and columns.
        output: Folder of the results; must not exist yet.
        overwrite: Replace OUTPUT if it exists.
        sources: YAML file of legal bases, see data_tools/links/link_sources.py; without it all links rest on article 4,
            whatever legal basis the tables claim.
        block_domains: Files of blocked domains, one a line.
        block_urls: Files of md5, sha1 or sha256 digests of blocked addresses, one a line.
        block_phrases: Files of blocked phrases, one a line.
        registry: Opt-out registries, see data_tools/rights/opt_out_registry.py.
        personal_data: KIND=ACTION with the action redact, drop or keep; kinds are all, email, phone, iban, national_id,
            tax_id, card, handle, ip_address and user_url. Kinds that are not given are redacted.
        strict_personal_data: Also act on text that only has the form of personal data.
        keep_languages: Language codes to keep, und for undetermined; without it all are kept.
        max_caption: Longest caption in characters.
        allow_private: Hosts that are trusted although their addresses are private.
        allow_proxy: Proxy of the environment to use, as host or host:port; may be repeated.
        agent_name: Product name in the User-Agent header.
        agent_contact: Page or address where site owners reach you.
        skip_origins: Ask no origin; robots.txt and reservations stay unknown.
        connections: Number of origins asked at a time.
        timeout: Seconds to wait for an origin's answer.
        delay: Seconds between requests to one origin, for its budget.
        seed: Seed of the order of links.
        processes: Worker processes that filter rows.
        keep_work: Keep OUTPUT.work.
    """

    table: list[Path]
    output: Path
    overwrite: bool = False
    sources: Path | None = None
    block_domains: list[str] = field(default_factory=list)
    block_urls: list[str] = field(default_factory=list)
    block_phrases: list[str] = field(default_factory=list)
    registry: list[Path] = field(default_factory=list)
    personal_data: list[str] = field(default_factory=list)
    strict_personal_data: bool = False
    keep_languages: list[str] = field(default_factory=list)
    max_caption: PositiveInt = LinkRuleSettings.max_caption
    allow_private: list[str] = field(default_factory=list)
    allow_proxy: list[str] = field(default_factory=list)
    agent_name: str = "leam_mm"
    agent_contact: str = ""
    skip_origins: bool = False
    connections: PositiveInt = 64
    timeout: PositiveFloat = 10
    delay: NonNegativeFloat = 0.2
    seed: int = LinkRuleSettings.seed
    processes: PositiveInt = 2
    keep_work: bool = False

    def __post_init__(self) -> None:
        """Bring the trusted hosts into their normal form."""
        self.allow_private = trusted_hosts("--allow-private", self.allow_private)

    def rule_settings(self) -> LinkRuleSettings:
        """Return the settings of the rules that look at single rows."""
        actions: dict[str, str] = {}
        for pair in self.personal_data:
            kind, _, action = pair.partition("=")
            actions |= dict.fromkeys(KINDS if kind == "all" else (kind,), action)
        return LinkRuleSettings(
            sources=str(self.sources or ""),
            domain_lists=self.block_domains,
            digest_lists=self.block_urls,
            phrase_lists=self.block_phrases,
            personal_data=actions,
            strict_personal_data=self.strict_personal_data,
            keep_languages=sorted(self.keep_languages),
            max_caption=self.max_caption,
            allow_private=self.allow_private,
            seed=self.seed,
        )

    def columns(self) -> TableColumns:
        """Return which columns of the tables are read."""
        return TableColumns(**{entry.name: getattr(self, entry.name) for entry in fields(TableColumns)})

    def identity(self) -> dict[str, Any]:
        """Return all settings and digests of files that decide the result."""
        names = ("agent_name", "agent_contact", "skip_origins", "delay")
        identity = self.rule_settings().identity() | {name: getattr(self, name) for name in names}
        parts = [part for table in self.table for part in table_parts(table)]
        identity |= {f"table {number}": file_sha256(path) for number, path in enumerate(parts)}
        identity |= vars(self.columns())
        return identity | {f"registry {number}": file_sha256(path) for number, path in enumerate(self.registry)}


def require_contact(settings: ScreenSettings, hosts: Iterable[str | None]) -> None:
    """Refuse to ask hosts of other people without a contact, or through a proxy that is not allowed."""
    foreign = next((host for host in hosts if host and host not in settings.allow_private), None)
    if foreign and not settings.agent_contact and not settings.skip_origins:
        raise UserError(
            f"--agent-contact is missing: give a page or address where the owner of {foreign} can reach you"
        )
    if foreign and not settings.skip_origins:
        allowed_proxies(settings.allow_proxy)


def first_hosts(table: Path, columns: TableColumns) -> Iterator[str]:
    """Yield hosts of the first rows, so that a missing contact is reported at once and not after the row filters."""
    for url in next(link_batches(table, 1000, columns), pa.table({"url": []}))["url"].to_pylist():
        with suppress(LinkRefused):
            yield check_link(url, Path("/"), False, [])[2]


@contextmanager
def counted_cost(work: Path, name: str) -> Iterator[None]:
    """Add the CPU seconds of a stage to a file; those of a killed run are lost."""
    begin = time.process_time()
    yield
    path = work / f"{name}.cost"
    before = float(path.read_text()) if path.exists() else 0.0
    write_text(path, str(before + time.process_time() - begin))


def robots_screen(settings: ScreenSettings, work: Path) -> RobotsScreen:
    """Return the screen that asks origins, or that asks none."""
    rules = None
    if settings.skip_origins:
        log.warning("no origin is asked (--skip-origins): robots.txt and reservations of these links are not known")
    else:
        names = ("agent_name", "agent_contact", "allow_private", "allow_proxy", "timeout")
        fetch = FetchSetting("", "", **{name: getattr(settings, name) for name in names})
        rules = RobotsRules(fetch, work / "answers.jsonl", [OptOutRegistry(path) for path in settings.registry])
    return RobotsScreen(rules, LinkSources(settings.sources), settings.connections, settings.delay, settings.seed)


def write_summary(
    path: Path, settings: ScreenSettings, work: Path, shape: tuple[int, int, int], counts: Counts, asked: Counter[str]
) -> dict[str, Any]:
    """Write what every rule dropped and cost.

    Args:
        path: File of the summary.
        settings: Settings of the program.
        work: The work folder.
        shape: Number of chunks, of rows and of kept rows.
        counts: Dropped and kept links.
        asked: Number of origins, and of those that refuse all their links.

    Returns:
        The summary.
    """
    chunks, rows, kept = shape
    cost: dict[str, Any] = chunk_cost(work / "rows", chunks)
    for name in ("duplicates", "origins", "writing"):
        cost[name] = {"rows": rows, "cpu_seconds": float((work / f"{name}.cost").read_text())}
    for entry in cost.values():
        entry["cpu_ms_per_row"] = round(1e3 * entry["cpu_seconds"] / entry["rows"], 6) if entry["rows"] else None
    total = sum(entry["cpu_seconds"] for entry in cost.values())
    summary = {
        "rows": rows,
        "kept": kept,
        "dropped": largest_first(counts.dropped),
        **{name: largest_first(numbers) for name, numbers in counts.kept.items()},
        "origins": {"network": "not asked" if settings.skip_origins else "asked", **asked},
        "cost": cost,
        "cpu_ms_per_row": 1e3 * total / rows if rows else None,
        "settings": {
            name: value for name, value in vars(settings).items() if name not in ("table", "output", "overwrite")
        },
        "libraries": {name: version(name) for name in LIBRARIES},
        "files": file_digests(path.parent, (LINKS, ORIGINS)),
    }
    write_text(path, json.dumps(summary, indent=1, ensure_ascii=False, default=str) + "\n")
    return summary


def screen(settings: ScreenSettings, work: Path, bar: Progress) -> dict[str, Any]:
    """Run all stages in the work folder, then move the results to the output folder; return the summary."""
    task = bar.add_task("rows", total=None)
    chunks, rows = filter_rows(
        settings.table,
        work / "rows",
        settings.rule_settings(),
        settings.processes,
        lambda done: bar.advance(task, done),
        settings.columns(),
    )
    bar.update(task, total=rows)
    if not rows:
        raise UserError(f"{settings.table[0]} holds no row; give tables with at least one link")
    with counted_cost(work, "duplicates"):
        duplicates = find_duplicates(work, chunks, rows)
    buckets = -(-rows // BUCKET_ROWS)
    with counted_cost(work, "origins"):
        links = group_by_origin(work, chunks, buckets, duplicates)
        require_contact(settings, origin_hosts(links, buckets))
        origins = robots_screen(settings, work)
        screened = work / "screened"
        screened.mkdir(exist_ok=True)
        for number in bar.track(range(buckets), description="groups of origins"):
            origins.screen_bucket(links, number, screened)
        by_row = group_by_row(work, buckets)
    output = work / "output"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    asked: Counter[str] = Counter()
    with counted_cost(work, "writing"):
        counts = write_decisions(output, work / "rows", chunks, duplicates, by_row, work)
        # download_shards takes origins.jsonl as proof that robots.txt was obeyed, so none is written if none was asked.
        with ((work if settings.skip_origins else output) / ORIGINS).open("wb") as file:
            for number in range(buckets):
                for line in (screened / f"{number:06d}.jsonl").read_bytes().splitlines(keepends=True):
                    file.write(line)
                    asked["origins"] += 1
                    asked["refusing all"] += not json.loads(line)["kept"]
    if (work / "answers.jsonl").exists():
        shutil.copyfile(work / "answers.jsonl", output / "answers.jsonl")
    kept = sum(counts.kept["language"].values())
    summary = write_summary(output / "summary.json", settings, work, (chunks, rows, kept), counts, asked)
    replace_folder(output, settings.output)
    return summary


def first_reason(ledger: Path) -> tuple[str, str]:
    """Return rule and reason of the first dropped link."""
    for batch in read_ledger(ledger, ("rule", "reason", "kept")):
        for row in batch.to_pylist():
            if not row["kept"]:
                return str(row["rule"]), str(row["reason"])
    return "", ""


def main(args: list[str] | None = None) -> None:
    """Screen the tables."""
    settings = parse_settings(ScreenSettings, __doc__, args)
    output = settings.output
    if output.exists() and not settings.overwrite:
        raise UserError(f"{output} exists already: give another --output, or --overwrite to replace it")
    begin = time.perf_counter()
    LinkRules(settings.rule_settings())  # reports wrong lists and settings before any work is done
    for table in settings.table:
        print(describe_table(table, settings), file=sys.stderr)
    require_contact(settings, first_hosts(settings.table[0], settings))
    work = output.with_name(output.name + ".work")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with open_work_folder(work, settings.identity()), Progress(*columns, console=Console(stderr=True)) as bar:
        summary = screen(settings, work, bar)
        if not settings.keep_work:
            shutil.rmtree(work)
    seconds = time.perf_counter() - begin
    print(
        f"{output}: {summary['kept']} of {summary['rows']} links stay, {summary['rows'] / seconds:.0f} rows/s, "
        f"{summary['cpu_ms_per_row']:.3f} ms CPU a row"
    )
    if summary["dropped"]:
        print(f"dropped: {', '.join(f'{name} {count}' for name, count in list(summary['dropped'].items())[:12])}")
    if not summary["kept"]:
        rule, reason = first_reason(output / LEDGER)
        print(f"no link stays; the first was dropped by the rule {rule}: {reason}; {output / LEDGER} has all reasons")
        raise SystemExit(1)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    run(main)
