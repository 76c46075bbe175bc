"""MuonAdamW against its formula and torch's two optimizers; its state in a checkpoint."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from leam_mm.optim.muon import MATRICES, MuonAdamW
from leam_mm.optim.optimizer import build_optimizer
from leam_mm.optim.schedule import Schedule


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.tall, self.norm = nn.Linear(6, 4), nn.Linear(4, 6), nn.LayerNorm(6)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.norm(self.tall(torch.tanh(self.wide(hidden))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.blocks = nn.Linear(3, 6), nn.ModuleList([Block(), Block()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


def small_net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def train(net: nn.Module, optimizers: list[Any], steps: int, begin: int = 0) -> None:
    for step in range(begin, begin + steps):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        net.zero_grad()
        (net(x) - 1).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


def muon(groups: Any) -> MuonAdamW:
    return MuonAdamW(groups, lr=0.01, matrix_lr=0.02, weight_decay=0.1)


def reference_step(weight: torch.Tensor, grad: torch.Tensor, average: torch.Tensor, lr: float) -> None:
    """The formula of 2502.16982 for a matrix or kernel, written out; decay 0.1 and momentum 0.95."""
    average.lerp_(grad, 1 - 0.95)
    matrix = grad.lerp(average, 0.95).flatten(1)
    wide = matrix.bfloat16() if matrix.shape[0] <= matrix.shape[1] else matrix.bfloat16().T
    wide = wide / wide.norm().clamp(min=1e-7)
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(5):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    direction = (wide if matrix.shape[0] <= matrix.shape[1] else wide.T).view_as(weight)
    weight.mul_(1 - lr * 0.1).add_(direction, alpha=-lr * 0.2 * math.sqrt(max(matrix.shape)))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (16, 16), (24, 4, 3, 3), (8, 64, 1, 1)])
def test_a_step_equals_the_formula_bit_for_bit(shape: tuple[int, ...], memory_format: torch.memory_format) -> None:
    form = memory_format if len(shape) == 4 else torch.contiguous_format
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(shape).to(memory_format=form))
    expected, average = weight.detach().clone(), torch.zeros_like(weight)
    optimizer = muon([{"params": [weight], MATRICES: True}, {"params": [nn.Parameter(torch.zeros(2))]}])
    for _ in range(4):
        weight.grad = torch.randn(shape).to(memory_format=form) * 1e-3
        optimizer.step()
        reference_step(expected, weight.grad, average, lr=0.02)
    assert torch.equal(weight, expected) and weight.is_contiguous(memory_format=form)


def test_it_is_torchs_muon_and_torchs_adamw() -> None:
    ours, theirs = small_net(), small_net()
    inside = [weight for name, weight in theirs.named_parameters() if "blocks" in name and weight.ndim == 2]
    outside = [theirs.first.weight]
    plain = [weight for weight in theirs.parameters() if weight.ndim == 1]
    rest: list[dict[str, Any]] = [{"params": outside}, {"params": plain, "weight_decay": 0.0}]
    peers = [
        torch.optim.Muon(inside, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1, fused=True),
    ]
    train(ours, [build_optimizer(muon, ours)], 8)
    train(theirs, peers, 8)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
    begun, moved = small_net().state_dict(), ours.state_dict()
    assert (begun["blocks.0.wide.weight"] - moved["blocks.0.wide.weight"]).abs().max() > 0.02


def test_a_step_of_a_matrix_is_as_large_as_one_of_adamw() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(64, 256))
    weight.grad = torch.randn(64, 256)
    other = nn.Parameter(torch.zeros(1))
    MuonAdamW([{"params": [weight], MATRICES: True}, {"params": [other]}], matrix_lr=0.5, weight_decay=0.0).step()
    size = float(weight.detach().square().mean().sqrt()) / 0.5
    assert 0.15 < size < 0.25  # 0.2 times singular values between 0.7 and 1.2


def test_state_and_schedule_resume_bit_for_bit() -> None:
    net = small_net()
    optimizer = build_optimizer(muon, net)
    schedule = Schedule(2).build(optimizer, 10)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.005, 0.005]
    train(net, [optimizer, schedule], 4)
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict(), schedule.state_dict()))
    train(net, [optimizer, schedule], 4, begin=4)
    again = small_net(1)
    second = build_optimizer(muon, again)
    following = Schedule(2).build(second, 10)
    parts: list[Any] = [again, second, following]
    for part, state in zip(parts, saved, strict=True):
        part.load_state_dict(state)
    train(again, [second, following], 4, begin=4)
    for mine, other in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert isinstance(second, MuonAdamW) and second.param_groups[1] is second.adamw.param_groups[0]


def test_groups_added_later_are_stepped_too() -> None:
    """A contrastive loss adds its own weights after the network's."""
    net, late = small_net(), nn.ParameterList([nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4, 5))])
    optimizer = build_optimizer(muon, net)
    optimizer.add_param_group({"params": [late[0]], "weight_decay": 0.0})
    optimizer.add_param_group({"params": [late[1]], MATRICES: True})
    schedule = Schedule(2).build(optimizer, 10)
    (late[0].sum() + late[1].square().sum()).backward()
    optimizer.step()
    schedule.step()
    alone = nn.Parameter(torch.ones(3))
    alone.grad = torch.ones(3)
    torch.optim.AdamW([alone], lr=optimizer.param_groups[1]["lr"] / 2, weight_decay=0.0).step()
    assert torch.equal(alone, late[0]) and not torch.equal(late[1], torch.ones(4, 5))
    assert isinstance(optimizer, MuonAdamW) and optimizer.param_groups[3] is optimizer.adamw.param_groups[-1]
    again = build_optimizer(muon, small_net())
    again.add_param_group({"params": [nn.Parameter(torch.ones(3))], "weight_decay": 0.0})
    again.add_param_group({"params": [nn.Parameter(torch.ones(4, 5))], MATRICES: True})
    again.load_state_dict(optimizer.state_dict())
    assert isinstance(again, MuonAdamW) and len(again.adamw.param_groups) == 3


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"use torch\.optim\.AdamW"):
        build_optimizer(muon, nn.Linear(3, 3))


def test_weights_without_gradient_do_not_move() -> None:
    net = small_net()
    optimizer = build_optimizer(muon, net)
    before = copy.deepcopy(net.state_dict())
    assert optimizer.step(lambda: 2.5) == 2.5
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
