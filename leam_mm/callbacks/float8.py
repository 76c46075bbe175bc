"""Matrix products in eight-bit floats on GPUs that have them (Hopper and later): 2209.05433, scaled as they are used.

trainer:
  callbacks:
  - class_path: leam_mm.callbacks.float8.Float8

The linear layers inside the blocks multiply in float8: inputs and weights in e4m3, gradients in e5m2, each tensor with
one scale that brings its largest element to the largest number of the format, found anew at every use. Sums are made in
float32. Weights, gradients, optimizer and checkpoints stay in the precision that they had, under the same names; norms,
modulations, embeddings and the output layer are left as they are.
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
ALIGNMENT = 16  # float8 kernels want sizes that are a multiple of this


class Float8(Callback):
    """Lets the large linear layers of the blocks multiply in float8, where a probe shows that this device can.

    Compilation is wanted beside it: it makes one kernel of finding the scale and rounding, which else costs what the
    product saves.

    Args:
        smallest: Layers with fewer inputs or outputs stay as they are: rounding would cost more than it saves.
        leave: Patterns of names inside a block that stay as they are.
    """

    def __init__(self, smallest: int = 1024, leave: tuple[str, ...] = ("*modulation*", "*norm*")) -> None:
        """See the class for the arguments."""
        self.smallest, self.leave = smallest, leave
        self._changed: list[nn.Linear] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Change the layers' way of computing before they first run."""
        layers = self.layers(pl_module)
        reason = probe(pl_module.device) if layers else f"no layer in a block has {self.smallest} inputs and outputs"
        if reason:
            log.warning("float8 is not used: %s; leave overlay_fp8.yaml out, or take a GPU that has it", reason)
            return
        for layer in layers:
            layer.forward = partial(float8_linear, layer)  # type: ignore[method-assign]
        self._changed = layers
        log.info("float8: %d linear layers multiply in eight bits", len(layers))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the network as it was."""
        for layer in self._changed:
            del layer.forward  # the instance's; its class has its own
        self._changed = []

    def layers(self, module: nn.Module) -> list[nn.Linear]:
        """The layers that are large enough and whose names are not left out."""
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
    """What the layer computes, with its products in float8.

    Args:
        layer: With weight (M, K), and bias (M,) or None.
        x: (..., K).

    Returns:
        (..., M), in the type of autocast where it is on, else in that of x.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    rows = x.reshape(-1, x.shape[-1])
    missing = -len(rows) % ALIGNMENT  # rows of zeros change no product
    rows = F.pad(rows, (0, 0, 0, missing)) if missing else rows
    out: Any = _Product.apply(rows, layer.weight, dtype)
    out = out[: len(out) - missing].reshape(*x.shape[:-1], -1)
    return out if layer.bias is None else out + layer.bias.to(dtype)


class _Product(torch.autograd.Function):
    """rows (R, K) times weight (M, K) transposed, and its two gradients, which are products as well."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.dtype = dtype
        return product(rows, weight, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,), (rows, weight) = gradients, ctx.saved_tensors
        of_rows = of_weight = None
        if ctx.needs_input_grad[0]:
            of_rows = product(gradient, weight.t(), ctx.dtype, torch.float8_e5m2).to(rows.dtype)
        if ctx.needs_input_grad[1]:
            of_weight = product(gradient.t(), rows.t(), ctx.dtype, torch.float8_e5m2).to(weight.dtype)
        return of_rows, of_weight, None


def product(left: Tensor, right: Tensor, dtype: torch.dtype, left_format: torch.dtype = torch.float8_e4m3fn) -> Tensor:
    """Multiply left (R, K) by right (M, K) transposed in float8, (R, M) in `dtype`; right is rounded to e4m3."""
    rounded, scale = quantise(left, left_format)
    other, other_scale = quantise(right, torch.float8_e4m3fn)
    # Kernels want the left one by rows and the right one by columns.
    return torch._scaled_mm(
        rounded.contiguous(), other.contiguous().t(), scale_a=scale, scale_b=other_scale, out_dtype=dtype
    )


def quantise(value: Tensor, float8: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round to float8 after scaling by one number, so that the largest element becomes the format's largest.

    Returns:
        The rounded tensor, and the float32 scalar that it is multiplied by to get the value back; 1 for zeros.
    """
    largest = torch.finfo(float8).max
    peak = value.detach().abs().amax().float()
    scale = torch.where(peak > 0, peak / largest, 1.0).clamp(min=torch.finfo(torch.float32).tiny)
    return (value.float() / scale).clamp(-largest, largest).to(float8), scale


def probe(device: torch.device) -> str:
    """Multiply in float8 on the device, forward and backward, beside float32.

    Returns:
        "" if it works and agrees, else the reason why not.
    """
    if device.type != "cuda":
        return f"a {device.type} has no float8 kernels"
    try:
        deviation = _deviation(device)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        lines = str(error).strip().splitlines()
        return (
            f"its probe on {torch.cuda.get_device_name(device)} failed ({lines[0] if lines else type(error).__name__})"
        )
    return "" if deviation < 0.1 else f"its probe deviates from float32 by {deviation:.2g}"


def _deviation(device: torch.device) -> float:
    """Largest relative difference in norm, over output and gradients, between float8 and float32."""
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
