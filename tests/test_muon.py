"""Muon against torch's own on matrices, AdamW beside it, and one state that survives a checkpoint."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from leam_mm.optim.muon import COEFFICIENTS, MATRICES, MuonAdamW, orthogonalise
from leam_mm.optim.optimizer import build_optimizer, warmup_cosine


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


def made(seed: int = 0) -> Net:
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


def test_singular_values_come_near_one_and_vectors_stay() -> None:
    torch.manual_seed(0)
    for shape in ((16, 40), (40, 16), (16, 16)):
        matrix = torch.randn(shape) * 1e-3
        found = orthogonalise(matrix).float()
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        inside = left.T @ found @ right.T
        assert inside.diagonal()[values > 0.05 * values.max()].sub(1).abs().max() < 0.4
        assert (inside - torch.diag(inside.diagonal())).abs().max() < 0.05
    assert orthogonalise(torch.zeros(3, 4)).isfinite().all()


def test_the_iteration_is_its_polynomial() -> None:
    value = torch.logspace(-2.3, 0, 200, dtype=torch.float64)
    for _ in range(5):
        value = sum(factor * value**power for factor, power in zip(COEFFICIENTS, (1, 3, 5), strict=True))  # type: ignore[assignment]
    assert value.min() > 0.68 and value.max() < 1.16


def test_it_is_torchs_muon_and_torchs_adamw() -> None:
    ours, theirs = made(), made()
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
        torch.testing.assert_close(mine, other, rtol=2e-3, atol=2e-5)  # products of bfloat16 in another order
    begun, moved = made().state_dict(), ours.state_dict()
    assert (begun["blocks.0.wide.weight"] - moved["blocks.0.wide.weight"]).abs().max() > 0.02


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_kernel_is_stepped_as_its_matrix(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(8, 4, 3, 3).to(memory_format=memory_format))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    other = nn.Parameter(torch.zeros(2))
    slope = torch.randn(8, 4, 3, 3)
    optimizer = muon([{"params": [kernel, matrix], MATRICES: True}, {"params": [other]}])
    for _ in range(3):
        kernel.grad, matrix.grad = slope.to(memory_format=memory_format), slope.flatten(1)
        optimizer.step()
    assert kernel.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(kernel.flatten(1), matrix, rtol=1e-6, atol=1e-6)


def test_a_step_of_a_matrix_is_as_large_as_one_of_adamw() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(64, 256))
    weight.grad = torch.randn(64, 256)
    other = nn.Parameter(torch.zeros(1))
    MuonAdamW([{"params": [weight], MATRICES: True}, {"params": [other]}], matrix_lr=0.5, weight_decay=0.0).step()
    size = float(weight.detach().square().mean().sqrt()) / 0.5
    assert 0.15 < size < 0.25  # 0.2 times what the iteration leaves between 0.7 and 1.2


def test_state_and_schedule_resume_bit_for_bit() -> None:
    net = made()
    optimizer = build_optimizer(muon, net)
    schedule = warmup_cosine(optimizer, 2, 10)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.005, 0.005]
    train(net, [optimizer, schedule], 4)
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict(), schedule.state_dict()))
    train(net, [optimizer, schedule], 4, begin=4)
    again = made(1)
    second = build_optimizer(muon, again)
    following = warmup_cosine(second, 2, 10)
    parts: list[Any] = [again, second, following]
    for part, state in zip(parts, saved, strict=True):
        part.load_state_dict(state)
    train(again, [second, following], 4, begin=4)
    for mine, other in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert isinstance(second, MuonAdamW) and second.param_groups[1] is second.adamw.param_groups[0]


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"take torch\.optim\.AdamW"):
        build_optimizer(muon, nn.Linear(3, 3))


def test_weights_without_gradient_stay() -> None:
    net = made()
    optimizer = build_optimizer(muon, net)
    before = copy.deepcopy(net.state_dict())
    assert optimizer.step(lambda: 2.5) == 2.5
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
