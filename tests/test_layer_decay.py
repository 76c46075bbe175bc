"""Shares of the learning rate by depth: their closed form, their groups, and what a schedule and a checkpoint keep."""

import copy
from typing import Any

import pytest
import torch
from toys.encoders import three_layer_encoder

from leam_mm.encoders.dual_encoder import DualEncoder
from leam_mm.errors import UserError
from leam_mm.optim.layer_decay import RATE_SHARE, LayerDecay, rate_shares
from leam_mm.optim.muon import MATRICES, MuonAdamW
from leam_mm.optim.optimizer import build_optimizer, decay_groups
from leam_mm.optim.schedule import Schedule

DECAY = LayerDecay(image=0.5, text=0.8)


def adamw(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)


def muon(groups: Any) -> torch.optim.Optimizer:
    return MuonAdamW(groups, lr=0.01, matrix_lr=0.02, weight_decay=0.1)


def test_shares_are_powers_of_the_depth() -> None:
    module = three_layer_encoder()
    shares = rate_shares(module, DECAY)
    found = {name.removeprefix("clip."): shares[weight] for name, weight in module.named_parameters()}
    assert len(found) == len(list(module.parameters()))
    for name in ("visual.conv1.weight", "visual.class_embedding", "visual.positional_embedding", "visual.ln_pre.bias"):
        assert found[name] == pytest.approx(0.5**4), name
    for name in ("token_embedding.weight", "positional_embedding"):
        assert found[name] == pytest.approx(0.8**3), name
    for name in ("visual.proj", "visual.ln_post.weight", "ln_final.weight", "text_projection", "logit_scale"):
        assert found[name] == 1.0, name
    for number in range(3):
        own = {share for name, share in found.items() if f"visual.transformer.resblocks.{number}." in name}
        assert own == {0.5 ** (3 - number)}
    for number in range(2):
        own = {share for name, share in found.items() if name.startswith(f"transformer.resblocks.{number}.")}
        assert own == {0.8 ** (2 - number)}


def test_stages_of_a_convolutional_tower_have_a_depth_too() -> None:
    module = three_layer_encoder(timm_model_name="test_resnet", image_size=32)
    shares = rate_shares(module, LayerDecay(image=0.5))
    found = {name: shares[weight] for name, weight in module.named_parameters()}
    stages = {share for name, share in found.items() if "visual" in name}
    assert len(stages) > 3 and min(stages) < 0.1
    assert {share for name, share in found.items() if "visual" not in name} == {1.0}


@pytest.mark.parametrize("kind", [adamw, muon])
def test_groups_keep_what_they_were_and_get_their_rate(kind: Any) -> None:
    module = three_layer_encoder()
    plain, built = kind(decay_groups(module)), build_optimizer(kind, module, DECAY)
    shares = rate_shares(module, DECAY)
    before = {weight: group for group in plain.param_groups for weight in group["params"]}
    after = {weight: group for group in built.param_groups for weight in group["params"]}
    assert before.keys() == after.keys()
    for weight, group in after.items():
        assert group["lr"] == pytest.approx(before[weight]["lr"] * shares[weight])
        assert group["weight_decay"] == before[weight]["weight_decay"]
        assert group.get(MATRICES) == before[weight].get(MATRICES)
    schedule = Schedule(2).build(built, 10)
    for group in built.param_groups:
        assert group["lr"] == pytest.approx(
            0.5 * group[RATE_SHARE] * (0.02 if group.get(MATRICES) and kind is muon else 0.01)
        )
    assert isinstance(schedule.get_last_lr(), list)


def step(module: DualEncoder, parts: list[Any], number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    image = torch.randn(3, 3, 16, 16, generator=generator)
    text = torch.randint(1, 50, (3, 8), generator=generator)
    module.zero_grad()
    both = module.encode_image(image) @ module.encode_text(text, torch.tensor([4, 8, 6])).T * module.scale
    both.logsumexp(dim=0).sum().backward()
    for part in parts:
        part.step()


@pytest.mark.parametrize("kind", [adamw, muon])
def test_a_step_is_that_of_weights_with_their_own_rates_and_resumes_bit_for_bit(kind: Any) -> None:
    module = three_layer_encoder()
    built = build_optimizer(kind, module, DECAY)
    parts: list[Any] = [built, Schedule(2).build(built, 10)]
    for number in range(3):
        step(module, parts, number)
    saved = copy.deepcopy([module.state_dict(), *(part.state_dict() for part in parts)])
    for number in range(3, 6):
        step(module, parts, number)
    again = three_layer_encoder()
    second = build_optimizer(kind, again, DECAY)
    others: list[Any] = [again, second, Schedule(2).build(second, 10)]
    for part, state in zip(others, saved, strict=True):
        part.load_state_dict(state)
    for number in range(3, 6):
        step(again, others[1:], number)
    for mine, other in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_sgd_moves_by_the_share() -> None:
    module, other = three_layer_encoder(), three_layer_encoder()
    shares = {name: rate_shares(module, DECAY)[weight] for name, weight in module.named_parameters()}
    begun = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    for one, decay in ((module, DECAY), (other, None)):
        built = build_optimizer(lambda groups: torch.optim.SGD(groups, lr=0.1), one, decay)
        step(one, [built], 0)
    for (name, mine), theirs in zip(module.named_parameters(), other.parameters(), strict=True):
        moved, whole = mine.detach() - begun[name], theirs.detach() - begun[name]
        torch.testing.assert_close(moved, shares[name] * whole, rtol=1e-4, atol=1e-6)


def test_mistakes_are_told() -> None:
    with pytest.raises(UserError, match=r"layer_decay\.image is 1\.5"):
        LayerDecay(image=1.5)
    with pytest.raises(UserError, match="no repeated blocks"):
        build_optimizer(adamw, torch.nn.Linear(2, 2), DECAY)
