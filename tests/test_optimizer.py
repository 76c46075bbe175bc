import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from leam_mm.errors import UserError
from leam_mm.optim.muon import MATRICES
from leam_mm.optim.optimizer import (
    Cooldown,
    build_optimizer,
    decay_groups,
    hidden_matrices,
    warmup_constant,
    warmup_cooldown,
    warmup_cosine,
)


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
    found = rates(warmup_cosine(sgd(), warmup, total, floor), total + 5)
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
    assert rates(warmup_constant(sgd(), 4), 7) == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0])
    assert rates(warmup_constant(sgd(), 0), 2) == pytest.approx([2.0, 2.0])


@pytest.mark.parametrize("shape", ["sqrt", "linear"])
@pytest.mark.parametrize(("warmup", "total", "steps", "floor"), [(4, 20, 6, 0.0), (0, 10, 10, 0.1), (5, 9, 4, 0.0)])
def test_cooldown_is_its_closed_form(shape: str, warmup: int, total: int, steps: int, floor: float) -> None:
    found = rates(warmup_cooldown(sgd(), warmup, total, Cooldown(steps, shape), floor), total + 3)  # type: ignore[arg-type]
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


def test_cooldown_that_does_not_fit_is_told() -> None:
    with pytest.raises(UserError, match="8 steps of warm-up and 5 of cool-down do not fit"):
        warmup_cooldown(sgd(), 8, 12, Cooldown(5))
    with pytest.raises(UserError, match="give at least 1"):
        Cooldown(0)


def test_schedule_resumes_where_it_was() -> None:
    whole = rates(warmup_cosine(sgd(), 3, 12), 12)
    first = warmup_cosine(sgd(), 3, 12)
    assert rates(first, 5) == whole[:5]
    second = warmup_cosine(sgd(), 3, 12)
    second.load_state_dict(first.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert rates(second, 7) == whole[5:]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 2), nn.LayerNorm(2)
        self.kernel = nn.Conv2d(1, 1, 3)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_groups_split_by_shape_and_leave_the_frozen_out() -> None:
    net = Net()
    decayed, plain = decay_groups(net)
    assert {id(p) for p in decayed["params"]} == {id(net.linear.weight), id(net.kernel.weight)}  # type: ignore[attr-defined]
    expected = [net.linear.bias, net.norm.weight, net.norm.bias, net.kernel.bias, net.scale]
    assert {id(p) for p in plain["params"]} == {id(p) for p in expected}  # type: ignore[attr-defined]
    assert plain["weight_decay"] == 0.0 and "weight_decay" not in decayed
    skipped = decay_groups(net, skip=lambda name, _: name.startswith("kernel"))
    assert {id(p) for p in skipped[0]["params"]} == {id(net.linear.weight)}  # type: ignore[attr-defined]


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.stages = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU()))
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 16)])
        self.tables = nn.ModuleList([nn.Sequential(nn.Embedding(5, 8))])
        self.head = nn.Linear(8, 2)


def test_hidden_matrices_are_those_of_the_blocks() -> None:
    net = Deep()
    names = {name for name, weight in net.named_parameters() if weight in hidden_matrices(net)}
    attention = {"blocks.0.self_attn.in_proj_weight", "blocks.0.self_attn.out_proj.weight"}
    assert names == {"stages.0.0.weight", "blocks.0.linear1.weight", "blocks.0.linear2.weight", *attention}
    inside, outside, plain = decay_groups(net)
    assert inside[MATRICES] is True and MATRICES not in outside
    assert len(inside["params"]) == 5 and len(outside["params"]) == 4  # type: ignore[arg-type]
    assert sum(len(group["params"]) for group in (inside, outside, plain)) == len(list(net.parameters()))  # type: ignore[arg-type, misc]


def test_only_the_first_group_decays() -> None:
    net = Net()
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    optimizer = build_optimizer(lambda groups: torch.optim.AdamW(groups, lr=0.1, weight_decay=0.5), net)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    for name, value in net.named_parameters():
        factor = 1 - 0.1 * 0.5 if name in ("linear.weight", "kernel.weight") else 1.0
        torch.testing.assert_close(value.detach(), before[name] * factor)
