"""How often the 95 % intervals of every kind hold the true value, in simulation.

    python tests/benchmarks/interval_coverage.py --repeats 1000

Each row draws data of a known truth, again and again, and counts. Distances are compared with their mean at the same
number of samples, which is what their interval is for. A coverage below 93 % is a fault; above 97 % an interval is
conservative, by its form where the row says so.
"""

from pathlib import Path

import measure
from rich.table import Table
from toys.interval_simulations import coverage, differences, distances, languages, means, proportions

from leam_mm.errors import run

LEAST = 0.93


@measure.benchmark(repeats=1000)
def main(settings: measure.Settings) -> list[Path]:
    """Simulate all kinds."""
    plans = [(each, 10 * settings.repeats) for each in [*proportions(), *means()] if "bootstrap" not in each.name]
    plans += [(each, settings.repeats) for each in means() if "bootstrap" in each.name]
    plans += [(each, settings.repeats) for each in languages()] + [
        (each, 10 * settings.repeats) for each in differences()
    ]
    plans += [(each, max(settings.repeats // 2, 1)) for each in distances()]
    rows = []
    for each, repeats in plans:
        rows.append(coverage(each, repeats))
        print(f"{each.name}, {each.samples}: {rows[-1]['coverage']:.3f}", flush=True)
    table = Table("interval", "samples", "coverage", "95 %", "truth below", "above", title="coverage of 95 % intervals")
    for row in rows:
        ends = f"{row['low']:.3f} to {row['high']:.3f}"
        cells = [f"{row[key]:.3f}" for key in ("coverage", "truth_below", "truth_above")]
        table.add_row(str(row["name"]), str(row["samples"]), cells[0], ends, *cells[1:])
    # A coverage of 93 % or more lies in the interval of each count.
    short = sum(float(row["high"]) < LEAST for row in rows)
    content = {
        "rows": rows,
        "within 93 to 97": sum(LEAST <= float(row["coverage"]) <= 0.97 for row in rows),
        "above 97": sum(float(row["coverage"]) > 0.97 for row in rows),
        "same_work": [measure.require_same("intervals that cover less than 93 %", short, 0)],
    }
    return [measure.write_result(content, settings, table)]


if __name__ == "__main__":
    run(main)
