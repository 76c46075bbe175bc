"""Learning-rate schedules against their closed forms."""

import math
from typing import Literal

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from leam_mm.errors import UserError
from leam_mm.optim.schedule import Cooldown, Schedule

Shape = Literal["sqrt", "linear"]


def rates(schedule: LambdaLR, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(float(schedule.get_last_lr()[0]))
        schedule.optimizer.step()
        schedule.step()
    return found


def sgd(rate: float = 2.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)


@pytest.mark.parametrize(("warmup", "total", "floor"), [(4, 20, 0.0), (0, 10, 0.1), (5, 5, 0.0), (3, 50, 0.5)])
def test_cosine_is_its_closed_form(warmup: int, total: int, floor: float) -> None:
    found = rates(Schedule(warmup, final_rate=floor).build(sgd(), total), total + 5)
    for step, rate in enumerate(found):
        if step < warmup:
            expected = 2.0 * (step + 1) / warmup
        else:
            progress = min(1.0, (step - warmup) / max(1, total - warmup))
            expected = 2.0 * (floor + (1 - floor) * (0.5 + 0.5 * math.cos(math.pi * progress)))
        assert rate == pytest.approx(expected, abs=1e-12)
    assert found[-1] == pytest.approx(2.0 * floor, abs=1e-12)
    assert max(found) == pytest.approx(2.0) and min(found) >= 0


def test_constant_rises_and_stays() -> None:
    assert rates(Schedule(4, "constant").build(sgd(), math.inf), 7) == pytest.approx(
        [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0]
    )
    assert rates(Schedule(0, "constant").build(sgd(), 1), 2) == pytest.approx([2.0, 2.0])


@pytest.mark.parametrize("shape", ["sqrt", "linear"])
@pytest.mark.parametrize(("warmup", "total", "steps", "floor"), [(4, 20, 6, 0.0), (0, 10, 10, 0.1), (5, 9, 4, 0.0)])
def test_cooldown_is_its_closed_form(
    shape: Literal["sqrt", "linear"], warmup: int, total: int, steps: int, floor: float
) -> None:
    schedule = Schedule(warmup, "constant", floor, Cooldown(steps, shape))
    found = rates(schedule.build(sgd(), total), total + 3)
    power = {"sqrt": 0.5, "linear": 1.0}[shape]
    for step, rate in enumerate(found):
        if step < warmup:
            expected = (step + 1) / warmup
        elif step < total - steps:
            expected = 1.0
        else:
            expected = floor + (1 - floor) * (1 - min(1.0, (step - (total - steps)) / steps) ** power)
        assert rate == pytest.approx(2.0 * expected, abs=1e-12), step
    assert found[total] == pytest.approx(2.0 * floor, abs=1e-12) and found[total - 1] > found[total]


def test_cooldown_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="8 steps of warm-up and 5 of cool-down do not fit"):
        Schedule(8, "constant", cooldown=Cooldown(5)).build(sgd(), 12)
    with pytest.raises(UserError, match="give at least 1"):
        Cooldown(0)
    with pytest.raises(UserError, match=r"schedule\.kind is cosine"):
        Schedule(kind="cosine", cooldown=Cooldown(5))


def test_schedule_resumes_where_it_was() -> None:
    whole = rates(Schedule(3).build(sgd(), 12), 12)
    first = Schedule(3).build(sgd(), 12)
    assert rates(first, 5) == whole[:5]
    second = Schedule(3).build(sgd(), 12)
    second.load_state_dict(first.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert rates(second, 7) == whole[5:]
