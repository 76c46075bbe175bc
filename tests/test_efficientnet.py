"""The perceptual network: the shipped weights, frozen, with the digest that results carry."""

import torch

from leam_mm.encoders.efficientnet import efficientnet_lite0


def test_weights_are_the_shipped_ones_and_frozen() -> None:
    network, digest = efficientnet_lite0()
    # The file's own name carries the first eight digits of its sha256, as torch's model zoo names files.
    assert digest.startswith("57934424")
    assert not any(parameter.requires_grad for parameter in network.parameters()) and not network.training
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)


def test_gradient_reaches_the_image() -> None:
    network, _ = efficientnet_lite0()
    image = torch.rand(1, 3, 64, 64, requires_grad=True)
    network(image).square().sum().backward()
    assert image.grad is not None and image.grad.abs().max() > 0
