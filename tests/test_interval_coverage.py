"""Intervals hold the true value as often as they say: a small form of tests/benchmarks/interval_coverage.py."""

import pytest
from toys.interval_simulations import Simulation, coverage, differences, distances, languages, means, proportions

REPEATS = 200
QUICK = [
    *(each for each in proportions() + means() + differences() if "bootstrap" not in each.name),
    *(each for each in languages() if "equal" in each.name or "one bad" in each.name or "scores" in each.name),
    *distances(small=True),
]


@pytest.mark.parametrize("simulation", QUICK, ids=[f"{each.name} {each.samples}" for each in QUICK])
def test_coverage(simulation: Simulation) -> None:
    found = coverage(simulation, REPEATS, values=200)
    # Of 200 repeats at a true coverage of 95 %, fewer than 178 or all occur with a probability below 0.001.
    assert float(found["coverage"]) >= 0.89, found
    assert float(found["coverage"]) < 1 or simulation.most == 1, found
