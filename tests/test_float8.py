import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from leam_mm.callbacks import float8
from leam_mm.callbacks.float8 import Float8, _deviation, float8_linear, probe, product, quantise
from leam_mm.denoisers.denoiser import PRXDenoiser

FORMATS = [(torch.float8_e4m3fn, 3), (torch.float8_e5m2, 2)]  # with the bits of their fraction


class Module(nn.Module):
    """What a LightningModule is here: a network and a device."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.denoiser = PRXDenoiser(4, 12, hidden_size=64, depth=2, num_heads=2)
        for value in self.denoiser.parameters():
            if not value.any():
                nn.init.normal_(value, std=0.05)
        self.device = torch.device("cpu")


def inputs() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    latent, state = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 12, generator=generator)
    return latent, torch.tensor([0.2, 0.7]), state, torch.arange(5) < torch.tensor([[3], [5]])


def back(rounded: Tensor, scale: Tensor) -> Tensor:
    return rounded.double() * scale.double()


@pytest.mark.parametrize(("kind", "bits"), FORMATS)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_rounding_is_off_by_half_a_last_bit_at_most(kind: torch.dtype, bits: int, size: float) -> None:
    value = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)) * size
    rounded, scale = quantise(value, kind)
    found = back(rounded, scale)
    smallest = torch.finfo(kind).smallest_normal * scale.double()
    error, wide = (found - value.double()).abs(), value.double().abs()
    normal = wide >= smallest
    # The scale is itself a rounded float32, which may move a number over the middle between two others.
    assert (error[normal] <= wide[normal] * 2.0 ** -(bits + 1) * (1 + 1e-5)).all() and normal.double().mean() > 0.9
    assert (error[~normal] <= smallest * 2.0 ** -(bits + 1) * (1 + 1e-5)).all()
    torch.testing.assert_close(found.abs().max(), wide.max(), rtol=1e-6, atol=0)


def test_zeros_stay_zeros() -> None:
    rounded, scale = quantise(torch.zeros(4, 4), torch.float8_e4m3fn)
    assert scale == 1 and not rounded.float().any()


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_product_is_that_of_the_rounded_numbers(kind: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    left, right = torch.randn(32, 64, generator=generator) * 9, torch.randn(48, 64, generator=generator) / 7
    expected = back(*quantise(left, kind)) @ back(*quantise(right, torch.float8_e4m3fn)).t()
    torch.testing.assert_close(product(left, right, torch.float32, kind).double(), expected, rtol=1e-5, atol=1e-5)
    transposed = product(left.t().contiguous().t(), right.t().contiguous().t(), torch.float32, kind)
    torch.testing.assert_close(transposed.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_error_of_a_layer_is_bounded_by_its_rounding() -> None:
    generator = torch.Generator().manual_seed(3)
    layer = nn.Linear(128, 96)
    x = torch.randn(2, 5, 128, generator=generator)  # ten rows: not a multiple of 16
    with torch.no_grad():
        error = (float8_linear(layer, x) - layer(x)).abs()
        largest = torch.finfo(torch.float8_e4m3fn).max
        # Each factor is off by 2^-4 of itself, or by half a step below the smallest normal number.
        half_step = torch.finfo(torch.float8_e4m3fn).smallest_normal * 2**-4 / largest
        u, v = x.abs(), layer.weight.abs()
        off_u, off_v = (part * 2**-4 + part.max() * half_step for part in (u, v))
        bound = (u @ off_v.t()) + (off_u @ v.t()) + off_u @ off_v.t()
    assert (error <= bound + 1e-6).all()
    assert error.norm() / layer(x).norm() < 0.05 and error.max() > 0


def test_gradients_of_a_network_point_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float8, "probe", lambda device: "")  # torch multiplies in float8 on a CPU too, but slowly
    slopes = []
    for used in (False, True):
        module = Module()
        callback = Float8(smallest=64)
        if used:
            start(callback, module)
        module.denoiser(*inputs()).square().sum().backward()
        slopes.append([value.grad for value in module.denoiser.parameters() if value.grad is not None])
    assert len(slopes[0]) == len(slopes[1]) == len(list(Module().parameters()))
    flat = [torch.cat([part.flatten() for part in each]) for each in slopes]
    assert torch.cosine_similarity(flat[0], flat[1], dim=0) > 0.99
    assert not torch.equal(*flat)
    large = [pair for pair in zip(*slopes, strict=True) if pair[0].ndim == 2]
    assert min(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) for a, b in large) > 0.97


def start(callback: Float8, module: Module) -> None:
    callback.on_fit_start(cast(Any, SimpleNamespace()), cast(Any, module))


def test_names_weights_and_what_is_left_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(float8, "probe", lambda device: "")
    module, callback = Module(), Float8(smallest=64)
    names = list(module.state_dict())
    chosen = {id(layer) for layer in callback.layers(module)}
    found = {name.split(".", 4)[4] for name, layer in module.named_modules() if id(layer) in chosen}
    assert found == {
        "attention.img_qkv_proj", "attention.txt_kv_proj", "attention.to_out.0", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip
    with caplog.at_level(logging.INFO):
        start(callback, module)
    assert "12 linear layers multiply in float8" in caplog.text
    assert list(module.state_dict()) == names
    with torch.no_grad():
        changed = module.denoiser(*inputs())
        callback.on_fit_end(cast(Any, None), cast(Any, None))
        assert torch.equal(module.denoiser(*inputs()), Module().denoiser(*inputs()))
        assert not torch.equal(changed, module.denoiser(*inputs()))
    assert Float8(smallest=128).layers(module) == []


def test_autocast_decides_the_type() -> None:
    layer = nn.Linear(32, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = float8_linear(layer, torch.randn(4, 32))
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


def test_where_it_does_not_work_one_line_says_so(caplog: pytest.LogCaptureFixture) -> None:
    module, callback = Module(), Float8(smallest=64)
    start(callback, module)
    assert [record.getMessage() for record in caplog.records] == [
        "float8 is not used: device type cpu has no float8 kernels; remove overlay_fp8.yaml, or use a newer GPU"
    ]
    assert "forward" not in vars(module.denoiser.model.blocks[0].gate_proj)
    caplog.clear()
    start(Float8(), module)
    assert "no layer in a block has 1024 inputs and outputs" in caplog.text
    assert probe(torch.device("cpu"))


def test_the_probe_sees_a_wrong_product(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _deviation(torch.device("cpu")) < 0.1
    right = torch._scaled_mm
    monkeypatch.setattr(torch, "_scaled_mm", lambda *args, **more: right(*args, **{**more, "scale_a": torch.ones(())}))
    assert _deviation(torch.device("cpu")) > 0.1


@pytest.mark.gpu
def test_it_works_on_a_gpu_of_hoppers_generation() -> None:
    device = torch.device("cuda")
    if torch.cuda.get_device_capability(device) < (9, 0):
        assert probe(device) or torch.cuda.get_device_capability(device) == (8, 9)
        pytest.skip("no GPU of Hopper's generation")
    assert probe(device) == ""
