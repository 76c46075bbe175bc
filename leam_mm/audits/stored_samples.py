"""Samples of shards under audit, all or a random part, and rates of rare events among them.

A damaged sample is reported and does not end the audit.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import binomtest

from leam_mm.data.image_limits import MEMBER_EXTENSIONS
from leam_mm.data.sample_json import read_sample_json
from leam_mm.data.shard_index import ShardFolder
from leam_mm.errors import UserError

FEWEST = 30  # samples drawn that may decide: the rule of three then bounds the rate by a tenth


@dataclass(frozen=True)
class StoredSample:
    """A sample as it lies in a shard.

    Args:
        key: Its key; empty where the index of its shard cannot be read.
        record: Its json; empty where it cannot be read.
        image: Its image file; None if it has none, as in latent shards.
        fault: What is wrong with it; empty if it can be read.
    """

    key: str
    record: dict[str, Any] = field(default_factory=dict)
    image: bytes | None = None
    fault: str = ""


def read_stored(folder: ShardFolder, samples: int | None, seed: int) -> Iterator[StoredSample]:
    """Yield the samples of a shard folder in its order.

    Args:
        folder: The folder.
        samples: Number of samples, drawn without replacement; None reads all.
        seed: Seed of the draw.
    """
    chosen = np.arange(folder.samples)
    if samples is not None and samples < folder.samples:
        chosen = np.sort(np.random.default_rng(seed).choice(folder.samples, samples, replace=False))
    start = 0
    for number, entry in enumerate(folder.shards):
        rows = chosen[(chosen >= start) & (chosen < start + entry.samples)] - start
        start += entry.samples
        if len(rows):
            yield from _read_shard(folder, number, rows.tolist())


def _read_shard(folder: ShardFolder, number: int, rows: list[int]) -> Iterator[StoredSample]:
    try:
        shard = folder.open_shard(number)
    except UserError as error:
        yield from (StoredSample("", fault=str(error)) for _ in rows)
        return
    with shard:
        for row in rows:
            yield _read_sample(shard.keys[row], lambda row=row: shard.members(row))  # type: ignore[misc]


def _read_sample(key: str, read: Any) -> StoredSample:
    try:
        members = read()
        image = next((members[name] for name in MEMBER_EXTENSIONS if name in members), None)
    except UserError as error:
        return StoredSample(key, fault=str(error))
    try:
        return StoredSample(key, read_sample_json(members), image)
    except UserError as error:
        return StoredSample(key, image=image, fault=str(error))


def rate_interval(hits: int, samples: int) -> tuple[float, float]:
    """Return the 95 % interval of the rate of a rare event.

    Args:
        hits: Number of events; without one, the upper end is 3 / samples (rule of three, Hanley and Lippman-Hand 1983).
        samples: Number of trials; with 0 nothing is known.

    Returns:
        Lower and upper end; with events those of Clopper and Pearson (1934).
    """
    if samples == 0:
        return 0.0, 1.0
    if hits == 0:
        return 0.0, min(1.0, 3 / samples)
    interval = binomtest(hits, samples).proportion_ci(0.95, method="exact")
    return float(interval.low), float(interval.high)


def rate_slice(hits: int, samples: int, per: int = 1) -> dict[str, Any]:
    """Return a rate as a slice of a result.

    Args:
        hits: Number of events.
        samples: Number of trials.
        per: Number of trials that the rate refers to, such as 10,000.
    """
    low, high = rate_interval(hits, samples)
    value = per * hits / samples if samples else None
    return {"value": value, "low": per * low, "high": per * high, "samples": samples}
