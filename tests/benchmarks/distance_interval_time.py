"""The halves behind the interval of a Fréchet distance: what they share computed once, against each half on its own.

python tests/benchmarks/distance_interval_time.py --samples 2000 --repeats 3
python tests/benchmarks/distance_interval_time.py --samples 10000 --repeats 3
"""

from pathlib import Path

import measure
from distance_time import features

from leam_mm.distances.frechet import frechet_distance_of_features
from leam_mm.distances.frechet_halves import frechet_of_halves
from leam_mm.errors import run
from leam_mm.intervals.distance_interval import values_of_halves


@measure.benchmark(repeats=3, samples=(2000, "images in each set"), features=(2048, "features of an image"))
def main(settings: measure.Settings) -> list[Path]:
    """Time both on the same features; their mean value agrees (other splits where blocks are used)."""
    sets = [features(settings.samples, settings.features, number) for number in (1, 2)]
    found: dict[str, float] = {}

    def shared() -> None:
        found["ours"] = float(frechet_of_halves(*sets).mean())

    def alone() -> None:
        found["peer"] = float(values_of_halves(*sets, frechet_distance_of_features).mean())

    shared()
    alone()
    same = [measure.require_same("mean of the halves, relative", abs(found["ours"] / found["peer"] - 1), 0.02)]
    name = f"distance_interval_time_{settings.samples}"
    titles = ("ours: products or moments of blocks, shared by the halves", "each half on its own")
    timing = measure.time_pairs(shared, alone, settings.repeats, warmup=0)
    task = f"{settings.features} features, {settings.samples} images in each set"
    return [measure.write_comparison(name, titles, timing, (20, "halves"), same, settings, task)]


if __name__ == "__main__":
    run(main)
