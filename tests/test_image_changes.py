import numpy as np
import pytest
import torch
from torch import Tensor

from leam_mm.errors import UserError
from leam_mm.marking.image_changes import ImageChanges, encoded, reencoded, rotated, rounded


def picture(batch: int = 2, height: int = 24, width: int = 40) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_jpeg_is_real_forward_and_the_identity_backward() -> None:
    image = rounded(picture()).requires_grad_()
    found = encoded(image, "JPEG", 60)
    pixels = ((image.detach()[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    after = ((found.detach()[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(after, reencoded(pixels, "JPEG", 60)) and not np.array_equal(after, pixels)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (found * weights).sum().backward()  # type: ignore[no-untyped-call]
    assert image.grad is not None and torch.equal(image.grad, weights)


def test_rounding_gives_bytes_and_passes_gradients() -> None:
    image = picture().requires_grad_()
    levels = (rounded(image) + 1) * 127.5
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    rounded(image).sum().backward()  # type: ignore[no-untyped-call]
    assert image.grad is not None and torch.equal(image.grad, torch.ones_like(image))


def test_draws_are_repeatable_bounded_and_differentiable() -> None:
    shapes = set()
    for number in range(60):
        image = picture().requires_grad_()
        one, two = (ImageChanges()(image, np.random.default_rng(number)) for _ in range(2))
        assert torch.equal(one, two) and one.abs().max() <= 1 + 1e-6 and min(one.shape[2:]) >= 16
        one.sum().backward()  # type: ignore[no-untyped-call]
        assert image.grad is not None and image.grad.abs().sum() > 0
        shapes.add(tuple(one.shape[2:]))
    assert len(shapes) > 5  # crops and resizes that keep the new size


def test_rotation_keeps_the_shapes_of_oblong_images() -> None:
    place = torch.linspace(-1, 1, 41)
    disc = ((place[:21, None] * 20 - place[10] * 20) ** 2 + (place[None] * 20) ** 2 < 36).float().expand(1, 3, 21, 41)
    assert (rotated(disc, 30.0) - disc).abs().mean() < 0.03  # a disc at the centre stays one


def test_ranges_are_checked() -> None:
    with pytest.raises(UserError, match="crop 0"):
        ImageChanges(crop=0)
    with pytest.raises(UserError, match="smaller number first"):
        ImageChanges(quality=(90, 50))
