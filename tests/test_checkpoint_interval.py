"""The best checkpoint interval: Young, Daly, the exact expectation, and simulated failures."""

import math

import pytest
from scipy.optimize import minimize_scalar

from leam_mm.errors import UserError
from leam_mm.planning.checkpoint_interval import (
    FailureModel,
    best_interval,
    daly_interval,
    expected_seconds,
    goodput,
    simulate_run,
    young_interval,
)

DAY = 86400.0


@pytest.mark.parametrize("save", [1.0, 60.0, 600.0])
@pytest.mark.parametrize("mtbf", [3600.0, DAY, 30 * DAY])
def test_best_interval_is_the_minimum_of_the_expected_time(save: float, mtbf: float) -> None:
    model = FailureModel(mtbf, save, 300.0)
    best = best_interval(model)
    found = minimize_scalar(lambda t: expected_seconds(DAY, t, model), bounds=(1, 20 * DAY), method="bounded")
    assert best == pytest.approx(found.x, rel=1e-3)
    assert all(
        expected_seconds(DAY, best, model) < expected_seconds(DAY, best * by, model) for by in (0.5, 0.9, 1.1, 2)
    )


def test_orders_of_approximation() -> None:
    rare = FailureModel(100 * DAY, 10.0, 300.0)
    assert young_interval(rare) == pytest.approx(math.sqrt(2 * 10 * 100 * DAY))
    assert young_interval(rare) == pytest.approx(best_interval(rare), rel=1e-2)
    often = FailureModel(
        3600.0, 600.0, 300.0
    )  # Young's is far off where a save is a sixth of the time between failures
    exact = best_interval(often)
    assert abs(daly_interval(often) / exact - 1) < 0.002 < 0.2 < abs(young_interval(often) / exact - 1)
    assert daly_interval(FailureModel(100.0, 300.0, 0.0)) == 100.0


@pytest.mark.parametrize(
    ("mtbf", "save", "restart", "interval"),
    [(3600.0, 60.0, 300.0, 600.0), (3600.0, 300.0, 1800.0, 1200.0), (DAY, 30.0, 600.0, 7200.0)],
)
def test_simulated_failures_agree_with_the_expectation(
    mtbf: float, save: float, restart: float, interval: float
) -> None:
    model = FailureModel(mtbf, save, restart)
    work = 300 * interval
    seconds = simulate_run(work, interval, model, runs=400, seed=1)
    error = seconds.std() / math.sqrt(len(seconds))
    assert abs(seconds.mean() - expected_seconds(work, interval, model)) < 3 * error
    assert error / seconds.mean() < 0.01  # the comparison can tell one per cent
    assert work / seconds.mean() == pytest.approx(goodput(interval, model), rel=0.03)


def test_simulation_is_deterministic_by_seed() -> None:
    model = FailureModel(3600.0, 60.0, 300.0)
    one, again, other = (simulate_run(36000.0, 600.0, model, 5, seed).tolist() for seed in (3, 3, 4))
    assert one == again != other


def test_more_nodes_fail_more_often() -> None:
    models = [FailureModel.of_nodes(nodes, 50_000.0, 60.0, 600.0) for nodes in (1, 16, 256, 4096)]
    assert models[2].mtbf_seconds == pytest.approx(50_000 * 3600 / 256)
    intervals, shares = [best_interval(one) for one in models], [goodput(best_interval(one), one) for one in models]
    assert intervals == sorted(intervals, reverse=True) and shares == sorted(shares, reverse=True)
    assert all(0 < share < 1 for share in shares)


def test_edges() -> None:
    never = FailureModel.of_nodes(64, None, 60.0, 600.0)
    assert best_interval(never) == daly_interval(never) == math.inf and goodput(math.inf, never) == 1.0
    assert goodput(600.0, never) == pytest.approx(600 / 660)
    assert best_interval(FailureModel(DAY, 0.0, 60.0)) == pytest.approx(0.0, abs=1e-3)
    assert goodput(1e7, FailureModel(60.0, 1.0, 1.0)) == 0.0  # no interval is ever completed
    assert simulate_run(100.0, 30.0, never, 2).tolist() == [360.0, 360.0]


@pytest.mark.parametrize("values", [(0.0, 1.0, 1.0), (math.nan, 1.0, 1.0), (60.0, -1.0, 1.0), (60.0, 1.0, math.inf)])
def test_impossible_times_are_refused(values: tuple[float, float, float]) -> None:
    with pytest.raises(UserError, match="_seconds is "):
        FailureModel(*values)
