"""``python -m leam_mm.planning check``: the planner against published runs, and public claims weighed."""

from dataclasses import dataclass

from leam_mm.planning.public_claims import claims
from leam_mm.planning.public_record import Row, all_rows
from leam_mm.planning.published_rates import published_rates


@dataclass(frozen=True)
class CheckOptions:
    """Compare the planner with published runs; the exit code is 1 if a row exceeds its tolerance.

    Args:
        predictions: Print predictions only, and leave identities out.
        markdown: Print the tables in Markdown, as in docs/planning.md.
    """

    predictions: bool = False
    markdown: bool = False


HEADER = ["what", "published", "ours", "unit", "difference", "allowed", "kind", "source", "ours rests on"]
RIGHT = {1, 2, 4, 5}  # columns of numbers


def cells(row: Row) -> list[str]:
    """Return the cells of a row."""
    difference = f"{row.difference:+.1%}".replace("-0.0%", "+0.0%") + ("" if row.passed else " FAILED")
    source = row.source + ("" if row.read else " (from memory)")
    numbers = [number(row.published), number(row.ours), row.unit, difference, f"{row.tolerance:.0%}"]
    return [row.what, *numbers, row.kind, source, row.note]


def table(rows: list[Row]) -> str:
    """Return the rows as text in columns."""
    lines = [HEADER, *(cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in RIGHT else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def markdown(rows: list[Row]) -> str:
    """Return the rows as a table in Markdown."""
    rule = ["---:" if column in RIGHT else "---" for column in range(len(HEADER))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (HEADER, rule, *(cells(row) for row in rows)))


def rates_text(in_markdown: bool) -> str:
    """Return the published rates with the MFU that follows from each, as text or in Markdown."""
    lines = [(one.what, one.kind, f"{one.mfu:.1%}", one.source) for one in published_rates()]
    if in_markdown:
        head = ("run", "kind", "MFU", "source of the rate"), ("---", "---", "---:", "---")
        return "\n".join(f"| {' | '.join(line)} |" for line in (*head, *lines))
    return "\n".join(f"{what:<44}  {kind:<11}  {mfu:>6}  {source}" for what, kind, mfu, source in lines)


def number(value: float) -> str:
    """Return a number with four significant digits."""
    return f"{value:.3e}" if value >= 1e9 else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def check(options: CheckOptions) -> int:
    """Print table and claims; return 1 if a row exceeds its tolerance."""
    rows = [row for row in all_rows() if not options.predictions or row.kind == "prediction"]
    print("FLOP count two for each multiply-accumulate. An identity uses the published number itself.\n")
    print(markdown(rows) if options.markdown else table(rows))
    failed = [row for row in rows if not row.passed]
    made = sum(row.kind == "prediction" for row in rows)
    print(f"\n{len(rows) - len(failed)} of {len(rows)} rows within tolerance; {made} are predictions")
    print("\nMFU that follows from published rates (model FLOP, dense bf16 peak), evidence of the profiles' ranges:\n")
    print(rates_text(options.markdown))
    print("\nclaims of the LEAM papers and of the press:")
    for claim in claims():
        print(f"\n{'- ' if options.markdown else ''}{claim.verdict}: {claim.text}")
        for line in claim.lines:
            print(f"  {'- ' if options.markdown else ''}{line}")
    return 1 if failed else 0
