import copy

import pytest
import torch
from torch import nn

from leam_mm.optim.ema import Ema, unwrap


def test_equals_a_double_precision_reference() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    ema = Ema(model, decay=0.9, ramp=False)
    reference = [value.detach().double() for value in model.parameters()]
    for _ in range(30):
        with torch.no_grad():
            for value in model.parameters():
                value.add_(torch.randn_like(value))
        ema.update(model)
        reference = [
            0.9 * old + 0.1 * new.detach().double() for old, new in zip(reference, model.parameters(), strict=True)
        ]
    for mine, exact in zip(ema.model.parameters(), reference, strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-6, atol=1e-6)


def test_closed_form_towards_a_constant() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = Ema(model, decay=0.8, ramp=False)
    nn.init.ones_(model.weight)
    for _ in range(10):
        ema.update(model)
    assert ema.model.weight.item() == pytest.approx(1 - 0.8**10, rel=1e-6)


def test_ramp_follows_its_formula_and_ends_at_decay() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = Ema(model, decay=0.5, ramp=True)
    nn.init.ones_(model.weight)
    left = 1.0
    for count in range(20):
        ema.update(model)
        left *= min(0.5, (1 + count) / (10 + count))
    assert ema.model.weight.item() == pytest.approx(1 - left, rel=1e-6)


def test_state_travels_and_the_average_goes_on() -> None:
    torch.manual_seed(0)
    model = nn.BatchNorm1d(3)
    ema = Ema(model, decay=0.99)
    model(torch.randn(8, 3))
    ema.update(model)
    assert torch.equal(ema.model.running_mean, model.running_mean)
    other = Ema(nn.BatchNorm1d(3), decay=0.99)
    other.load_state_dict(ema.state_dict())
    nn.init.constant_(model.weight, 2.0)
    ema.update(model)
    other.update(model)
    assert int(other.updates) == 2
    assert torch.equal(other.model.weight, ema.model.weight)


def test_shadow_is_frozen_stays_in_evaluation_and_is_no_alias() -> None:
    model = nn.Linear(2, 2)
    ema = Ema(model, decay=0.9)
    ema.train()
    assert not ema.model.training
    assert not any(value.requires_grad for value in ema.parameters())
    before = ema.model.weight.clone()
    nn.init.zeros_(model.weight)
    assert torch.equal(ema.model.weight, before)


def test_wrapped_networks_are_found() -> None:
    model = nn.Linear(2, 2)
    wrapped = torch.compile(model)
    assert unwrap(wrapped) is model
    ema = Ema(wrapped, decay=0.0, ramp=False)
    nn.init.ones_(model.weight)
    ema.update(wrapped)
    assert torch.equal(ema.model.weight, model.weight)


def test_distributed_data_parallel_is_unwrapped(tmp_path: object) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        model = nn.Linear(2, 2)
        wrapped = nn.parallel.DistributedDataParallel(model)
        ema = Ema(wrapped, decay=0.0, ramp=False)
        nn.init.ones_(model.weight)
        ema.update(wrapped)
        assert set(ema.state_dict()) == {"model.weight", "model.bias", "updates"}
        assert torch.equal(ema.model.weight, model.weight)
    finally:
        torch.distributed.destroy_process_group()


def test_a_decay_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="decay"):
        Ema(nn.Linear(1, 1), decay=1.0)


def test_replaced_weights_are_followed_and_tied_ones_move_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    nn.init.zeros_(model[0].weight)
    ema = Ema(model, decay=0.5, ramp=False)
    ema.update(model)
    model[0].weight = nn.Parameter(torch.ones(2, 2))  # as sharding does after the average was made
    model[1].weight = model[0].weight
    ema.update(model)
    assert torch.equal(ema.model[0].weight, torch.full((2, 2), 0.5))
    assert ema.model[1].weight is ema.model[0].weight


def test_a_copy_follows_its_own_weights() -> None:
    model = nn.Linear(2, 2)
    ema = Ema(model, decay=0.5, ramp=False)
    ema.update(model)
    other_model, other = copy.deepcopy((model, ema))
    before = ema.model.weight.clone()
    nn.init.constant_(other_model.weight, 3.0)
    other.update(other_model)
    assert torch.equal(ema.model.weight, before)
    torch.testing.assert_close(other.model.weight, (before + 3) / 2)
