"""Tiles change the memory and nothing else: value and gradients are those of the plain formulas, for any tile."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from leam_mm.errors import UserError
from leam_mm.losses.contrastive import ContrastiveLoss, InfoNCE, SigmoidLoss

B, D = 13, 6


def inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, text = F.normalize(torch.randn(2, B, D, generator=generator, dtype=torch.float64), dim=-1)
    parts = (image, text, torch.tensor(9.0), torch.tensor(-3.0))
    return [part.to(dtype).requires_grad_() for part in parts]


def plain_softmax(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, smoothing: float = 0.0) -> Tensor:
    logits, target = scale * image @ text.T, torch.arange(len(image))
    sides = (F.cross_entropy(side, target, label_smoothing=smoothing) for side in (logits, logits.T))
    return sum(sides) / 2 + 0 * bias  # type: ignore[return-value]


def plain_sigmoid(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    logits = scale * image @ text.T + bias
    return -F.logsigmoid((2 * torch.eye(len(image)) - 1) * logits).sum() / len(image)


CASES = [
    (lambda tile: InfoNCE(tile=tile), plain_softmax),
    (lambda tile: InfoNCE(0.2, tile=tile), lambda *parts: plain_softmax(*parts, smoothing=0.2)),
    (lambda tile: SigmoidLoss(tile=tile), plain_sigmoid),
]


@pytest.mark.parametrize("tile", [1, 4, 5, 13, 100])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_value_and_gradients_are_those_of_the_formula(case: int, tile: int) -> None:
    build, plain = CASES[case]
    ours, theirs = inputs(), inputs()
    mine, expected = build(tile)(*ours), plain(*theirs)
    assert mine.item() == pytest.approx(expected.item(), rel=1e-13)
    (3 * mine).backward()  # an upstream gradient other than 1
    (3 * expected).backward()
    for name, a, b in zip(("image", "text", "scale", "bias"), ours, theirs, strict=True):
        if name == "bias" and isinstance(build(tile), InfoNCE):
            assert a.grad is None  # it cancels in the softmax
        else:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-15, msg=name)


@pytest.mark.parametrize("loss", [InfoNCE(0.1, tile=4), SigmoidLoss(tile=4)])
def test_evaluation_gives_the_same_value(loss: ContrastiveLoss) -> None:
    parts = inputs()
    with torch.no_grad():
        quiet = loss(*parts)
    assert torch.equal(quiet, loss(*parts).detach())


@pytest.mark.parametrize(("build", "plain"), [(InfoNCE, plain_softmax), (SigmoidLoss, plain_sigmoid)])
def test_autocast_around_it_does_not_round_the_logits(build: type, plain: object) -> None:
    ours, exact = inputs(torch.float32), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        mine = build()(*ours)
    assert mine.item() == pytest.approx(plain(*exact).item(), rel=1e-5)  # type: ignore[operator]
    mine.backward()
    assert ours[0].grad is not None and ours[0].grad.dtype == torch.float32


def test_loss_near_zero_keeps_its_digits() -> None:
    # Orthogonal pairs at scale 20: log(1 + (B - 1) e^-20), far below the spacing of float32 around 20.
    apart = torch.eye(8)
    expected = torch.log1p(7 * torch.exp(torch.tensor(-20.0, dtype=torch.float64))).item()
    assert InfoNCE()(apart.double(), apart.double(), torch.tensor(20.0).double(), None).item() == pytest.approx(
        expected, rel=1e-6
    )
    assert InfoNCE()(apart, apart, torch.tensor(10.0), None).item() == pytest.approx(7 * 4.54e-5, rel=2e-3)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux' /proc")
def test_memory_grows_with_the_features_alone() -> None:
    # 8,192 pairs have 268 MB of logits in float32; plain losses keep several such tensors.
    code = """
import torch
from leam_mm.losses.contrastive import InfoNCE, SigmoidLoss
def memory(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))
torch.set_num_threads(1)
image, text = (torch.nn.functional.normalize(torch.randn(8192, 32), dim=-1).requires_grad_() for _ in range(2))
scale, bias = torch.tensor(10.0, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
InfoNCE(tile=1024)(image[:64], text[:64], scale, bias).backward()
for attempt in range(2):  # pages of libraries that the system had taken back come in again at the first
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    before = memory("VmRSS")
    for loss in (InfoNCE(tile=1024), SigmoidLoss(tile=1024)):
        loss(image, text, scale, bias).backward()
    print((memory("VmHWM") - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    # The second may find the first one's tiles still in the heap; a whole matrix of logits never stays there.
    grown = [float(line) for line in done.stdout.split()]
    assert max(grown) > 0 and min(grown) < 60, f"{grown} MB more"


def test_tile_must_be_positive() -> None:
    with pytest.raises(UserError, match="tile is 0"):
        SigmoidLoss(tile=0)
