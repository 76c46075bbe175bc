"""Outcomes of single samples in a line of results.jsonl: one bit a sample, with a digest that names the samples.

With them, two models that were measured on the same samples are compared in pairs.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy

MAX_SAMPLES = 10_000_000


def write_outcomes(hits: numpy.ndarray, keys: Iterable[str]) -> dict[str, Any]:
    """Return the entry ``outcomes`` of a line.

    Args:
        hits: (B,) bool or 0 and 1.
        keys: Names of the samples, in the same order.
    """
    names = hashlib.sha256("\n".join(keys).encode("utf-8", "surrogatepass")).hexdigest()
    return {"of": names, "count": len(hits), "bits": numpy.packbits(hits.astype(bool)).tobytes().hex()}


def read_outcomes(row: Mapping[str, Any]) -> tuple[str, numpy.ndarray] | None:
    """Return the digest of the samples and (B,) bool outcomes of a line; None where it has none.

    Args:
        row: A line of results.jsonl, which may be a stranger's.
    """
    entry = row.get("outcomes")
    if not isinstance(entry, dict):
        return None
    names, count, bits = (entry.get(key) for key in ("of", "count", "bits"))
    if (
        not isinstance(names, str)
        or not isinstance(bits, str)
        or type(count) is not int
        or not 0 < count <= MAX_SAMPLES
    ):
        return None
    try:
        packed = numpy.frombuffer(bytes.fromhex(bits), numpy.uint8)
    except ValueError:
        return None
    if len(packed) != (count + 7) // 8:
        return None
    hits = numpy.unpackbits(packed, count=count).astype(bool)
    value = row.get("value")
    agrees = isinstance(value, int | float) and abs(float(hits.mean()) - value) < 1e-6
    return (f"{names} {count}", hits) if agrees else None
