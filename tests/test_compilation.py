import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from leam_mm.callbacks import compilation
from leam_mm.callbacks.compilation import Compilation, probe, trained_blocks
from leam_mm.denoisers.denoiser import PRXDenoiser
from leam_mm.encoders.repeated_blocks import repeated_blocks
from leam_mm.optim.ema import Ema


class Module(nn.Module):
    """What a LightningModule is here: a network, its average, a device."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.denoiser = PRXDenoiser(4, 12, hidden_size=32, depth=3, num_heads=2)
        for weight in self.denoiser.parameters():
            nn.init.normal_(weight, std=0.2)  # the output starts at zero, which would compare nothing
        self.ema = Ema(self.denoiser, 0.5)
        self.device = torch.device("cpu")


def start(module: nn.Module, dynamic: bool | None = True) -> None:
    Compilation(dynamic).on_fit_start(cast(Any, SimpleNamespace()), cast(Any, module))


def loss_of(module: Module, length: int, shorter: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length)
    latent, state = torch.randn(2, 4, 4, 4, generator=generator), torch.randn(2, length, 12, generator=generator)
    mask = torch.arange(length) < torch.tensor([[length], [length - shorter]])
    return module.denoiser(latent, torch.tensor([0.2, 0.7]), state, mask).square().sum()


def test_blocks_are_the_outermost_members_with_layers() -> None:
    module = Module()
    assert repeated_blocks(module.denoiser) == list(module.denoiser.model.blocks)
    assert trained_blocks(module) == list(module.denoiser.model.blocks)  # not those of the average
    module.denoiser.model.blocks[0].requires_grad_(False)
    assert trained_blocks(module) == list(module.denoiser.model.blocks)[1:]
    flat = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    nested = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.ReLU())
    assert repeated_blocks(nn.ModuleDict({"stem": flat})) == []
    assert repeated_blocks(nn.ModuleDict({"stages": nested})) == [nested[0]]


@pytest.mark.usefixtures("compiler")
def test_compiled_blocks_compute_the_same_at_any_length(caplog: pytest.LogCaptureFixture) -> None:
    plain, compiled = Module(), Module()
    with caplog.at_level(logging.INFO):
        start(compiled)
    assert "3 blocks are compiled" in caplog.text
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for length in (5, 9):
        losses = []
        for module in (plain, compiled):
            module.zero_grad()
            losses.append(loss_of(module, length))
            losses[-1].backward()
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)
        for mine, other in zip(compiled.denoiser.parameters(), plain.denoiser.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-3)
    assert all(block._compiled_call_impl is not None for block in compiled.denoiser.model.blocks)


def test_captions_of_any_lengths_make_two_kernels_with_a_mask_and_without() -> None:
    torch._dynamo.reset()
    module, plain = Module(), Module()
    for block in module.denoiser.model.blocks:
        block.compile(backend="eager", dynamic=True)  # what is compiled anew does not depend on the back end
    with torch.no_grad():
        for shorter in (0, 2):
            loss_of(module, 5, shorter)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for length, shorter in ((7, 0), (6, 1), (9, 4), (4, 0)):
                torch.testing.assert_close(loss_of(module, length, shorter), loss_of(plain, length, shorter))
    torch._dynamo.reset()


def test_where_it_does_not_work_it_says_so_and_the_plain_network_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no C++ compiler found\nmore")

    monkeypatch.setattr(compilation.torch, "compile", refuse)
    probe.cache_clear()
    module = Module()
    start(module)
    probe.cache_clear()
    assert "torch.compile is not used: RuntimeError: no C++ compiler found" in caplog.text
    assert all(block._compiled_call_impl is None for block in module.denoiser.model.blocks)
    assert loss_of(module, 5).isfinite()
    caplog.clear()
    start(nn.Linear(2, 2))
    assert "no repeated blocks" in caplog.text
