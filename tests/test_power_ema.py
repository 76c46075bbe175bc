"""Power-function averages: recursion beside the sum it stands for, closed forms, and other widths afterwards."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import nn
from toys.generators import power_average

from leam_mm.callbacks.compilation import trained_blocks
from leam_mm.errors import UserError
from leam_mm.optim.power_ema import (
    WIDEST,
    PowerEma,
    PowerFunction,
    combination,
    gamma_of,
    inner_products,
    width_of,
)


class Point(nn.Module):
    """One vector of weights, in float64 unless told otherwise."""

    def __init__(self, size: int = 1, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, dtype=dtype))


def follow(path: np.ndarray, widths: list[float], keep_every: int = 0) -> tuple[PowerEma, list[list[np.ndarray]]]:
    """Update averages along a path (T, E); their values after every so many steps."""
    model = Point(path.shape[1], torch.float64)
    ema, kept = PowerEma(model, widths), []
    for number, weights in enumerate(torch.from_numpy(path), start=1):
        model.weight.data.copy_(weights)
        ema.update(model)
        if keep_every and number % keep_every == 0:
            kept.append([average.weight.detach().numpy().copy() for average in ema.copies()])  # type: ignore[union-attr]
    return ema, kept


def paths(steps: int = 500) -> dict[str, np.ndarray]:
    time = np.arange(1, steps + 1, dtype=np.float64)[:, None]
    walk = np.random.default_rng(0).standard_normal((steps, 5)).cumsum(0)
    return {"linear": time, "square": time**2, "walk": walk}


@pytest.mark.parametrize("kind", ["linear", "square", "walk"])
@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.25])
def test_recursion_is_the_sum_that_defines_it(kind: str, width: float) -> None:
    path = paths()[kind]
    ema, _ = follow(path, [width])
    found = ema.model.weight.detach().numpy()  # type: ignore[union-attr]
    np.testing.assert_allclose(found, power_average(path, width), rtol=1e-12, atol=1e-12 * np.abs(path).max())


def test_closed_forms() -> None:
    steps = 300
    linear, square = follow(paths(steps)["linear"], [WIDEST, width_of(1)]), follow(paths(steps)["square"], [WIDEST])
    uniform, rising = (float(average.weight) for average in linear[0].copies())  # type: ignore[arg-type]
    # All steps alike: the mean. Weights (2 i - 1) / t^2: sum of i (2 i - 1) / t^2.
    assert uniform == pytest.approx((steps + 1) / 2, rel=1e-12)
    assert rising == pytest.approx((steps + 1) * (4 * steps - 1) / (6 * steps), rel=1e-12)
    assert float(square[0].model.weight) == pytest.approx((steps + 1) * (2 * steps + 1) / 6, rel=1e-12)  # type: ignore[arg-type]


def test_the_first_update_forgets_what_was_before() -> None:
    model = Point(3)
    ema = PowerEma(model, [0.05, 0.1])
    nn.init.constant_(model.weight, 7.0)
    ema.update(model)
    assert all(torch.equal(average.weight, model.weight) for average in ema.copies())  # type: ignore[arg-type]


def test_width_and_exponent_are_inverse() -> None:
    for width in [1e-4, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.28, 0.2886, WIDEST]:
        assert width_of(gamma_of(width)) == pytest.approx(width, rel=1e-12)
    for gamma in (1e-3, 0.5, 1.0, 6.94, 16.97, 300.0):
        assert gamma_of(width_of(gamma)) == pytest.approx(gamma, rel=1e-12)
    # As the paper rounds them (section 3.1).
    assert round(gamma_of(0.05), 2) == 16.97 and round(gamma_of(0.10), 2) == 6.94
    for width in (0.0, -0.1, 0.29, math.nan):
        with pytest.raises(UserError, match="relative width"):
            gamma_of(width)


def test_width_is_the_deviation_of_the_profile() -> None:
    for gamma in (0.0, 1.5, 16.97):
        moments = [quad(lambda s, n=n: s**n * (gamma + 1) * s**gamma, 0, 1)[0] for n in (1, 2)]  # noqa: B023
        assert width_of(gamma) == pytest.approx(math.sqrt(moments[1] - moments[0] ** 2), rel=1e-9)


def test_inner_products_are_the_integrals() -> None:
    times, gammas = np.array([3.0, 7.0, 7.0]), np.array([2.0, 6.94, 0.0])

    def profile(s: float, time: float, gamma: float) -> float:
        return (gamma + 1) * s**gamma / time ** (gamma + 1)

    found = inner_products(times, gammas, times, gammas)
    np.testing.assert_allclose(found, found.T, rtol=1e-14)
    for i in range(3):
        for j in range(3):
            end = min(times[i], times[j])
            exact, _ = quad(lambda s: profile(s, times[i], gammas[i]) * profile(s, times[j], gammas[j]), 0, end)  # noqa: B023
            assert found[i, j] == pytest.approx(exact, rel=1e-9)


def test_an_average_that_is_there_is_taken_as_it_is() -> None:
    times, gammas = np.repeat([10.0, 20.0, 30.0], 2), np.tile([gamma_of(0.05), gamma_of(0.1)], 3)
    found, apart = combination(times, gammas, 30.0, gamma_of(0.1))  # type: ignore[arg-type]
    np.testing.assert_allclose(found, [0, 0, 0, 0, 0, 1], atol=1e-9)
    assert apart < 1e-7
    found, apart = combination(times, gammas, 25.0, gamma_of(0.07))  # type: ignore[arg-type]
    assert found.sum() == pytest.approx(1, abs=1e-12) and 0 < apart < 1


@pytest.mark.parametrize(("snapshots", "limit"), [(8, 0.015), (16, 0.005), (64, 0.0005)])
def test_other_widths_come_out_of_snapshots_of_two(snapshots: int, limit: float) -> None:
    """Between the two widths, and some way beyond, of a walk with a drift: the error over what averaging does."""
    steps, widths = 4096, [0.05, 0.1]
    generator = np.random.default_rng(1)
    path = generator.standard_normal((steps, 16)).cumsum(0) / math.sqrt(steps) + np.linspace(0, 1, steps)[:, None]
    _, kept = follow(path, widths, steps // snapshots)
    times = [steps // snapshots * (number + 1) for number in range(snapshots) for _ in widths]
    values = np.stack([value for moment in kept for value in moment])
    gammas = [gamma_of(width) for width in widths] * snapshots
    for width in (0.06, 0.075, 0.12):
        shares, apart = combination(times, gammas, steps, gamma_of(width))
        exact = power_average(path, width)
        error = np.linalg.norm(shares @ values - exact) / np.linalg.norm(path[-1] - exact)
        assert apart < limit and error < limit, (width, apart, error)


def test_weights_that_never_moved_come_out_as_they_are() -> None:
    still = np.full((64, 2), 3.25)
    _, kept = follow(still, [0.05, 0.1], 8)
    values = np.stack([value for moment in kept for value in moment])
    times = [8 * (number + 1) for number in range(8) for _ in range(2)]
    shares, _ = combination(times, [gamma_of(0.05), gamma_of(0.1)] * 8, 64, gamma_of(0.2))
    np.testing.assert_allclose(shares @ values, still[-1], rtol=1e-13)


def test_state_travels_and_the_averages_go_on() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    ema = PowerFunction((0.1, 0.05)).follow(model)
    again = PowerFunction((0.1, 0.05)).follow(copy.deepcopy(model))

    def move(average: PowerEma) -> None:
        with torch.no_grad():
            model.weight.add_(1.0)
        average.update(model)

    move(ema)
    move(ema)
    again.load_state_dict(ema.state_dict())
    with torch.no_grad():
        model.weight.add_(1.0)
    ema.update(model)
    again.update(model)
    assert int(again.updates) == 3
    for one, other in zip(ema.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    wide, narrow = (average.weight for average in ema.copies())
    assert float((model.weight - wide).detach().abs().max()) > float((model.weight - narrow).detach().abs().max()) > 0  # type: ignore[operator]


def test_other_widths_or_another_order_do_not_take_over() -> None:
    saved = PowerEma(nn.Linear(2, 2), [0.05, 0.1]).state_dict()
    for widths in ([0.1, 0.05], [0.05, 0.2]):
        with pytest.raises(UserError, match="averages of the widths"):
            PowerEma(nn.Linear(2, 2), widths).load_state_dict(saved)


@pytest.mark.parametrize("widths", [(), (0.05, 0.05), (0.05, 0.3)])
def test_wrong_widths_are_told(widths: Any) -> None:
    with pytest.raises(UserError, match="width"):
        PowerFunction(widths)


def test_averages_are_not_compiled() -> None:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Module()
            self.network.blocks = nn.ModuleList([nn.Sequential(nn.Linear(2, 2)) for _ in range(2)])
            self.ema = PowerEma(self.network, [0.05, 0.1])

    module = Module()
    assert trained_blocks(module) == list(module.network.blocks)  # type: ignore[arg-type]
