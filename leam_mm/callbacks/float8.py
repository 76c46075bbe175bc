"""Float8 matrix products with dynamic scaling on Hopper GPUs and later (arXiv 2209.05433).

trainer:
  callbacks:
  - class_path: leam_mm.callbacks.float8.Float8

Linear layers inside the blocks multiply in float8: inputs and weights in e4m3, gradients in e5m2. Each tensor has one
scale, computed at every use, that maps its largest element to the largest value of the format. Sums are in float32.
Weights, gradients, optimizer states and checkpoints keep their precision and names. Norms, modulations, embeddings and
the output layer do not change.
"""

import logging
from fnmatch import fnmatch
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from leam_mm.callbacks.compilation import trained_blocks

log = logging.getLogger(__name__)
ALIGNMENT = 16  # float8 kernels need sizes that are a multiple of this


class Float8(Callback):
    """Run the large linear layers of the blocks in float8 if a probe succeeds on the device.

    Use it together with Compilation, which fuses scaling and rounding into one kernel. Otherwise they cost as much time
    as the product saves.

    Args:
        smallest: Least number of inputs and of outputs of a float8 layer; rounding costs more than it saves below.
        leave: Patterns of the names of layers inside a block that do not use float8.
    """

    def __init__(self, smallest: int = 1024, leave: tuple[str, ...] = ("*modulation*", "*norm*")) -> None:
        """See the class for the arguments."""
        self.smallest, self.leave = smallest, leave
        self._changed: list[nn.Linear] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the forward of the layers before their first call."""
        layers = self.layers(pl_module)
        reason = probe(pl_module.device) if layers else f"no layer in a block has {self.smallest} inputs and outputs"
        if reason:
            log.warning("float8 is not used: %s; remove overlay_fp8.yaml, or use a newer GPU", reason)
            return
        for layer in layers:
            layer.forward = partial(float8_linear, layer)  # type: ignore[method-assign]
        self._changed = layers
        log.info("float8: %d linear layers multiply in float8", len(layers))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the original forward of the layers."""
        for layer in self._changed:
            del layer.forward  # removes the instance attribute; the class method remains
        self._changed = []

    def layers(self, module: nn.Module) -> list[nn.Linear]:
        """Return the linear layers that are large enough and whose names match no pattern of ``leave``."""
        return [
            layer
            for block in trained_blocks(module)
            for name, layer in block.named_modules()
            if isinstance(layer, nn.Linear)
            and min(layer.in_features, layer.out_features) >= self.smallest
            and not (layer.in_features % ALIGNMENT or layer.out_features % ALIGNMENT)
            and not any(fnmatch(name, pattern) for pattern in self.leave)
        ]


def float8_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Return the output of a linear layer, with its matrix products in float8.

    Args:
        layer: Linear layer with weight (M, K), and bias (M,) or None.
        x: Input (..., K).

    Returns:
        Output (..., M), in the dtype of autocast if it is enabled, else in that of x.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    rows = x.reshape(-1, x.shape[-1])
    padding = -len(rows) % ALIGNMENT  # rows of zeros do not change the other rows of the product
    rows = F.pad(rows, (0, 0, 0, padding)) if padding else rows
    out: Any = _Product.apply(rows, layer.weight, dtype)
    out = out[: len(out) - padding].reshape(*x.shape[:-1], -1)
    return out if layer.bias is None else out + layer.bias.to(dtype)


class _Product(torch.autograd.Function):
    """Product of rows (R, K) and weight (M, K) transposed; its two gradients are float8 products too."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.dtype = dtype
        return product(rows, weight, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,), (rows, weight) = gradients, ctx.saved_tensors
        grad_rows = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_rows = product(gradient, weight.t(), ctx.dtype, torch.float8_e5m2).to(rows.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = product(gradient.t(), rows.t(), ctx.dtype, torch.float8_e5m2).to(weight.dtype)
        return grad_rows, grad_weight, None


def product(left: Tensor, right: Tensor, dtype: torch.dtype, left_format: torch.dtype = torch.float8_e4m3fn) -> Tensor:
    """Return left (R, K) times right (M, K) transposed, (R, M) in ``dtype``; right is rounded to e4m3."""
    rounded, scale = quantise(left, left_format)
    other, other_scale = quantise(right, torch.float8_e4m3fn)
    # The kernels need the left matrix row-major and the right matrix column-major.
    return torch._scaled_mm(
        rounded.contiguous(), other.contiguous().t(), scale_a=scale, scale_b=other_scale, out_dtype=dtype
    )


def quantise(value: Tensor, float8: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round a tensor to float8, scaled so that its largest element maps to the largest value of the format.

    Returns:
        The rounded tensor, and the float32 scale that restores the value by multiplication; 1 for zeros.
    """
    largest = torch.finfo(float8).max
    peak = value.detach().abs().amax().float()
    scale = torch.where(peak > 0, peak / largest, 1.0).clamp(min=torch.finfo(torch.float32).tiny)
    return (value.float() / scale).clamp(-largest, largest).to(float8), scale


def probe(device: torch.device) -> str:
    """Test float8 products on the device against float32, forward and backward.

    Returns:
        "" if they work and agree, else the reason for the failure.
    """
    if device.type != "cuda":
        return f"device type {device.type} has no float8 kernels"
    try:
        deviation = _deviation(device)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        lines = str(error).strip().splitlines()
        return (
            f"the probe on {torch.cuda.get_device_name(device)} failed ({lines[0] if lines else type(error).__name__})"
        )
    return "" if deviation < 0.1 else f"the probe deviates from float32 by {deviation:.2g}"


def _deviation(device: torch.device) -> float:
    """Return the largest relative difference in norm between float8 and float32, over output and gradients."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(64, 48).to(device)
    x = torch.randn(3, 11, 64, generator=generator).to(device).requires_grad_()
    with torch.autocast(device.type, torch.bfloat16):
        ours = float8_linear(layer, x).float()
    theirs = layer(x)
    pairs = [(ours, theirs)]
    gradients = [torch.autograd.grad(out.square().sum(), [x, layer.weight, layer.bias]) for out in (ours, theirs)]
    pairs += zip(*gradients, strict=True)
    return max(float((mine - other).norm() / other.norm()) for mine, other in pairs)
