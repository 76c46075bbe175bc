"""What became of every link: the ledgers of all stages in order, with a check that no link is lost between them.

A stage's final decision on a link is the row with rule ``kept``, or the one with ``kept`` false; other rows are answers
of single rules. The links that a stage kept must be those that the next one decided on, and those that the last stage
kept must be in the shards.
"""

import re
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from leam_mm.data.keep_list import read_keep_list
from leam_mm.data.ledger import LEDGER, WITHDRAWAL, WITHDRAWN, read_ledger
from leam_mm.errors import UserError
from leam_mm.files import bytes_sha256

ORDER = ("crawl_links", "screen_links", "download_shards", "vet_shards")
FETCHES = "download_shards"  # the stage whose rows record bytes and time of each fetch
COLUMNS = ("uid", "key", "stage", "rule", "kept", "bytes", "fetched_at", "domain")


@dataclass
class StageFlow:
    """Final decisions of one stage.

    Args:
        kept: Number of links that were kept, those that were withdrawn later included.
        withdrawn: Number of these that were withdrawn later.
        dropped: Number of links by the rule that dropped them.
        kept_ids: First 64 bits of the uids of kept links.
        dropped_ids: Likewise of dropped links.
        unnamed: Number of rows without uid.
    """

    kept: int = 0
    withdrawn: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    kept_ids: "array[int]" = field(default_factory=lambda: array("Q"))
    dropped_ids: "array[int]" = field(default_factory=lambda: array("Q"))
    unnamed: int = 0

    @property
    def given(self) -> int:
        """Number of links that the stage decided on."""
        return self.kept + sum(self.dropped.values())

    def ids(self, kept_only: bool) -> np.ndarray:
        """Return the sorted identities of the kept links, or of all."""
        return np.unique(numbers(self.kept_ids if kept_only else self.kept_ids + self.dropped_ids))


@dataclass
class Flow:
    """All stages in order.

    Args:
        stages: By name.
        fetched_ids: Sorted identities of the links that were fetched and kept.
        fetched_bytes: Number of bytes of each of them.
        months: Links that were fetched and kept, by month (YYYY-MM).
        crawl_months: Likewise of links from the web; the others are files.
    """

    stages: dict[str, StageFlow]
    fetched_ids: np.ndarray
    fetched_bytes: np.ndarray
    months: Counter[str]
    crawl_months: Counter[str]

    def bytes_of(self, uid: str | None) -> int | None:
        """Return the bytes of a link when it was fetched, or None where no ledger records it."""
        if not uid or not len(self.fetched_ids):
            return None
        wanted = np.uint64(identity(uid))
        row = int(np.searchsorted(self.fetched_ids, wanted))
        if row == len(self.fetched_ids) or self.fetched_ids[row] != wanted:
            return None
        return int(self.fetched_bytes[row])


def identity(uid: str) -> int:
    """Return the first 64 bits of a uid, or of the SHA-256 of a text that is not a uid."""
    if re.fullmatch("[0-9a-fA-F]{16}", uid[:16]) and len(uid) == 32:
        return int(uid[:16], 16)
    return int(bytes_sha256(uid.encode())[:16], 16)


def numbers(column: "array[int]") -> np.ndarray:
    """Return a growing column of 64-bit numbers as an array."""
    return np.array(column, np.uint64)


def own_ledgers(folder: Path) -> list[Path]:
    """Return the ledgers of a shard folder: its own, and for a keep-list first those of the shards it selects from."""
    kept = None if (folder / "manifest.jsonl").is_file() else read_keep_list(folder)
    before = own_ledgers(folder / kept.shards) if kept is not None and "://" not in kept.shards else []
    return [*before, folder / LEDGER] if (folder / LEDGER).is_file() else before


def read_flow(ledgers: Iterable[Path]) -> Flow:
    """Read ledgers; those of the same stage are summed."""
    stages: dict[str, StageFlow] = {}
    ids, sizes, months, crawl_months = array("Q"), array("Q"), Counter[str](), Counter[str]()
    for path in ledgers:
        for batch in read_ledger(path, COLUMNS):
            for row in batch.to_pylist():
                if row["stage"] == WITHDRAWAL:
                    continue  # rows of the earlier stages record withdrawals themselves
                kept = row["rule"] in ("kept", WITHDRAWN)
                if not kept and row["kept"] is not False:
                    continue
                stage = stages.setdefault(str(row["stage"]), StageFlow())
                if kept:
                    stage.kept += 1
                    stage.withdrawn += row["rule"] == WITHDRAWN
                else:
                    stage.dropped[str(row["rule"])] += 1
                if row["uid"]:
                    one = identity(row["uid"])
                    (stage.kept_ids if kept else stage.dropped_ids).append(one)
                    if kept and row["stage"] == FETCHES and row["bytes"] is not None:
                        ids.append(one)
                        if row["bytes"] < 0:
                            raise UserError(f"{path} has a row of {row['bytes']} bytes: build it again")
                        sizes.append(row["bytes"])
                else:
                    stage.unnamed += 1
                if kept and row["stage"] == FETCHES and row["fetched_at"]:
                    months[row["fetched_at"][:7]] += 1
                    crawl_months[row["fetched_at"][:7]] += bool(row["domain"])
    all_ids = numbers(ids)
    order = np.argsort(all_ids, kind="stable")
    names = sorted(stages, key=lambda name: (ORDER.index(name) if name in ORDER else -1, list(stages).index(name)))
    return Flow({name: stages[name] for name in names}, all_ids[order], numbers(sizes)[order], months, +crawl_months)


def account(flow: Flow, samples: int, sample_ids: np.ndarray) -> dict[str, Any]:
    """Check that every link is kept or dropped exactly once.

    Args:
        flow: Decisions of all ledgers.
        samples: Number of samples in the shards.
        sample_ids: Identities of the samples that have a uid.

    Returns:
        ``links``, ``dropped``, ``withdrawn``, ``kept``, ``samples``, and ``faults``: one sentence for each fault.
    """
    names = list(flow.stages)
    if not names:
        return {"links": None, "dropped": None, "withdrawn": None, "kept": None, "samples": samples, "faults": []}
    faults = []
    for before, after in pairwise(names):
        earlier, later = flow.stages[before], flow.stages[after]
        if earlier.kept != later.given:
            faults.append(f"{before} kept {earlier.kept} links, {after} decided on {later.given}")
        elif not earlier.unnamed and not later.unnamed:
            lost = len(np.setdiff1d(earlier.ids(True), later.ids(False), assume_unique=True))
            strange = len(np.setdiff1d(later.ids(False), earlier.ids(True), assume_unique=True))
            if lost or strange:
                faults.append(f"{lost} links that {before} kept never came to {after}, {strange} others did")
    last, first = flow.stages[names[-1]], flow.stages[names[0]]
    kept = last.kept - last.withdrawn
    if kept != samples:
        faults.append(f"{names[-1]} kept {kept} links, the shards hold {samples} samples")
    elif not last.unnamed and len(sample_ids) == samples:
        foreign = len(np.setdiff1d(np.unique(sample_ids), last.ids(True), assume_unique=True))
        if foreign:
            faults.append(f"{foreign} samples of the shards are not among what {names[-1]} kept")
    dropped = sum(sum(stage.dropped.values()) for stage in flow.stages.values())
    if first.given != dropped + last.withdrawn + kept and not faults:
        faults.append(f"{first.given} links came in, {dropped} were dropped, {last.withdrawn} withdrawn, {kept} kept")
    counts = {"links": first.given, "dropped": dropped, "withdrawn": last.withdrawn, "kept": kept, "samples": samples}
    return {**counts, "faults": faults}
