"""One update of the averaged weights: our Ema against diffusers' EMAModel, as published and with foreach=True.

Beside them stands what the memory allows: the time of a plain addition in place, which reads and writes the same bytes,
and of a plain copy. The same weights are also measured in few large tensors, whose temporaries the peer gets from the
operating system anew each time, and in many small ones.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from leam_mm.denoisers.denoiser import PRXDenoiser
from leam_mm.errors import run
from leam_mm.optim.ema import Ema

DECAY = 0.9999
UPDATES = 5  # in one repeat
BYTES = 12  # of a weight in float32: both are read, one is written


def denoiser() -> nn.Module:
    """A denoiser of 37 M weights; its largest matrix is 3.5 MB."""
    return PRXDenoiser(16, 512, hidden_size=384, depth=11, num_heads=6)


def pieces(count: int) -> nn.Module:
    """As many weights in so many tensors of one size."""
    return nn.ParameterList(torch.randn(37_311_616 // count) for _ in range(count))


# Name of the result, network, EMAModel's foreach.
CASES: tuple[tuple[str, Callable[[], nn.Module], bool], ...] = (
    ("ema_update", denoiser, False),
    ("ema_update_foreach", denoiser, True),
    ("ema_update_few_tensors", lambda: pieces(4), False),
    ("ema_update_many_tensors", lambda: pieces(10_000), False),
)


def check(ours: Ema, theirs: EMAModel, model: nn.Module) -> dict[str, Any]:
    """Update both a few times and compare."""
    weights = list(model.parameters())
    for number in range(4):
        ours.update(model)
        theirs.step(model.parameters())
        if number == 0:  # theirs copies at the first update, ours mixes: the weights have not moved yet, so both agree
            continue
        with torch.no_grad():
            for weight in weights:
                weight.add_(torch.randn_like(weight), alpha=0.01)
    pairs = list(zip(ours.model.parameters(), theirs.shadow_params, weights, strict=True))
    difference = max(float((mine - shadow).abs().max()) for mine, shadow, _ in pairs)
    same = measure.require_same("averaged weights after four updates, absolute", difference, 1e-6)
    same["distance_from_weights"] = max(float((mine - weight).abs().max()) for mine, _, weight in pairs)
    return same


def memory_bound(ours: Ema, model: nn.Module, settings: Any) -> dict[str, Any]:
    """Seconds of one pass over the same tensors that computes next to nothing."""
    mine = [value.detach() for value in ours.model.parameters()]
    weights = [value.detach() for value in model.parameters()]

    def add() -> None:
        for _ in range(UPDATES):
            torch._foreach_add_(mine, weights, alpha=1e-9)

    def copy() -> None:
        for _ in range(UPDATES):
            torch._foreach_copy_(mine, weights)

    found = measure.time_pairs(add, copy, settings.repeats, device=settings.device)
    seconds = [statistics.median(side.wall) / UPDATES for side in (found.ours, found.peer)]
    moved = BYTES * sum(weight.numel() for weight in weights)
    return {"bytes": moved, "seconds_of_addition": seconds[0], "seconds_of_copy": seconds[1]}


def compare(name: str, build: Callable[[], nn.Module], foreach: bool, settings: Any) -> Path:
    """Check the averages after a few updates, then time both, then the memory."""
    torch.manual_seed(0)
    model = build().to(settings.device)
    weights = list(model.parameters())
    ours, theirs = Ema(model, DECAY), EMAModel(model.parameters(), decay=DECAY, foreach=foreach)
    same = [check(ours, theirs, model)]

    def update_ours() -> None:
        for _ in range(UPDATES):
            ours.update(model)

    def update_theirs() -> None:
        for _ in range(UPDATES):
            theirs.step(model.parameters())

    found = measure.time_pairs(update_ours, update_theirs, settings.repeats, device=settings.device)
    bound = memory_bound(ours, model, settings)
    mine, peers = (statistics.median(side.wall) / UPDATES for side in (found.ours, found.peer))
    least = bound["seconds_of_addition"]
    bound |= {
        "bytes_per_second": bound["bytes"] / mine,
        "ours_over_bound": mine / least,
        "peer_over_bound": peers / least,
    }
    count = sum(weight.numel() for weight in weights)
    labels = ("Ema", f"EMAModel(foreach={foreach})")
    notes = (
        f"{count / 1e6:.1f} M weights in {len(weights)} tensors, float32; a plain addition in place over the same "
        f"tensors takes {least * 1e3:.3g} ms: the peer takes {peers / least:.2f} times that, a ratio which no average "
        f"that touches all weights can exceed, and ours {mine / least:.2f} times"
    )
    work = (UPDATES, "update")
    return measure.write_comparison(name, labels, found, work, same, settings, notes, {"memory_bound": bound})


@measure.benchmark(repeats=15, devices=("cpu", "cuda"))
def main(settings: measure.Settings) -> list[Path]:
    """Measure against both of diffusers' ways, and in tensors of other sizes."""
    return [compare(name, build, foreach, settings) for name, build, foreach in CASES]


if __name__ == "__main__":
    run(main)
