"""Compare two results files: differences with intervals, tests, and Holm's correction for their number.

python evaluate.py compare runs/a/evaluation runs/b/evaluation --only scenes/top1
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from leam_mm.command_line import parse_settings
from leam_mm.errors import UserError, printable
from leam_mm.evaluators.results import RESULTS, read_lines
from leam_mm.files import write_text
from leam_mm.intervals.compared_results import ComparedMetric, Row, compare_rows

LEVEL = 0.05  # of corrected p values
COLUMNS = ("metric", "A", "B", "B - A", "95 % interval", "kind", "p, Holm", "")


@dataclass(frozen=True)
class CompareOptions:
    """Settings of a comparison.

    Args:
        a: results.jsonl of A, or its folder.
        b: results.jsonl of B, or its folder; differences are B minus A.
        output: File for the comparison as JSON lines; none is written without it.
        only: Start of the names to compare, such as scenes/top1; fewer tests need a smaller correction.
    """

    a: Path
    b: Path
    output: Path | None = None
    only: str = ""


def compare(options: CompareOptions) -> list[ComparedMetric]:
    """Print the table, and write the lines.

    Raises:
        UserError: A file is missing, no name begins with `only`, or `output` is one of the files that are compared.
    """
    _check_output(options)
    a, b = ([row for row in _read(path) if row["name"].startswith(options.only)] for path in (options.a, options.b))
    if not a and not b:
        raise UserError(f"--only {options.only}: no result has such a name; run the comparison without it")
    found = compare_rows(a, b, any_settings=True)
    compared = [metric for metric in found if metric.difference.value is not None]
    if compared:
        _print([COLUMNS, *(_cells(metric) for metric in compared)])
    for note, count in Counter(metric.note or "not measured" for metric in found if metric not in compared).items():
        print(f"{count} not compared: {printable(note)}")
    kinds = Counter(metric.difference.kind for metric in compared)
    clear = sum(metric.adjusted is not None and metric.adjusted < LEVEL for metric in compared)
    print(
        f"{len(compared)} compared: {kinds['paired']} paired, on the same samples; {kinds['independent']} independent, "
        f"as if the samples were different; {clear} differ (*) at {LEVEL:.0%} after Holm's correction"
    )
    if options.output is not None:
        write_text(options.output, "".join(json.dumps(_line(m), ensure_ascii=False) + "\n" for m in found))
        print(f"wrote {options.output}")
    return found


def _file(path: Path) -> Path:
    return path / RESULTS if path.is_dir() else path


def _check_output(options: CompareOptions) -> None:
    output = options.output
    if output is None:
        return
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: give the name of a file in it")
    if output.resolve() in (_file(options.a).resolve(), _file(options.b).resolve()):
        raise UserError(f"--output {output} is one of the files that are compared: give another one")


def _read(path: Path) -> list[Row]:
    file = _file(path)
    if not file.is_file():
        raise UserError(f"{file} is missing: give a {RESULTS} of evaluate.py, or its folder")
    if not (rows := read_lines(file)):
        raise UserError(f"{file} holds no result: run evaluate.py again")
    return list({row["name"]: row for row in rows}.values())


def _cells(metric: ComparedMetric) -> tuple[str, ...]:
    change = metric.difference
    ends = "" if change.low is None or change.high is None else f"{change.low:+.4g} to {change.high:+.4g}"
    p = "" if metric.adjusted is None else f"{metric.adjusted:.2g}"
    star = "*" if metric.adjusted is not None and metric.adjusted < LEVEL else ""
    values = [f"{row['value']:.4g}" for row in (metric.one, metric.other)]
    kind = change.kind if change.kind != "none" else "no interval"
    notes = " ".join(filter(None, (star, printable(metric.note))))
    return (printable(metric.name), *values, f"{change.value:+.4g}", ends, kind, p, notes)


def _print(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _line(metric: ComparedMetric) -> dict[str, object]:
    change, row = metric.difference, metric.one or metric.other
    numbers = ("value", "low", "high")
    sides = ({key: side.get(key) for key in numbers} if side else None for side in (metric.one, metric.other))
    return {
        "name": metric.name, "unit": row.get("unit"), "samples": row.get("samples"),
        **{name: side for name, side in zip(("a", "b"), sides, strict=True)},
        "difference": change.value, "low": change.low, "high": change.high, "kind": change.kind,
        "p_value": change.p_value, "p_value_holm": metric.adjusted, "note": metric.note,
    }  # fmt: skip


def main(args: list[str]) -> None:
    """Parse the command line and compare."""
    compare(parse_settings(CompareOptions, __doc__, args, program="evaluate.py compare", positional=("a", "b")))
