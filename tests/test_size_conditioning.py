"""Fourier features in closed form, no change at the start, and the vector of a whole image folds into a bias."""

import math

import torch
from torch import nn

from leam_mm.denoisers.size_conditioning import SizeConditioning, fourier_features, whole_image


def trained(width: int = 16) -> SizeConditioning:
    """Size conditioning with a last layer that is not zero."""
    torch.manual_seed(0)
    made = SizeConditioning(width, 512, frequencies=8)
    nn.init.normal_(made.out.weight)
    nn.init.normal_(made.out.bias)
    return made


def test_features_are_cosines_and_sines_of_falling_frequencies() -> None:
    values = torch.tensor([[0, 17], [640, 1024]])
    found = fourier_features(values, 4)
    assert found.shape == (2, 2, 8)
    for row in range(2):
        for column in range(2):
            angles = [int(values[row, column]) * 10_000 ** (-number / 4) for number in range(4)]
            expected = [math.cos(angle) for angle in angles] + [math.sin(angle) for angle in angles]
            assert torch.allclose(found[row, column], torch.tensor(expected), atol=1e-4)


def test_sizes_one_pixel_apart_have_different_features() -> None:
    assert fourier_features(torch.arange(1, 4097), 32).diff(dim=0).norm(dim=-1).min() > 0.1


def test_vector_is_zero_before_training_and_the_last_layer_has_a_gradient() -> None:
    made = SizeConditioning(16, 512)
    size = torch.tensor([[480, 640, 0, 12, 512, 512], [64, 64, 3, 0, 512, 256]])
    vector = made(size)
    assert vector.shape == (2, 16) and torch.all(vector == 0)
    (vector * torch.arange(16)).sum().backward()
    assert made.out.weight.grad is not None and float(made.out.weight.grad.abs().max()) > 0


def test_each_of_the_six_values_has_an_influence() -> None:
    made, size = trained(), torch.tensor([[480, 640, 5, 12, 512, 384]])
    for index in range(6):
        other = size.clone()
        other[0, index] += 1
        assert not torch.allclose(made(size), made(other), atol=1e-4)


def test_the_vector_of_a_whole_image_folds_into_a_bias() -> None:
    made, layer, values = trained().double(), nn.Linear(16, 16).double(), torch.randn(5, 16, dtype=torch.float64)
    assert whole_image(512, 768).tolist() == [512, 768, 0, 0, 512, 768]
    assert torch.equal(made(), made(whole_image(512, 512))) and not torch.equal(made(), made(whole_image(512, 768)))
    expected = layer(values) + made(torch.tensor([[512, 512, 0, 0, 512, 512]] * 5))
    made.fold_into(layer)
    assert torch.allclose(layer(values), expected, rtol=0, atol=1e-14)
