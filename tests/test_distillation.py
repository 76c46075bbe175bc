"""The divergence from teachers against its formula; tiles change nothing."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from leam_mm.errors import UserError
from leam_mm.losses.contrastive import InfoNCE, SigmoidLoss
from leam_mm.losses.distillation import Distillation, Teacher
from leam_mm.losses.global_contrastive import GlobalContrastive

B, D = 7, 5
TEACHERS = [Teacher(4, 3.0), Teacher(6, 20.0)]


def inputs() -> tuple[list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, text = F.normalize(torch.randn(2, B, D, generator=generator, dtype=torch.float64), dim=-1)
    stored = torch.randn(2, B, 10, generator=generator, dtype=torch.float64)
    leaves = [part.requires_grad_() for part in (image, text, torch.tensor(9.0).double(), torch.tensor(-3.0).double())]
    return leaves, stored[0], stored[1]


def plain(image: Tensor, text: Tensor, scale: Tensor, teacher_image: Tensor, teacher_text: Tensor) -> Tensor:
    """Equation by equation with torch's own softmax."""
    total, student = torch.zeros(()), scale * image @ text.T
    first, second = teacher_image.split([4, 6], dim=1), teacher_text.split([4, 6], dim=1)
    for teacher, a, b in zip(TEACHERS, first, second, strict=True):
        target = teacher.scale * F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
        for mine, theirs in ((student, target), (student.T, target.T)):
            log_p, log_t = mine.log_softmax(dim=1), theirs.log_softmax(dim=1)
            total = total + F.kl_div(log_p, log_t, log_target=True, reduction="batchmean") / 4
    return total


@pytest.mark.parametrize("tile", [1, 3, 100])
@pytest.mark.parametrize("weight", [0.0, 0.6, 1.0])
def test_value_and_gradients_are_those_of_the_formula(weight: float, tile: int) -> None:
    (ours, *stored), (theirs, *_) = inputs(), inputs()
    mine = Distillation(SigmoidLoss(), TEACHERS, weight, tile)(*ours, *stored)
    expected = (1 - weight) * SigmoidLoss()(*theirs) + weight * plain(*theirs[:3], *stored)
    assert mine.item() == pytest.approx(expected.item(), rel=1e-13)
    (3 * mine).backward()
    (3 * expected).backward()
    for name, a, b in zip(("image", "text", "scale", "bias"), ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-11, atol=1e-14, msg=name)


def test_a_student_that_equals_its_teacher_has_nothing_to_learn() -> None:
    (image, text, scale, _), *_ = inputs()
    loss = Distillation(InfoNCE(), [Teacher(D, 9.0)], weight=1.0)
    value = loss(image, text, scale, None, image.detach() * 3, text.detach())
    value.backward()
    assert abs(value.item()) < 1e-14
    assert all(part.grad.abs().max() < 1e-14 for part in (image, text, scale))  # type: ignore[union-attr]


def test_without_embeddings_it_is_the_contrastive_loss() -> None:
    (image, text, scale, _), *_ = inputs()
    assert torch.equal(Distillation(InfoNCE(), TEACHERS)(image, text, scale, None), InfoNCE()(image, text, scale, None))


def test_embeddings_of_other_teachers_are_refused() -> None:
    leaves, first, second = inputs()
    with pytest.raises(
        UserError, match=r"teacher_image has 9 values per sample, but the teachers of the loss have \[4, 6\]"
    ):
        Distillation(InfoNCE(), TEACHERS)(*leaves, first[:, :9], second)


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="at least one teacher"):
        Distillation(InfoNCE(), [])
    with pytest.raises(UserError, match=r"weight 1.5"):
        Distillation(InfoNCE(), TEACHERS, weight=1.5)
    with pytest.raises(UserError, match="inner loss GlobalContrastive needs sample_row"):
        Distillation(GlobalContrastive(9), TEACHERS)
