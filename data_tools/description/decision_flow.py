"""What became of every link: the ledgers of all stages, one after the other, with a check that nothing is lost between.

A stage's final decision on a link is the row with rule ``kept``, or the one with ``kept`` false; other rows are answers
on the way. What a stage kept must be what the next one was given; what the last one kept must lie in the shards.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.withdrawal.shard_withdrawal import STAGE, WITHDRAWN
from data_tools.work.ledger import LEDGER, read_ledger
from leam_mm.data.keep_list import read_keep_list

ORDER = ("crawl_links", "screen_links", "download_shards", "vet_shards")
FETCHES = "download_shards"  # the stage whose rows tell bytes and times of what was fetched
COLUMNS = ("uid", "key", "stage", "rule", "kept", "bytes", "fetched_at", "domain")


@dataclass
class StageFlow:
    """Final decisions of one stage.

    Args:
        kept: How many links stayed, those that were withdrawn later among them.
        withdrawn: How many of these were withdrawn later.
        dropped: Links by the rule that dropped them.
        kept_ids: First 64 bits of the uids of those that stayed.
        dropped_ids: Likewise of the others.
        unnamed: Rows without uid.
    """

    kept: int = 0
    withdrawn: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    kept_ids: "array[int]" = field(default_factory=lambda: array("Q"))
    dropped_ids: "array[int]" = field(default_factory=lambda: array("Q"))
    unnamed: int = 0

    @property
    def given(self) -> int:
        """How many links the stage decided on."""
        return self.kept + sum(self.dropped.values())

    def ids(self, kept_only: bool) -> np.ndarray:
        """Identities of the links that stayed, or of all."""
        return np.unique(numbers(self.kept_ids if kept_only else self.kept_ids + self.dropped_ids))


@dataclass
class Flow:
    """All stages in order.

    Args:
        stages: By name.
        fetched_ids: Sorted identities of the links that were fetched and stayed.
        fetched_bytes: How many bytes each of them brought.
        months: Links that were fetched and stayed, by month (YYYY-MM).
        crawl_months: Likewise of those from the web; the others are files.
    """

    stages: dict[str, StageFlow]
    fetched_ids: np.ndarray
    fetched_bytes: np.ndarray
    months: Counter[str]
    crawl_months: Counter[str]

    def bytes_of(self, uid: str | None) -> int | None:
        """Bytes that a link brought when it was fetched, or None where no ledger says it."""
        if not uid or not len(self.fetched_ids):
            return None
        wanted = np.uint64(identity(uid))
        place = int(np.searchsorted(self.fetched_ids, wanted))
        if place == len(self.fetched_ids) or self.fetched_ids[place] != wanted:
            return None
        return int(self.fetched_bytes[place])


def identity(uid: str) -> int:
    """First 64 bits of a uid, or of the SHA-256 of what is none."""
    try:
        return int(uid[:16], 16) if len(uid) == 32 else int(hashlib.sha256(uid.encode()).hexdigest()[:16], 16)
    except ValueError:
        return int(hashlib.sha256(uid.encode()).hexdigest()[:16], 16)


def numbers(column: "array[int]") -> np.ndarray:
    """A growing column of 64-bit numbers as an array."""
    return np.array(column, np.uint64)


def own_ledgers(folder: Path) -> list[Path]:
    """The ledgers that belong to a shard folder: its own, and of a keep-list those of its shards before."""
    kept = None if (folder / "manifest.jsonl").is_file() else read_keep_list(folder)
    before = own_ledgers(folder / kept.shards) if kept is not None and "://" not in kept.shards else []
    return [*before, folder / LEDGER] if (folder / LEDGER).is_file() else before


def read_flow(ledgers: Iterable[Path]) -> Flow:
    """Read ledgers; those of the same stage are added up."""
    stages: dict[str, StageFlow] = {}
    ids, sizes, months, crawl_months = array("Q"), array("Q"), Counter[str](), Counter[str]()
    for path in ledgers:
        for batch in read_ledger(path, COLUMNS):
            for row in batch.to_pylist():
                if row["stage"] == STAGE:
                    continue  # the rows of the stages before say so themselves
                stays = row["rule"] in ("kept", WITHDRAWN)
                if not stays and row["kept"] is not False:
                    continue
                stage = stages.setdefault(str(row["stage"]), StageFlow())
                if stays:
                    stage.kept += 1
                    stage.withdrawn += row["rule"] == WITHDRAWN
                else:
                    stage.dropped[str(row["rule"])] += 1
                if row["uid"]:
                    one = identity(row["uid"])
                    (stage.kept_ids if stays else stage.dropped_ids).append(one)
                    if stays and row["stage"] == FETCHES and row["bytes"] is not None:
                        ids.append(one)
                        sizes.append(row["bytes"])
                else:
                    stage.unnamed += 1
                if stays and row["stage"] == FETCHES and row["fetched_at"]:
                    months[row["fetched_at"][:7]] += 1
                    crawl_months[row["fetched_at"][:7]] += bool(row["domain"])
    all_ids = numbers(ids)
    order = np.argsort(all_ids, kind="stable")
    names = sorted(stages, key=lambda name: (ORDER.index(name) if name in ORDER else -1, list(stages).index(name)))
    return Flow({name: stages[name] for name in names}, all_ids[order], numbers(sizes)[order], months, +crawl_months)


def account(flow: Flow, samples: int, sample_ids: np.ndarray) -> dict[str, Any]:
    """Add everything up.

    Args:
        flow: Of all ledgers.
        samples: In the shards.
        sample_ids: Identities of those samples that have a uid.

    Returns:
        ``links``, ``dropped``, ``withdrawn``, ``kept``, ``samples``, and ``faults``: sentences, empty where every link
        is kept or dropped exactly once.
    """
    names = list(flow.stages)
    if not names:
        return {"links": None, "dropped": None, "withdrawn": None, "kept": None, "samples": samples, "faults": []}
    faults = []
    for before, after in pairwise(names):
        gone, come = flow.stages[before], flow.stages[after]
        if gone.kept != come.given:
            faults.append(f"{before} kept {gone.kept} links, {after} decided on {come.given}")
        elif not gone.unnamed and not come.unnamed:
            lost = len(np.setdiff1d(gone.ids(True), come.ids(False), assume_unique=True))
            strange = len(np.setdiff1d(come.ids(False), gone.ids(True), assume_unique=True))
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
    return {
        "links": first.given,
        "dropped": dropped,
        "withdrawn": last.withdrawn,
        "kept": kept,
        "samples": samples,
        "faults": faults,
    }
