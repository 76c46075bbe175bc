import matplotlib.cbook as cbook
import pytest
import torch
from matplotlib.image import imread

from leam_mm.codecs.perceptual_loss import EfficientNetLoss
from leam_mm.encoders.efficientnet import efficientnet_lite0
from leam_mm.errors import UserError
from leam_mm.losses.reconstruction import (
    L1Loss,
    PatchDiscriminator,
    adaptive_weight,
    adversarial_loss,
    discriminator_loss,
    gaussian_divergence,
    widened,
)


@pytest.fixture(scope="module")
def perceptual() -> EfficientNetLoss:
    return EfficientNetLoss(stages=(0, 1, 2))


def images(count: int = 2, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_l1_is_the_mean_absolute_difference_per_sample() -> None:
    image = images()
    offset = torch.tensor([0.25, 0.5]).reshape(2, 1, 1, 1)
    torch.testing.assert_close(L1Loss()(image + offset, image), offset.flatten())


def test_network_recognises_a_photograph() -> None:
    # The portrait that matplotlib ships shows a naval uniform: class 652 of ImageNet. Misplaced weights would not know.
    portrait = imread(cbook._get_data_path("sample_data", "grace_hopper.jpg"))
    pixels = torch.from_numpy(portrait.copy()).permute(2, 0, 1)[None].float()
    image = torch.nn.functional.interpolate(pixels[:, :, :512], (224, 224), mode="area") / 127.5 - 1
    assert int(efficientnet_lite0()[0](image).argmax()) == 652


def test_perceptual_distance_is_zero_only_between_equals_and_grows_with_the_error(perceptual: EfficientNetLoss) -> None:
    image = images()
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    same, near, far = (perceptual(image + size * noise, image) for size in (0, 0.05, 0.5))
    assert (same == 0).all() and (near > 0).all() and (near < far).all()


def test_perceptual_gradient_reaches_the_reconstruction_and_not_the_network(perceptual: EfficientNetLoss) -> None:
    reconstruction = images(seed=1).requires_grad_()
    perceptual(reconstruction, images()).sum().backward()
    assert reconstruction.grad is not None and (reconstruction.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(parameter.grad is None for parameter in perceptual._network[0].parameters())


def test_perceptual_gradient_is_that_of_finite_differences(perceptual: EfficientNetLoss) -> None:
    image, reconstruction = (images(1, 16, seed).double() for seed in (0, 1))
    assert torch.autograd.gradcheck(
        lambda scale: perceptual(scale * reconstruction, image),
        torch.tensor(0.7, dtype=torch.float64, requires_grad=True),
    )


def test_perceptual_network_stays_out_of_checkpoints_and_optimizers(perceptual: EfficientNetLoss) -> None:
    perceptual(images(), images())
    assert not perceptual.state_dict() and not list(perceptual.parameters())
    perceptual.train()
    assert not perceptual._network[0].training


def test_perceptual_stages_are_checked() -> None:
    with pytest.raises(UserError, match="stages"):
        EfficientNetLoss(stages=(7,))


def test_divergence_equals_torch_distributions() -> None:
    mean, log_variance = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(gaussian_divergence(mean, log_variance), expected)


def test_hinge_stops_beyond_the_margin() -> None:
    scores = torch.full((2, 1, 4, 4), 1.5)
    assert (discriminator_loss(scores, -scores) == 0).all()
    torch.testing.assert_close(discriminator_loss(-scores, scores), torch.full((2,), 2.5))
    torch.testing.assert_close(adversarial_loss(scores), torch.full((2,), -1.5))


def test_discriminator_learns_to_tell_images_from_reconstructions() -> None:
    torch.manual_seed(0)
    critic = PatchDiscriminator(width=8)
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)
    real, fake = images(8), images(8, seed=1) * 0.3
    for _ in range(20):
        loss = discriminator_loss(critic(real), critic(fake)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert critic(real).mean() > critic(fake).mean() + 0.5


def test_discriminator_scores_each_sample_alone() -> None:
    critic = PatchDiscriminator(width=8)
    image = images(4)
    torch.testing.assert_close(critic(image)[:1], critic(image[:1]))


def test_adaptive_weight_makes_the_gradients_equally_long() -> None:
    others, opinion = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    factor = adaptive_weight(others.requires_grad_(), opinion, epsilon=0.0)
    torch.testing.assert_close((factor * opinion).norm(), others.norm(), rtol=1e-12, atol=0)
    assert not factor.requires_grad
    assert adaptive_weight(others, 0 * opinion) == 1e4  # a critic without an opinion


def test_losses_widen_half_precision_and_leave_float64() -> None:
    kept = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float32: torch.float32}
    for dtype, wanted in {**kept, torch.float64: torch.float64}.items():
        assert widened(torch.ones(1, dtype=dtype)).dtype == wanted
