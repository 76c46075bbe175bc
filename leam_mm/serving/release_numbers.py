"""Measured numbers of one or two releases, side by side."""

from dataclasses import dataclass
from pathlib import Path

from leam_mm.evaluators.results import RESULTS, read_results
from leam_mm.intervals.indicative import is_indicative

MAX_RESULTS = 20_000_000  # bytes
MAX_ROWS = 1000


@dataclass(frozen=True)
class Number:
    """One metric of one release; None is not measured.

    Args:
        value: The value.
        low: Lower end of the interval.
        high: Upper end of the interval.
        unit: Its unit, or empty.
        indicative: Whether it is indicative only.
    """

    value: float | None
    low: float | None
    high: float | None
    unit: str
    indicative: bool = False


def read_numbers(folder: Path) -> dict[str, Number]:
    """Return the metrics in a release's results.jsonl by name; empty if there is none.

    Raises:
        UserError: The file cannot be read.
    """
    file = folder / RESULTS
    if not file.is_file() or file.stat().st_size > MAX_RESULTS:
        return {}
    rows = list(read_results(folder).items())[:MAX_ROWS]
    return {
        name: Number(row["value"], row["low"], row["high"], str(row.get("unit") or ""), is_indicative(row))
        for name, row in rows
    }


def side_by_side(one: Path, other: Path) -> list[tuple[str, Number | None, Number | None]]:
    """Return name and numbers of each metric that either release states, in the order of the first."""
    first, second = read_numbers(one), read_numbers(other)
    return [(name, first.get(name), second.get(name)) for name in dict.fromkeys([*first, *second])]
