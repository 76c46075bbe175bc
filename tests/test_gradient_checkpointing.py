"""Gradients to the last bit, with less kept for the backward pass."""

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from toys.encoders import three_layer_encoder

from leam_mm.callbacks.compilation import Compilation
from leam_mm.callbacks.gradient_checkpointing import GradientCheckpointing
from leam_mm.errors import UserError
from leam_mm.optim.ema import Ema

TRAINER = cast(Any, SimpleNamespace(callbacks=[]))


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = three_layer_encoder(layers=4)
        self.ema = Ema(self.encoder, 0.5)


def gradients(module: Module) -> tuple[list[torch.Tensor], int]:
    """Of all weights, and how many numbers autograd kept for them."""
    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    image = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    text = torch.randint(1, 50, (6, 8), generator=torch.Generator().manual_seed(1))
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        both = module.encoder.encode_image(image), module.encoder.encode_text(text, torch.full((6,), 8))
        kept_forward = kept
        (both[0] @ both[1].T * module.encoder.scale).logsumexp(dim=0).sum().backward()
    return [weight.grad for weight in module.encoder.parameters() if weight.grad is not None], kept_forward


@pytest.mark.parametrize("every", [1, 2])
def test_gradients_are_bit_equal_and_less_is_kept(every: int, caplog: pytest.LogCaptureFixture) -> None:
    plain, recomputed = Module(), Module()
    callback = GradientCheckpointing(every)
    with caplog.at_level(logging.INFO):
        callback.on_train_start(TRAINER, cast(Any, recomputed))
    assert f"{6 if every == 1 else 3} of 6 blocks" in caplog.text
    assert list(recomputed.state_dict()) == list(plain.state_dict())
    (expected, kept), (found, less) = gradients(plain), gradients(recomputed)
    assert len(found) == len(expected) > 50
    assert all(torch.equal(mine, other) for mine, other in zip(found, expected, strict=True))
    assert less < (0.3 if every == 1 else 0.7) * kept
    callback.on_train_end(TRAINER, cast(Any, recomputed))
    assert gradients(recomputed)[1] == kept


def test_what_cannot_be_done_is_said(caplog: pytest.LogCaptureFixture) -> None:
    GradientCheckpointing().on_train_start(TRAINER, cast(Any, nn.Linear(2, 2)))
    assert "not used: the network has no repeated blocks" in caplog.text
    with pytest.raises(UserError, match="give at least 1"):
        GradientCheckpointing(0)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiled_blocks_are_computed_again_too() -> None:
    plain, both = Module(), Module()
    both.device = torch.device("cpu")  # type: ignore[assignment]
    callbacks = [GradientCheckpointing(), Compilation()]
    trainer = cast(Any, SimpleNamespace(callbacks=callbacks))
    callbacks[1].on_fit_start(trainer, cast(Any, both))
    counters.clear()
    callbacks[0].on_train_start(trainer, cast(Any, both))
    (expected, kept), (found, less) = gradients(plain), gradients(both)
    assert counters["stats"]["calls_captured"] > 20  # the compiler has seen the blocks
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)
    assert less < 0.5 * kept
