"""Describe a data set: Croissant for programs, the AI Act's summary for the public, a page with pictures for people.

    python data_tools/describe_dataset.py --shards vetted --ledger screened/ledger.parquet
        --ledger shards/ledger.parquet --provider provider.yaml --output description

OUTPUT gets croissant.json (Croissant 1.0 with RAI 1.0), training_summary.json and .md (the data half of the public
summary of Art. 53(1)(d)), statistics.json and statistics.html. Ledgers in the shard folders are found; those of earlier
stages are named by --ledger. What no ledger can know (provider.yaml, all of it optional) is written as "not stated"
until somebody states it:

    small_enterprise: true            # lists 5 % of the domains, 1,000 at most, instead of 10 %
    dataset: {name: ..., description: ..., licence: ..., url: ..., creator: ..., date_published: 2026-11-22}
    crawled: {purposes: ..., behaviour: ..., content_description: ...}
    rights: {code_of_practice_signatory: yes, measures: ..., policy: https://...}
    public_data_sets: [{name: OpenMoji 17, link: https://openmoji.org, folder: emoji}]

Exit code 1: the numbers do not add up; the page says where. The same input gives the same bytes.
"""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from data_tools.description.croissant import croissant, missing
from data_tools.description.dataset_statistics import statistics, thumbnails
from data_tools.description.statistics_page import page
from data_tools.description.training_summary import check_provider, summary_text, training_summary
from leam_mm.errors import UserError, run

MAX_PROVIDER = 1_000_000  # bytes


def read_provider(path: Path | None) -> dict[str, Any]:
    """The provider's file, or nothing."""
    if path is None:
        return {}
    try:
        if path.stat().st_size > MAX_PROVIDER:
            raise UserError(f"{path} is larger than {MAX_PROVIDER} bytes: it is no description of a provider")
        return check_provider(yaml.safe_load(path.read_text("utf-8")), str(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as YAML ({' '.join(str(error).split())[:160]}); mend it") from None


def describe(
    shards: list[Path], ledgers: list[Path], provider: dict[str, Any], output: Path, title: str, place: str | None
) -> list[str]:
    """Write all files.

    Args:
        shards: Shard folders or keep-lists.
        ledgers: Of stages before.
        provider: What only the provider knows.
        output: Folder, written beside its place and renamed.
        title: Heading of the page.
        place: Address below which the shard folders will lie, or None.

    Returns:
        Where the numbers do not add up; empty if they do.
    """
    if len({path.resolve() for path in shards}) != len(shards):
        raise UserError("a shard folder is named twice: name each once")
    if len({path.resolve().name for path in shards}) != len(shards):
        raise UserError("two shard folders have the same name, by which the description tells them apart: rename one")
    shards = [path.resolve() for path in shards]
    unknown = {str(entry["folder"]) for entry in provider.get("public_data_sets") or []} - {
        path.name for path in shards
    }
    if unknown:
        raise UserError(f"public_data_sets names the folder {min(unknown)!r}, which is none of --shards")
    counted, tally = statistics(shards, ledgers)
    summary = training_summary(counted, tally, provider)
    texts = {
        "statistics.json": _json(counted),
        "statistics.html": page(counted, thumbnails(tally), title),
        "training_summary.json": _json(summary),
        "training_summary.md": summary_text(summary),
        "croissant.json": _json(croissant(shards, counted, provider, place or output)),
    }
    temporary = output.with_name(f"{output.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
        output.mkdir(exist_ok=True)
        for name in texts:
            os.replace(temporary / name, output / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    faults: list[str] = counted["accounting"]["faults"]
    return faults


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shards", type=Path, action="append", required=True, help="shard folder or keep-list; may be repeated")
    add("--ledger", type=Path, action="append", default=[], help="of a stage before; may be repeated")
    add("--provider", type=Path, help="YAML with what only the provider knows")
    add("--output", type=Path, required=True, help="folder of the description")
    add("--title", help="heading of the page (default: the name of the first folder)")
    add("--place", help="address below which the shard folders are published, for croissant.json")
    settings = parser.parse_args(args)
    provider = read_provider(settings.provider)
    title = settings.title or f"Data set {settings.shards[0].resolve().name}"
    faults = describe(settings.shards, settings.ledger, provider, settings.output, title, settings.place)
    print(f"wrote {settings.output}: croissant.json, training_summary, statistics")
    if lacking := missing(provider):
        print(f"croissant.json lacks {', '.join(lacking)}: state them under dataset in --provider before publishing")
    for fault in faults:
        print(f"does not add up: {fault}")
    if faults:
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)
