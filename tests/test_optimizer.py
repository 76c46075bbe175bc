import torch
from torch import nn

from leam_mm.optim.muon import MATRICES
from leam_mm.optim.optimizer import build_optimizer, decay_groups, hidden_matrices


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
