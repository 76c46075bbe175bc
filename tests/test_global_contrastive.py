"""The global loss against the softmax loss of a whole data set, in closed form: all small batches of a toy count."""

import math
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from leam_mm.errors import UserError
from leam_mm.losses.contrastive import InfoNCE
from leam_mm.losses.global_contrastive import GlobalContrastive

N, D = 6, 4


def toy(scale: float = 7.0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    image, text = F.normalize(torch.randn(2, N, D, generator=generator, dtype=torch.float64), dim=-1)
    return [part.to(dtype).requires_grad_() for part in (image, text, torch.tensor(scale))]


def truth(image: Tensor, text: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Log g and log h over all other samples of the data set, from the formula."""
    logits = scale * image @ text.T
    others = ~torch.eye(len(image), dtype=torch.bool)
    relative = (logits - logits.diagonal()[:, None]).exp(), (logits.T - logits.diagonal()[:, None]).exp()
    first, second = ((side * others).sum(dim=1) / (len(image) - 1) for side in relative)
    return first.log().detach(), second.log().detach()


def build(**settings: float) -> GlobalContrastive:
    return GlobalContrastive(N, **settings).double()  # type: ignore[arg-type]


@pytest.mark.parametrize("tile", [1, 4, 100])
@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_gamma_one_and_the_whole_data_set_is_info_nce(scale: float, tile: int) -> None:
    ours, theirs = toy(scale), toy(scale)
    mine = build(gamma=1.0, tile=tile)(*ours, None, sample_row=torch.arange(N))
    expected = InfoNCE()(*theirs, None)
    assert mine.item() == pytest.approx(expected.item(), rel=1e-12, abs=1e-12)
    (3 * mine).backward()
    (3 * expected).backward()
    for name, a, b in zip(("image", "text", "scale"), ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-13, msg=name)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_with_right_estimates_small_batches_have_the_gradient_of_the_whole_data_set(size: int) -> None:
    # gamma is almost 0, so that the estimates stay what they are: the truth. Then the mean over all batches is exact.
    ours, theirs = toy(), toy()
    loss = build(gamma=1e-300)
    loss.image_estimate.copy_(truth(*toy())[0])
    loss.text_estimate.copy_(truth(*toy())[1])
    batches = [torch.tensor(rows) for rows in combinations(range(N), size)]
    for rows in batches:
        value = loss(ours[0][rows], ours[1][rows], ours[2], None, sample_row=rows)
        (value / len(batches)).backward()
    InfoNCE()(*theirs, None).backward()
    for name, a, b in zip(("image", "text", "scale"), ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-13, msg=name)
    # The mini-batch loss has another gradient: that is what the estimates are for.
    biased = toy()
    for rows in batches:
        (InfoNCE()(biased[0][rows], biased[1][rows], biased[2], None) / len(batches)).backward()
    assert (biased[0].grad - theirs[0].grad).norm() > 0.05 * theirs[0].grad.norm()  # type: ignore[operator, union-attr]


def test_estimates_follow_algorithm_1() -> None:
    loss, (image, text, scale) = build(gamma=0.25), toy()
    by_hand = torch.full((N,), math.nan, dtype=torch.float64)
    for rows in (torch.tensor([0, 3, 4]), torch.tensor([4, 0, 1, 2]), torch.tensor([0, 4])):
        loss(image[rows], text[rows], scale, None, sample_row=rows)
        value = truth(image[rows], text[rows], scale)[0].exp()
        by_hand[rows] = torch.where(by_hand[rows].isnan(), value, 0.75 * by_hand[rows] + 0.25 * value)
    torch.testing.assert_close(loss.image_estimate[:5].exp(), by_hand[:5], rtol=1e-12, atol=0)
    assert loss.image_estimate[5].isneginf() and loss.text_estimate[5].isneginf() and loss.visits == 9


def test_gradient_is_the_weighted_gradient_of_the_batch_means() -> None:
    # 1/2B sum_i grad g_i / (epsilon + u_i) and the same for h, by autograd from the plain formula; then RGCL-g of it.
    rows, loss, ours, theirs = torch.tensor([1, 4, 2, 5]), build(gamma=0.5, epsilon=0.01, rho=2.0), toy(), toy()
    loss(ours[0][rows].flip(0), ours[1][rows], ours[2], None, sample_row=rows)
    value = loss(ours[0][rows], ours[1][rows], ours[2], None, sample_row=rows)
    value.backward()
    image, text, scale = theirs[0][rows], theirs[1][rows], theirs[2]
    logits, others = scale * image @ text.T, 1 - torch.eye(4)
    u = [estimate[rows].exp() for estimate in (loss.image_estimate, loss.text_estimate)]
    surrogate, outer = torch.zeros(()), torch.zeros(())
    for side, estimate in zip((logits, logits.T), u, strict=True):
        means = ((side - side.diagonal()[:, None]).exp() * others).sum(dim=1) / 3
        surrogate = surrogate + (means / (0.01 + estimate)).mean() / 2
        outer = outer + (0.01 + estimate).log().mean() / 2
    # d/dscale [(M + rho) / scale], where M's gradient is the surrogate's and its value that of the estimates
    ((surrogate - surrogate.detach() + outer + 2.0) / scale).backward()
    assert value.item() == pytest.approx((outer.item() + 2.0) / 7.0, rel=1e-12)
    for name, a, b in zip(("image", "text", "scale"), ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-13, msg=name)


def test_high_temperatures_stay_finite_in_float32() -> None:
    # exp(2 x 100) is far above what float32 holds; its logarithm is not.
    image = torch.eye(4)
    loss, leaves = GlobalContrastive(4), [image.clone().requires_grad_(), -image.clone(), torch.tensor(100.0)]
    for _ in range(2):
        value = loss(*leaves, None, sample_row=torch.arange(4))
        value.backward()
    assert value.isfinite() and leaves[0].grad is not None and leaves[0].grad.isfinite().all()
    assert loss.image_estimate.tolist() == pytest.approx([100.0] * 4)


def test_gamma_falls_by_half_a_cosine_in_whole_passes() -> None:
    loss = build(gamma=0.2, decay_epochs=4)
    found = []
    for _ in range(12):
        found.append(loss.log_gamma()[0].exp().item())
        loss.visits += N // 2
    steps = [0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / 4))) for epoch in range(6)]
    assert found == pytest.approx([step for step in steps for _ in range(2)])
    assert found[0] == 1.0 and found[-1] == pytest.approx(0.2)


def test_without_numbers_nothing_is_remembered_and_a_sample_twice_is_one() -> None:
    loss, (image, text, scale) = build(), toy()
    value = loss(image, text, scale, None)
    assert loss.visits == 0 and loss.image_estimate.isneginf().all()
    assert value.item() == pytest.approx(InfoNCE()(image, text, scale, None).item(), rel=1e-12)
    rows = torch.tensor([2, 5, 2])
    loss(image[:3], text[:3], scale, None, sample_row=rows)
    assert loss.image_estimate[2] == pytest.approx(truth(image[:3], text[:3], scale)[0][2].item())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"samples": 1}, "at least 2 samples"),
        ({"samples": 9, "gamma": 0.0}, "gamma 0.0"),
        ({"samples": 9, "epsilon": 0.0}, "epsilon 0.0"),
        ({"samples": 9, "tile": 0}, "tile 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        GlobalContrastive(**settings)


def test_one_pair_has_nothing_to_contrast_with() -> None:
    image, text, scale = toy()
    with pytest.raises(UserError, match="at least two"):
        build()(image[:1], text[:1], scale, None, sample_row=torch.tensor([0]))
