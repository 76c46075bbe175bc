"""Was this picture used? Ask by file, digest, address, domain or caption; answered from an index, in under a second.

    python data_tools/sample_search.py build --shards shards --ledger screened/ledger.parquet
    python data_tools/sample_search.py ask --index shards.search --image portrait.jpg
    python data_tools/sample_search.py ask --index shards.search --domain museum.example --limit 50
    python data_tools/check_shards.py shards --contains portrait.jpg

A picture is found by the digest of its file and, where copies may have changed, by PDQ: re-encoded, resized, mirrored
and turned ones, up to --radius bits of 256. Captions are compared without regard to case and white space. The index
holds the samples of the shards; with --ledger also the links that did not come so far, and why. Exit code 0: found.
1: not found. 2: the question could not be answered.
"""

import argparse
import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.withdrawal.sample_selector import (
    RADIUS,
    caption_form,
    host_of,
    normalised_url,
    read_picture,
    sample_pdq,
    stored_image,
)
from data_tools.withdrawal.search_index import IndexWriter, SearchIndex, digest_of
from data_tools.work.ledger import read_ledger
from leam_mm.errors import UserError, run

SHOWN = 10


@dataclass(frozen=True)
class Answer:
    """What was found.

    Args:
        count: Rows that fit.
        rows: The first of them: what is told of each, with ``why``.
        notes: What the reader must know to read it rightly.
        seconds: It took.
    """

    count: int
    rows: list[dict[str, Any]]
    notes: list[str]
    seconds: float


def parent_domains(host: str) -> list[str]:
    """A host and the domains above it, of two labels at least: under each of them it is found."""
    labels = host.split(".")
    if not host or re.fullmatch(r"[0-9.]+|.*:.*", host):
        return [host] if host else []
    return [".".join(labels[start:]) for start in range(max(1, len(labels) - 1))]


def place_of(folder: Path) -> Path:
    """Where the index of a shard folder lies, if nothing else is said."""
    return folder.with_name(folder.name + ".search")


def build(folders: list[Path], ledgers: list[Path], output: Path) -> int:
    """Write the index of shard folders, and of the links that ledgers say were dropped.

    Returns:
        How many rows it has.
    """
    from data_tools.withdrawal.shard_withdrawal import shard_folders

    parts = [(folder, part) for folder in folders for _, part in shard_folders(folder)]
    about = [{"name": part.path.name, "merkle_root": part.merkle_root, "samples": part.samples} for _, part in parts]
    with IndexWriter(output, about) as writer:
        for _, part in parts:
            for key, members in _samples(part.path):
                _add_sample(writer, part.path.name, key, members)
        for ledger in ledgers:
            for row in _dropped(ledger):
                _add_link(writer, row)
    return writer.rows


def _samples(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    from rich.progress import track

    from leam_mm.data.shard_index import ShardFolder, read_samples

    yield from track(read_samples(path), "index", total=ShardFolder(path).samples, transient=True)


def _add_sample(writer: IndexWriter, name: str, key: str, members: dict[str, bytes]) -> None:
    try:
        record = json.loads(members["json"])
        texts = {caption_form(str(caption["text"])) for caption in record["captions"]}
        url, host = str(record.get("url") or ""), str(record.get("domain") or "")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{name}: sample {key} breaks the contract ({error!r}); run check_shards first") from None
    content = stored_image(members)
    digests = {bytes.fromhex(text)[:16] for text in [str(record.get("sha256"))] if _is_digest(text)}
    digests |= {hashlib.sha256(content).digest()[:16]} if content is not None else set()
    hosts = {*parent_domains(host or host_of(url)), *parent_domains(host_of(record.get("page_url")))}
    code = sample_pdq(record, content)
    told = {"data_set": name, "key": key, "uid": record.get("uid"), "url": url, "kept": True, "reason": None}
    writer.add(told, _filed(digests, url, hosts, texts), code.tobytes() if code is not None else None)


def _dropped(ledger: Path) -> Iterator[dict[str, Any]]:
    columns = ["uid", "key", "url", "domain", "stage", "rule", "kept", "sha256"]
    for batch in read_ledger(ledger, columns):
        yield from (row for row in batch.to_pylist() if row["kept"] is False)


def _add_link(writer: IndexWriter, row: dict[str, Any]) -> None:
    digests = {bytes.fromhex(text)[:16] for text in [str(row["sha256"])] if _is_digest(text)}
    url = row["url"] or ""
    told = {"data_set": None, "key": row["key"], "uid": row["uid"], "url": url, "kept": False}
    hosts = set(parent_domains(row["domain"] or host_of(url)))
    writer.add(told | {"reason": f"{row['stage']}: {row['rule']}"}, _filed(digests, url, hosts, set()), None)


def _filed(digests: set[bytes], url: str, hosts: set[str], texts: set[str]) -> dict[str, Iterable[bytes]]:
    return {
        "sha256": sorted(digests),
        "url": [digest_of(normalised_url(url))] if url else [],
        "domain": sorted(digest_of(host) for host in hosts),
        "caption": sorted(digest_of(text) for text in texts),
    }


def _is_digest(text: str) -> bool:
    return re.fullmatch(r"[0-9a-fA-F]{64}", text) is not None


def ask(index: SearchIndex, kind: str, value: str, radius: int = RADIUS, limit: int = SHOWN) -> Answer:
    """Look something up.

    Args:
        index: Where.
        kind: ``image`` (a file), ``sha256``, ``url``, ``domain`` or ``caption``.
        value: What.
        radius: Bits of 256 in which the PDQ hash of copies may differ.
        limit: Rows that are told; all are counted.
    """
    begin = time.perf_counter()
    notes: list[str] = []
    why: dict[int, str] = {}
    if kind == "image":
        picture = read_picture(Path(value))
        rows = index.find("sha256", bytes.fromhex(picture.sha256)[:16]).tolist()
        why = {row: "the same file" for row in rows}
        if picture.flat:
            notes.append(f"the picture is flat (PDQ quality {picture.quality}): only the very same file is looked for")
        else:
            near = index.near(picture.hashes, radius)
            rows += [row for _, row in near if row not in why]
            why = {row: f"{bits} of 256 bits differ" for bits, row in near} | why
            missing = index.rows - int(index.about["entries"]["pdq"])
            if missing:
                notes.append(f"{missing:,} of {index.rows:,} rows have no PDQ hash and were compared by digest only")
    else:
        if kind == "sha256" and not _is_digest(value):
            raise UserError(f"{value[:80]!r} is no SHA-256: give 64 hex digits")
        digest = {
            "sha256": lambda: bytes.fromhex(value)[:16],
            "url": lambda: digest_of(normalised_url(value)),
            "domain": lambda: digest_of(value.strip().strip(".").lower()),
            "caption": lambda: digest_of(caption_form(value)),
        }[kind]()
        rows = np.unique(index.find(kind, digest)).tolist()
    told = [index.told(row) | {"why": why.get(row, f"the same {kind}")} for row in rows[:limit]]
    return Answer(len(rows), told, notes, time.perf_counter() - begin)


def kind_of(value: str) -> str:
    """What a word on the command line is: a digest, an address, or a picture file."""
    if _is_digest(value):
        return "sha256"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", value):
        return "url"
    if not Path(value).is_file():
        raise UserError(f"{value[:200]} is no file, no address with :// and no SHA-256: give one of these")
    return "image"


def contains(folder: Path, value: str) -> bool:
    """Answer for a shard folder, from the index beside it; one that is missing or of another state is built first."""
    from data_tools.withdrawal.shard_withdrawal import shard_folders

    kind, place = kind_of(value), place_of(folder)
    roots = [part.merkle_root for _, part in shard_folders(folder)]
    index = SearchIndex(place) if place.is_dir() else None
    if index is None or not set(roots) <= {entry["merkle_root"] for entry in index.about["data_sets"]}:
        print(f"{place} is {'missing' if index is None else 'of another state'}: built first, once")
        build([folder], [], place)
        index = SearchIndex(place)
    answer = ask(index, kind, value)
    tell(answer, index)
    return any(row["kept"] for row in answer.rows)


def tell(answer: Answer, index: SearchIndex) -> None:
    """Print an answer."""
    for row in answer.rows:
        fate = (
            f"used: sample {row['key']} of {row['data_set']}"
            if row["kept"]
            else f"not used, dropped by {row['reason']}"
        )
        print(f"{fate}; {row['why']}; {row['url']}")
    if answer.count > len(answer.rows):
        print(f"and {answer.count - len(answer.rows):,} more")
    for note in answer.notes:
        print(f"note: {note}")
    found = f"{answer.count:,} rows fit" if answer.count else "not found"
    print(f"{found}; {index.rows:,} rows looked through in {answer.seconds:.3f} s")


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("build", help="write the index")
    make.add_argument("--shards", type=Path, action="append", required=True, help="shard folder; may be repeated")
    make.add_argument("--ledger", type=Path, action="append", default=[], help="of links that were dropped, too")
    make.add_argument("--output", type=Path, help="folder of the index (default: the first --shards with .search)")
    question = commands.add_parser("ask", help="look something up")
    question.add_argument("--index", type=Path, required=True, help="folder that build wrote")
    what = question.add_mutually_exclusive_group(required=True)
    for kind in ("image", "sha256", "url", "domain", "caption"):
        what.add_argument(f"--{kind}")
    question.add_argument("--radius", type=int, default=RADIUS, help="bits of 256 for --image (%(default)s)")
    question.add_argument("--limit", type=int, default=SHOWN, help="rows to print (%(default)s)")
    settings = parser.parse_args(args)
    if settings.command == "build":
        output = settings.output or place_of(settings.shards[0])
        print(f"{output}: {build(settings.shards, settings.ledger, output):,} rows")
        return
    index = SearchIndex(settings.index)
    kinds = ("image", "sha256", "url", "domain", "caption")
    kind, value = next((kind, getattr(settings, kind)) for kind in kinds if getattr(settings, kind) is not None)
    if not 0 <= settings.radius <= 60:
        raise UserError(f"--radius is {settings.radius}: give 0 to 60 bits of 256; above, unrelated pictures match")
    answer = ask(index, kind, value, settings.radius, settings.limit)
    tell(answer, index)
    if not answer.count:
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)
