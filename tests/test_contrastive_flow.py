"""Contrastive flow: its formula, who is whose partner, its minimum in closed form, and parts as one."""

from typing import Any

import pytest
import torch
from torch import Tensor
from toys.generators import SignLatents, generator_module, randomise_generator

from leam_mm.data.batch import collate_samples
from leam_mm.data.random_stream import PhiloxStream
from leam_mm.diffusion.rectified_flow import RectifiedFlow
from leam_mm.diffusion.variance_preserving import VariancePreserving
from leam_mm.errors import UserError
from leam_mm.techniques.contrastive_flow import ContrastiveFlow, partners
from leam_mm.techniques.technique import TrainingStep


def batch(first: int = 0, count: int = 8) -> dict[str, Any]:
    return collate_samples([SignLatents(64)[number] for number in range(first, first + count)])


def test_partners_are_each_others_whatever_the_order() -> None:
    index = torch.tensor([10, 13, 11, 12, 4, 5])
    row = partners(index)
    assert index[row].tolist() == [11, 12, 10, 13, 5, 4]
    assert torch.equal(row[row], torch.arange(6))


@pytest.mark.parametrize("index", [[3, 4], [0, 1, 2], [0, 2], [0, 1, 2, 2], [5]])
def test_a_batch_that_parts_a_pair_is_refused(index: list[int]) -> None:
    with pytest.raises(UserError, match="whole pairs"):
        partners(torch.tensor(index))


def test_a_weight_without_a_minimum_is_refused() -> None:
    for weight in (1.0, -0.1):
        with pytest.raises(UserError, match=str(weight)):
            ContrastiveFlow(weight)


def test_the_loss_is_the_papers() -> None:
    module, data = randomise_generator(generator_module(techniques=[ContrastiveFlow(0.05)])), batch()
    predictions: list[Tensor] = []
    module.denoiser.register_forward_hook(lambda *parts: predictions.append(parts[-1]))
    with torch.no_grad():
        losses = module.sample_losses(data)
    noise = PhiloxStream().normal(0, data["sample_index"], "noise", (4, 4, 4))
    target = noise - data["latent"]
    other = target[torch.arange(8) ^ 1]
    expected = (predictions[0] - target).square() - 0.05 * (predictions[0] - other).square()
    torch.testing.assert_close(losses, expected.flatten(1).mean(1))
    with torch.no_grad():
        plain = randomise_generator(generator_module()).sample_losses(data)
        torch.testing.assert_close(
            randomise_generator(generator_module(techniques=[ContrastiveFlow(0.0)])).sample_losses(data), plain
        )


def test_a_partners_target_is_that_of_ones_own_time() -> None:
    process = VariancePreserving()
    generator = torch.Generator().manual_seed(0)
    clean, noise, prediction = (torch.randn(4, 2, 3, 3, generator=generator) for _ in range(3))
    time = torch.rand(4, generator=generator)
    step = TrainingStep({}, torch.arange(4), clean, noise, time, process.target(clean, noise, time), process)
    step.prediction = prediction
    errors = process.errors_at(lambda x_t, t: prediction, clean, noise, time)
    other = torch.tensor([1, 0, 3, 2])
    repelled = process.errors_at(lambda x_t, t: prediction, clean[other], noise[other], time)
    torch.testing.assert_close(ContrastiveFlow(0.2).weigh(errors, step), errors - 0.2 * repelled)


def test_its_minimum_is_the_velocity_lengthened_and_moved() -> None:
    """With a free prediction for all samples at one point, gradient descent must end at (u* - w u') / (1 - w)."""
    weight, process = 0.3, RectifiedFlow()
    generator = torch.Generator().manual_seed(1)
    clean, noise = (torch.randn(2, 1, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    time = torch.full((2,), 0.5, dtype=torch.float64)
    target = noise - clean
    free = torch.zeros_like(target, requires_grad=True)  # sample 0 stands for the data, 1 for its partner
    step = TrainingStep({}, torch.arange(2), clean, noise, time, target, process, free)
    for _ in range(200):
        loss = ContrastiveFlow(weight).weigh((free - target).square(), step).sum()
        (gradient,) = torch.autograd.grad(loss, free)
        free.data.sub_(0.3 * gradient)
    torch.testing.assert_close(free.detach(), (target - weight * target.flip(0)) / (1 - weight))


def test_parts_of_a_batch_have_the_gradients_of_the_whole() -> None:
    """As ranks and accumulated batches do; test_representation_alignment.py lets two ranks do it."""
    module = randomise_generator(generator_module(techniques=[ContrastiveFlow(0.3)], ema=None)).double()

    def gradients(first: int, count: int) -> list[Tensor]:
        data = {n: value.double() if value.is_floating_point() else value for n, value in batch(first, count).items()}
        return list(torch.autograd.grad(module.sample_losses(data).mean(), list(module.parameters())))

    for whole, one, two in zip(gradients(0, 8), gradients(0, 4), gradients(4, 4), strict=True):
        torch.testing.assert_close((one + two) / 2, whole, rtol=1e-12, atol=1e-14)
