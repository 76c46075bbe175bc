"""Outcomes of single samples in a line of results.jsonl, with a digest that names the samples.

Hits take one bit a sample, other values two bytes. With them a reader recomputes the interval of a number, and two
models that were measured on the same samples are compared in pairs.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy

MAX_SAMPLES = 10_000_000
STEPS = 65535  # of values, between the smallest and the largest


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of samples.

    Args:
        samples: Digest and number of the samples; equal for the same samples in the same order.
        values: (B,) float64; hits are 0 and 1.
        hits: Whether each is a hit or a miss.
    """

    samples: str
    values: numpy.ndarray
    hits: bool


def write_outcomes(values: numpy.ndarray, keys: Iterable[str]) -> dict[str, Any]:
    """Return the entry ``outcomes`` of a line.

    Args:
        values: (B,) hits, bool or 0 and 1, or any finite numbers; numbers are rounded to 1/65535 of their range.
        keys: Names of the samples, in the same order.
    """
    names = hashlib.sha256("\n".join(keys).encode("utf-8", "surrogatepass")).hexdigest()
    values = numpy.asarray(values, dtype=float)
    entry: dict[str, Any] = {"of": names, "count": len(values)}
    if numpy.isin(values, (0.0, 1.0)).all():
        return entry | {"bits": numpy.packbits(values.astype(bool)).tobytes().hex()}
    low, step = float(values.min()), float(values.max() - values.min()) / STEPS
    steps = numpy.rint((values - low) / (step or 1.0)).astype("<u2")
    return entry | {"low": low, "step": step, "values": base64.b64encode(steps.tobytes()).decode()}


def read_outcomes(row: Mapping[str, Any]) -> Outcomes | None:
    """Return the outcomes of a line; None where it has none, or where they do not agree with its value.

    Args:
        row: A line of results.jsonl, which may be a stranger's.
    """
    entry, value = row.get("outcomes"), row.get("value")
    if not isinstance(entry, dict) or not isinstance(value, int | float):
        return None
    names, count = entry.get("of"), entry.get("count")
    if not isinstance(names, str) or type(count) is not int or not 0 < count <= MAX_SAMPLES:
        return None
    hits = "bits" in entry
    values = _bits(entry["bits"], count) if hits else _values(entry, count)
    if values is None:
        return None
    tolerance = 1e-6 if hits else max(1e-6, abs(entry["step"]))
    agrees = abs(float(values.mean()) - value) <= tolerance
    return Outcomes(f"{names} {count}", values, hits) if agrees else None


def _bits(bits: object, count: int) -> numpy.ndarray | None:
    try:
        packed = numpy.frombuffer(bytes.fromhex(bits), numpy.uint8) if isinstance(bits, str) else None
    except ValueError:
        return None
    if packed is None or len(packed) != (count + 7) // 8:
        return None
    return numpy.unpackbits(packed, count=count).astype(float)


def _values(entry: Mapping[str, Any], count: int) -> numpy.ndarray | None:
    low, step, text = (entry.get(key) for key in ("low", "step", "values"))
    if not isinstance(text, str) or not all(type(number) in (int, float) for number in (low, step)):
        return None
    try:
        raw = base64.b64decode(text, validate=True)
        smallest, size = float(low), float(step)  # type: ignore[arg-type]
    except (binascii.Error, ValueError, OverflowError):  # the last: a whole number of hundreds of digits
        return None
    if len(raw) != 2 * count:
        return None
    with numpy.errstate(over="ignore", invalid="ignore"):
        values = smallest + size * numpy.frombuffer(raw, "<u2").astype(float)
    return values if numpy.isfinite(values).all() else None
