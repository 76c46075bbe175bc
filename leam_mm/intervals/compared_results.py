"""Results of two models side by side: differences with intervals, tests, and a correction for many tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from leam_mm.intervals.difference_interval import Difference, difference
from leam_mm.intervals.indicative import INDICATIVE, is_indicative

Row = Mapping[str, Any]  # one line of results.jsonl
SAME = ("evaluator", "unit", "samples")  # of two lines that can be compared
WITHOUT_EFFECT = ("batch_size", "workers", "device", "output")  # settings that change no result


@dataclass(frozen=True)
class ComparedMetric:
    """A metric of two models.

    Args:
        name: Its name.
        one: Line of A; empty if A was not measured.
        other: Line of B; empty if B was not measured.
        difference: B - A.
        note: Why both cannot be compared, what differs besides the model, whether a number is indicative; or empty.
        adjusted: p value with Holm's correction over all compared metrics, or None.
    """

    name: str
    one: Row
    other: Row
    difference: Difference
    note: str
    adjusted: float | None = None


def compare_rows(one: Sequence[Row], other: Sequence[Row], any_settings: bool = False) -> list[ComparedMetric]:
    """Return every metric of either side; audits are left out.

    Args:
        one: Lines of A, the last of each name counts.
        other: Lines of B.
        any_settings: Whether numbers that were measured with other settings are compared, too; their note says so.
    """
    rows_a, rows_b = ({str(row["name"]): row for row in rows} for rows in (one, other))
    found = []
    for name in dict.fromkeys([*rows_a, *rows_b]):
        if name.startswith("audit/"):
            continue
        a, b = rows_a.get(name, {}), rows_b.get(name, {})
        note, changed = _obstacle(a, b), other_settings(a, b)
        comparable = not note and (any_settings or not changed)
        if not note and changed:
            note = f"measured with other settings: {', '.join(changed)}"
        if comparable and (is_indicative(a) or is_indicative(b)):
            note = "; ".join(filter(None, (INDICATIVE, note)))
        found.append(ComparedMetric(name, a, b, difference(a, b) if comparable else Difference(None), note))
    values = [metric.difference.p_value for metric in found]
    return [replace(metric, adjusted=p) for metric, p in zip(found, holm(values), strict=True)]


def other_settings(one: Row, other: Row) -> list[str]:
    """Return the names of the settings in which two lines differ, without those that change no result."""
    first, second = (_settings(row) for row in (one, other))
    return [n for n in {**first, **second} if n not in WITHOUT_EFFECT and first.get(n) != second.get(n)]


def _settings(row: Row) -> dict[str, Any]:
    """Return a line's settings with those of the sampler beside the others, as older lines have them."""
    found = value if isinstance(value := row.get("settings"), dict) else {}
    sampling = value if isinstance(value := found.get("sampling"), dict) else {}
    others = {name: value for name, value in found.items() if name != "sampling" or not sampling}
    return others | {name: value for name, value in sampling.items() if name != "class"}


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p values corrected for their number (Holm 1979, Scandinavian Journal of Statistics 6, 65-70).

    Args:
        p_values: None where there was no test.
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(order):
        largest = min(1.0, max(largest, p * (len(order) - rank)))
        adjusted[place] = largest
    return adjusted


def _obstacle(one: Row, other: Row) -> str:
    """Return why two lines of one metric are no comparison."""
    if not one or not other:
        return f"only {'A' if one else 'B'} was measured"
    for key in SAME:
        if one.get(key) != other.get(key):
            return "measured with another number of samples" if key == "samples" else f"measured with another {key}"
    return ""
