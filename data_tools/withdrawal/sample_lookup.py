"""Look up whether an image, address, domain or caption is in a data set, by an index that is built once."""

import hashlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from data_tools.withdrawal.sample_selector import (
    RADIUS,
    caption_form,
    host_of,
    is_sha256,
    normal_url,
    read_image,
    sample_pdq,
    stored_image,
)
from data_tools.withdrawal.search_index import Digests, IndexWriter, SearchIndex, digest_of, write_index
from data_tools.withdrawal.shard_withdrawal import shard_folders
from leam_mm.data.ledger import read_ledger
from leam_mm.data.sample_json import read_sample_json, sample_captions
from leam_mm.data.shard_index import ShardFolder, read_samples
from leam_mm.errors import UserError

SHOWN = 10  # rows printed of an answer


@dataclass(frozen=True)
class Answer:
    """Result of a lookup.

    Args:
        count: Number of rows that match.
        rows: The first of them: columns of ``ROW_SCHEMA``, and ``why`` they match.
        notes: What the reader must know to interpret the result.
        seconds: Duration of the lookup.
    """

    count: int
    rows: list[dict[str, Any]]
    notes: list[str]
    seconds: float


def parent_domains(host: str) -> list[str]:
    """Return a host and the domains above it with at least two labels: it is found under each of them."""
    labels = host.split(".")
    if not host or re.fullmatch(r"[0-9.]+|.*:.*", host):
        return [host] if host else []
    return [".".join(labels[start:]) for start in range(max(1, len(labels) - 1))]


def index_folder(folder: Path) -> Path:
    """Return the default folder of a shard folder's index."""
    return folder.with_name(folder.name + ".search")


def build_index(folders: list[Path], ledgers: list[Path], output: Path) -> int:
    """Write the index of shard folders, and of the links that ledgers list as dropped.

    Returns:
        Number of rows.
    """
    parts = [part for folder in folders for _, part in shard_folders(folder)]
    data_sets = [{"name": part.path.name, "merkle_root": part.merkle_root, "samples": part.samples} for part in parts]
    with write_index(output, data_sets) as writer:
        for part in parts:
            samples = ShardFolder(part.path).samples
            for key, members in track(read_samples(part.path), "index", total=samples, transient=True):
                _add_sample(writer, part.path.name, key, members)
        for ledger in ledgers:
            for row in _dropped(ledger):
                _add_link(writer, row)
    return writer.rows


def _add_sample(writer: IndexWriter, name: str, key: str, members: dict[str, bytes]) -> None:
    try:
        record = read_sample_json(members)
        captions = {caption_form(caption["text"]) for caption in sample_captions(record)}
    except UserError as error:
        raise UserError(f"{name}: sample {key}: {error}") from None
    url, host = record.get("url") or "", record.get("domain") or ""
    content = stored_image(members)
    digests = {bytes.fromhex(text)[:16] for text in [str(record.get("sha256"))] if is_sha256(text)}
    digests |= {hashlib.sha256(content).digest()[:16]} if content is not None else set()
    hosts = {*parent_domains(host or host_of(url)), *parent_domains(host_of(record.get("page_url")))}
    code = sample_pdq(record, content)
    row = {"data_set": name, "key": key, "uid": record.get("uid"), "url": url, "kept": True, "reason": None}
    writer.add(row, _index_keys(digests, url, hosts, captions), code.tobytes() if code is not None else None)


def _dropped(ledger: Path) -> Iterator[dict[str, Any]]:
    columns = ["uid", "key", "url", "domain", "stage", "rule", "kept", "sha256"]
    for batch in read_ledger(ledger, columns):
        yield from (row for row in batch.to_pylist() if row["kept"] is False)


def _add_link(writer: IndexWriter, link: dict[str, Any]) -> None:
    digests = {bytes.fromhex(text)[:16] for text in [str(link["sha256"])] if is_sha256(text)}
    url, reason = link["url"] or "", f"{link['stage']}: {link['rule']}"
    row = {"data_set": None, "key": link["key"], "uid": link["uid"], "url": url, "kept": False, "reason": reason}
    hosts = set(parent_domains(link["domain"] or host_of(url)))
    writer.add(row, _index_keys(digests, url, hosts, set()), None)


def _index_keys(digests: set[bytes], url: str, hosts: set[str], captions: set[str]) -> Digests:
    return {
        "sha256": sorted(digests),
        "url": [digest_of(normal_url(url))] if url else [],
        "domain": sorted(digest_of(host) for host in hosts),
        "caption": sorted(digest_of(text) for text in captions),
    }


def look_up(index: SearchIndex, kind: str, value: str, radius: int = RADIUS, limit: int = SHOWN) -> Answer:
    """Look up one value.

    Args:
        index: The index.
        kind: ``image`` (a file), ``sha256``, ``url``, ``domain`` or ``caption``.
        value: What to look for.
        radius: Bits of 256 in which the PDQ hash of a copy may differ.
        limit: Largest number of rows in the answer; all are counted.
    """
    begin = time.perf_counter()
    notes: list[str] = []
    why: dict[int, str] = {}
    if kind == "image":
        image = read_image(Path(value))
        rows = index.find("sha256", bytes.fromhex(image.sha256)[:16]).tolist()
        why = {row: "the same file" for row in rows}
        if image.flat:
            notes.append(f"the image is flat (PDQ quality {image.quality}): only the very same file is looked for")
        else:
            near = index.near(image.hashes, radius)
            rows += [row for _, row in near if row not in why]
            why = {row: f"{bits} of 256 bits differ" for bits, row in near} | why
            missing = index.rows - int(index.description["entries"]["pdq"])
            if missing:
                notes.append(f"{missing:,} of {index.rows:,} rows have no PDQ hash and were compared by digest only")
    else:
        if kind == "sha256" and not is_sha256(value):
            raise UserError(f"{value[:80]!r} is not a SHA-256: give 64 hex digits")
        digest = {
            "sha256": lambda: bytes.fromhex(value)[:16],
            "url": lambda: digest_of(normal_url(value)),
            "domain": lambda: digest_of(value.strip().strip(".").lower()),
            "caption": lambda: digest_of(caption_form(value)),
        }[kind]()
        rows = np.unique(index.find(kind, digest)).tolist()
    shown = [index.row(row) | {"why": why.get(row, f"the same {kind}")} for row in rows[:limit]]
    return Answer(len(rows), shown, notes, time.perf_counter() - begin)


def kind_of(value: str) -> str:
    """Return whether a word of the command line is a ``sha256``, a ``url`` or an ``image`` file."""
    if is_sha256(value):
        return "sha256"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", value):
        return "url"
    if not Path(value).is_file():
        raise UserError(f"{value[:200]} is not a file, an address with :// or a SHA-256: give one of these")
    return "image"


def folder_contains(folder: Path, value: str) -> bool:
    """Look up an image, address or digest in a shard folder; its index is built first if missing or out of date."""
    kind, path = kind_of(value), index_folder(folder)
    roots = {part.merkle_root for _, part in shard_folders(folder)}
    index = SearchIndex(path) if path.is_dir() else None
    if index is None or not roots <= {entry["merkle_root"] for entry in index.description["data_sets"]}:
        print(f"{path} is {'missing' if index is None else 'out of date'}: building it")
        build_index([folder], [], path)
        index = SearchIndex(path)
    answer = look_up(index, kind, value)
    print_answer(answer, index)
    return any(row["kept"] for row in answer.rows)


def print_answer(answer: Answer, index: SearchIndex) -> None:
    """Print the result of a lookup."""
    for row in answer.rows:
        used = f"used: sample {row['key']} of {row['data_set']}"
        print(f"{used if row['kept'] else 'not used, dropped by ' + row['reason']}; {row['why']}; {row['url']}")
    if answer.count > len(answer.rows):
        print(f"and {answer.count - len(answer.rows):,} more")
    for note in answer.notes:
        print(f"note: {note}")
    found = f"{answer.count:,} rows match" if answer.count else "not found"
    print(f"{found}; {index.rows:,} rows searched in {answer.seconds:.3f} s")
