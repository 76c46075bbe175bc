"""Bytes that a contrastive loss keeps for its backward pass, and the time of both passes: our tiles beside open_clip.

`--large 65536` adds one run of our two losses on that many pairs, in a process of its own whose peak memory is read.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor

from leam_mm.errors import run
from leam_mm.losses.contrastive import ContrastiveLoss, InfoNCE, SigmoidLoss

CHANNELS = 128
LARGE = """
import json, sys, time, torch
from leam_mm.losses.contrastive import InfoNCE, SigmoidLoss
def memory(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))
name, pairs, channels, threads = sys.argv[1], *map(int, sys.argv[2:])
torch.set_num_threads(threads)
image, text = (torch.nn.functional.normalize(torch.randn(pairs, channels), dim=-1).requires_grad_() for _ in range(2))
scale, bias = torch.tensor(10.0, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
loss = {"InfoNCE": InfoNCE(), "SigmoidLoss": SigmoidLoss()}[name]
loss(image[:256], text[:256], scale, bias).backward()
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before, began = memory("VmRSS"), time.perf_counter()
loss(image, text, scale, bias).backward()
grown = (memory("VmHWM") - before) * 1024
print(json.dumps({"pairs": pairs, "channels": channels, "seconds": time.perf_counter() - began,
    "peak_bytes_beside_features": grown, "bytes_of_one_feature_matrix": image.numel() * 4}))
"""
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def kept_bytes(loss: Loss, parts: list[Tensor]) -> int:
    """Bytes of the tensors that autograd saves, the inputs left out, each storage counted once."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss(*parts)
    for part in parts:
        storages.pop(part.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def inputs(pairs: int, device: str) -> list[Tensor]:
    """Features of unit length, a scale and a bias."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(pairs, CHANNELS, generator=generator)
    text = image + torch.randn(pairs, CHANNELS, generator=generator)
    parts = [F.normalize(image, dim=-1), F.normalize(text, dim=-1), torch.tensor(10.0), torch.tensor(-10.0)]
    return [part.to(device).requires_grad_() for part in parts]


def passes(loss: Loss, parts: list[Tensor]) -> list[Tensor]:
    """Loss, and gradients of the features and the scale."""
    value = loss(*parts)
    return [value.detach(), *torch.autograd.grad(value, parts[:3])]


def compare(name: str, ours: ContrastiveLoss, peer: Loss, label: str, settings: measure.Settings) -> Path:
    """Check values and gradients, count the bytes, time both passes."""
    parts = inputs(settings.pairs, settings.device)
    mine, theirs = passes(ours, parts), passes(peer, parts)
    difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(mine, theirs, strict=True))
    same = [measure.require_same("loss and gradients of features and scale, relative", difference, 1e-4)]
    logits = settings.pairs**2
    counted = {"ours": kept_bytes(ours, parts) / logits, "peer": kept_bytes(peer, parts) / logits}
    found = measure.time_pairs(
        lambda: passes(ours, parts), lambda: passes(peer, parts), settings.repeats, device=settings.device
    )
    notes = f"{settings.pairs} pairs of {CHANNELS} channels, float32, forward and backward"
    further: dict[str, Any] = {"bytes_kept_per_logit": counted}
    if settings.large:
        command = [sys.executable, "-c", LARGE, type(ours).__name__, str(settings.large), str(CHANNELS)]
        output = subprocess.run([*command, str(settings.threads)], check=True, capture_output=True, text=True).stdout
        further["large"] = json.loads(output)
        print(f"{type(ours).__name__}: {further['large']}")
    print(f"bytes kept per logit, features left out: ours {counted['ours']:.4f}, peer {counted['peer']:.2f}\n")
    labels, work = (type(ours).__name__, label), (settings.pairs, "pair")
    return measure.write_comparison(name, labels, found, work, same, settings, notes, further)


@measure.benchmark(
    repeats=9,
    devices=("cpu", "cuda"),
    pairs=(4096, "where both sides fit"),
    large=(0, "pairs of one more run of ours alone"),
)
def main(settings: measure.Settings) -> list[Path]:
    """Measure the softmax and the sigmoid loss."""
    softmax, sigmoid = ClipLoss(), SigLipLoss()
    return [
        compare(
            "contrastive_memory_softmax",
            InfoNCE(),
            lambda image, text, scale, _: softmax(image, text, scale),
            "open_clip ClipLoss",
            settings,
        ),
        compare("contrastive_memory_sigmoid", SigmoidLoss(), sigmoid, "open_clip SigLipLoss", settings),
    ]


if __name__ == "__main__":
    run(main)
