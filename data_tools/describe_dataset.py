"""Describe a data set: Croissant for programs, the AI Act's summary for the public, a page with images for people.

    python data_tools/describe_dataset.py --shards vetted --ledger screened/ledger.parquet
        --ledger shards/ledger.parquet --provider provider.yaml --output description

OUTPUT gets croissant.json (Croissant 1.1 with RAI 1.0), training_summary.json and .md (the data half of the public
summary of Art. 53(1)(d)), statistics.json, statistics.html (in German statistics.de.html), and training_content.json,
whose counts ``release build --description OUTPUT`` takes over. Ledgers in the shard folders are found; those of earlier
stages are named by --ledger. What no ledger can know comes from provider.yaml, where everything is optional, and is
"not stated" otherwise:

    small_enterprise: true            # lists 5 % of the domains, 1,000 at most, instead of 10 %
    dataset: {name: ..., description: ..., licence: ..., url: ..., creator: ..., date_published: 2026-11-22}
    crawled: {purposes: ..., behaviour: ..., content_description: ...}
    rights: {code_of_practice_signatory: yes, measures: ..., policy: https://...}
    public_data_sets: [{name: OpenMoji 17, link: https://openmoji.org, folder: emoji}]

Exit code 1: the numbers do not add up; the page says where. The same input gives the same bytes.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from data_tools.description.statistics_page import page
from leam_mm.command_line import parse_settings
from leam_mm.documents.content_file import DESCRIBED, content_text
from leam_mm.documents.croissant import croissant, missing
from leam_mm.documents.dataset_statistics import statistics, thumbnails
from leam_mm.documents.training_content import training_content
from leam_mm.documents.training_summary import check_provider, summary_text, training_summary
from leam_mm.errors import UserError, run
from leam_mm.files import write_json, write_text
from leam_mm.run_lock import beside, run_lock

MAX_PROVIDER = 1_000_000  # bytes
PAGES = {"en": "statistics.html", "de": "statistics.de.html"}


@dataclass
class DescribeSettings:
    """What to describe.

    Args:
        shards: Shard folder or keep-list; may be repeated.
        output: Folder of the description.
        ledger: Ledger of an earlier stage; may be repeated.
        provider: YAML with what only the provider knows.
        title: Heading of the page (default: the name of the first folder).
        place: Address below which the shard folders will be published, for croissant.json.
    """

    shards: list[Path]
    output: Path
    ledger: list[Path] = field(default_factory=list)
    provider: Path | None = None
    title: str | None = None
    place: str | None = None


def read_provider(path: Path | None) -> dict[str, Any]:
    """Return the content of the provider's file, or nothing without one."""
    if path is None:
        return {}
    try:
        if path.stat().st_size > MAX_PROVIDER:
            raise UserError(f"{path} is larger than {MAX_PROVIDER} bytes: give a short YAML file")
        return check_provider(yaml.safe_load(path.read_text("utf-8")), str(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as YAML ({' '.join(str(error).split())[:160]}); fix it") from None


def describe(settings: DescribeSettings, provider: dict[str, Any]) -> list[str]:
    """Write all files.

    Args:
        settings: What to describe.
        provider: What only the provider knows.

    Returns:
        One sentence for each place where the numbers do not add up.
    """
    shards = [path.resolve() for path in settings.shards]
    if len(set(shards)) != len(shards):
        raise UserError("--shards names a folder twice: name each once")
    if len({path.name for path in shards}) != len(shards):
        raise UserError("--shards names two folders of the same name, which the description tells apart: rename one")
    unknown = {str(entry["folder"]) for entry in provider.get("public_data_sets") or []} - {
        path.name for path in shards
    }
    if unknown:
        raise UserError(f"public_data_sets names the folder {min(unknown)!r}, which is none of --shards")
    counted, tally = statistics(shards, settings.ledger)
    summary = training_summary(counted, tally, provider)
    images, title = thumbnails(tally), settings.title or f"Data set {shards[0].name}"
    pages = {code: page(counted, images, title, code, [(c, PAGES[c]) for c in PAGES if c != code]) for code in PAGES}
    markdown = summary_text(summary)
    metadata = croissant(shards, counted, provider, settings.place or settings.output)
    write_json(settings.output / "statistics.json", counted)
    write_text(settings.output / DESCRIBED, content_text(training_content(shards, counted, tally)))
    for code, html in pages.items():
        write_text(settings.output / PAGES[code], html)
    write_json(settings.output / "training_summary.json", summary)
    write_text(settings.output / "training_summary.md", markdown)
    write_json(settings.output / "croissant.json", metadata)
    faults: list[str] = counted["accounting"]["faults"]
    return faults


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    settings = parse_settings(DescribeSettings, __doc__, args)
    provider = read_provider(settings.provider)
    with run_lock(beside(settings.output), settings.output):
        faults = describe(settings, provider)
    print(f"wrote {settings.output}: croissant.json, training_summary, statistics")
    if lacking := missing(provider):
        print(f"croissant.json lacks {', '.join(lacking)}: state them under dataset in --provider before publishing")
    for fault in faults:
        print(f"does not add up: {fault}")
    if faults:
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)
