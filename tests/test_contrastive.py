import math

import pytest
import torch
from torch import Tensor

from leam_mm.losses.contrastive import ContrastiveLoss, InfoNCE, SigmoidLoss


def features(batch: int = 5, size: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(2, batch, size, generator=generator, dtype=torch.float64)
    image, text = torch.nn.functional.normalize(made, dim=-1)
    return image, text


def slow_info_nce(image: Tensor, text: Tensor, scale: float, smoothing: float = 0.0) -> float:
    """Equation by equation: mean over both directions of -sum_j q_ij log softmax_j."""
    rows, total = len(image), 0.0
    for first, second in ((image, text), (text, image)):
        for i in range(rows):
            logits = [scale * sum(float(a * b) for a, b in zip(first[i], second[j], strict=True)) for j in range(rows)]
            log_sum = math.log(sum(math.exp(logit) for logit in logits))
            for j in range(rows):
                share = smoothing / rows + (1 - smoothing if i == j else 0.0)
                total -= share * (logits[j] - log_sum)
    return total / (2 * rows)


def slow_sigmoid(image: Tensor, text: Tensor, scale: float, bias: float) -> float:
    """Equation 1 of 2303.15343."""
    rows, total = len(image), 0.0
    for i in range(rows):
        for j in range(rows):
            logit = scale * float(image[i] @ text[j]) + bias
            total += math.log1p(math.exp(-logit if i == j else logit))
    return total / rows


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_info_nce_equals_the_written_out_sum(scale: float, smoothing: float) -> None:
    image, text = features()
    loss = InfoNCE(smoothing)(image, text, torch.tensor(scale, dtype=torch.float64), None)
    assert float(loss) == pytest.approx(slow_info_nce(image, text, scale, smoothing), rel=1e-10)


@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (10.0, -10.0), (100.0, -3.0)])
def test_sigmoid_loss_equals_the_written_out_sum(scale: float, bias: float) -> None:
    image, text = features()
    loss = SigmoidLoss()(image, text, torch.tensor(scale).double(), torch.tensor(bias))
    assert float(loss) == pytest.approx(slow_sigmoid(image, text, scale, bias), rel=1e-10)
    without = SigmoidLoss()(image, text, torch.tensor(scale, dtype=torch.float64), None)
    assert float(without) == pytest.approx(slow_sigmoid(image, text, scale, 0.0), rel=1e-10)


@pytest.mark.parametrize("loss", [InfoNCE(), InfoNCE(0.2), SigmoidLoss()])
def test_gradient_is_the_slope(loss: ContrastiveLoss) -> None:
    image, text = features(3, 2)
    scale, bias = (torch.tensor(value, dtype=torch.float64) for value in (5.0, -2.0))
    inputs = [part.clone().requires_grad_() for part in (image, text, scale, bias)]
    if isinstance(loss, InfoNCE):
        assert torch.autograd.gradcheck(lambda a, b, c: loss(a, b, c, None), inputs[:3])
    else:
        assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("loss", [InfoNCE(), SigmoidLoss()])
def test_order_of_pairs_does_not_matter_and_sides_are_equal(loss: ContrastiveLoss) -> None:
    image, text = features(6)
    scale, bias = torch.tensor(8.0), torch.tensor(-4.0)
    value = loss(image, text, scale, bias)
    shuffled = torch.tensor([3, 1, 5, 0, 4, 2])
    torch.testing.assert_close(loss(image[shuffled], text[shuffled], scale, bias), value)
    torch.testing.assert_close(loss(text, image, scale, bias), value)


def test_known_values() -> None:
    apart = torch.eye(4, dtype=torch.float64)
    same = torch.ones(4, 1, dtype=torch.float64)
    assert float(InfoNCE()(same, same, torch.tensor(7.0), None)) == pytest.approx(math.log(4))  # chance
    assert float(InfoNCE()(apart, apart, torch.tensor(100.0), None)) < 1e-20
    assert float(SigmoidLoss()(apart, apart, torch.tensor(200.0), torch.tensor(-100.0))) < 1e-20


def test_bias_cancels_in_the_softmax() -> None:
    image, text = features()
    with_bias = InfoNCE()(image, text, torch.tensor(5.0), torch.tensor(-10.0))
    assert torch.equal(with_bias, InfoNCE()(image, text, torch.tensor(5.0), None))


def test_base_class_says_what_to_define() -> None:
    class Unfinished(ContrastiveLoss):
        pass

    with pytest.raises(NotImplementedError, match="Unfinished must define forward"):
        Unfinished()(*features(), torch.tensor(1.0), None)
