"""One update of the averaged weights: our Ema against diffusers' EMAModel and torch's AveragedModel.

EMAModel is measured as published and with foreach=True; AveragedModel with get_ema_multi_avg_fn, which calls the same
kernel as ours. Beside them stands what the memory allows: the time of a plain addition in place, which reads and writes
the same bytes, and of a plain copy. The same weights are also measured in few large tensors, whose temporaries EMAModel
gets from the operating system anew each time, and in many small ones.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

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


class Peer:
    """An average of the peer's, by one name: how it updates and where its weights are."""

    def __init__(self, kind: str, model: nn.Module) -> None:
        """``kind``: published or foreach for EMAModel, torch for AveragedModel."""
        self.label = (
            "AveragedModel, get_ema_multi_avg_fn" if kind == "torch" else f"EMAModel(foreach={kind != 'published'})"
        )
        if kind == "torch":
            average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
            self.weights: list[Tensor] = [weight.detach() for weight in average.module.parameters()]
            self.update: Callable[[], None] = lambda: average.update_parameters(model)
        else:
            shadow = EMAModel(model.parameters(), decay=DECAY, foreach=kind == "foreach")
            self.weights = shadow.shadow_params
            self.update = lambda: shadow.step(model.parameters())


# Name of the result, network, peer.
CASES: tuple[tuple[str, Callable[[], nn.Module], str], ...] = (
    ("ema_update", denoiser, "published"),
    ("ema_update_foreach", denoiser, "foreach"),
    ("ema_update_few_tensors", lambda: pieces(4), "published"),
    ("ema_update_many_tensors", lambda: pieces(10_000), "published"),
    ("ema_update_torch", denoiser, "torch"),
    ("ema_update_torch_few_tensors", lambda: pieces(4), "torch"),
    ("ema_update_torch_many_tensors", lambda: pieces(10_000), "torch"),
)
NAMES = [name for name, *_ in CASES]


def check(ours: Ema, theirs: Peer, model: nn.Module) -> dict[str, Any]:
    """Update both a few times and compare."""
    weights = list(model.parameters())
    for number in range(4):
        ours.update(model)
        theirs.update()
        if number == 0:  # theirs copies at the first update, ours mixes: the weights have not moved yet, so both agree
            continue
        with torch.no_grad():
            for weight in weights:
                weight.add_(torch.randn_like(weight), alpha=0.01)
    pairs = list(zip(ours.model.parameters(), theirs.weights, weights, strict=True))
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


def compare(name: str, build: Callable[[], nn.Module], kind: str, settings: Any) -> Path:
    """Check the averages after a few updates, then time both, then the memory."""
    torch.manual_seed(0)
    model = build().to(settings.device)
    weights = list(model.parameters())
    # AveragedModel has one decay; EMAModel and ours begin with a smaller one.
    ours, theirs = Ema(model, DECAY, ramp=kind != "torch"), Peer(kind, model)
    same = [check(ours, theirs, model)]

    def update_ours() -> None:
        for _ in range(UPDATES):
            ours.update(model)

    def update_theirs() -> None:
        for _ in range(UPDATES):
            theirs.update()

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
    labels = ("Ema", theirs.label)
    notes = (
        f"{count / 1e6:.1f} M weights in {len(weights)} tensors, float32; a plain addition in place over the same "
        f"tensors takes {least * 1e3:.3g} ms: the peer takes {peers / least:.2f} times that, a ratio which no average "
        f"that touches all weights can exceed, and ours {mine / least:.2f} times"
    )
    work = (UPDATES, "update")
    return measure.write_comparison(name, labels, found, work, same, settings, notes, {"memory_bound": bound})


@measure.benchmark(repeats=15, devices=("cpu", "cuda"), cases=(NAMES, "what is measured", {"choices": NAMES}))
def main(settings: measure.Settings) -> list[Path]:
    """Measure against diffusers' and torch's ways, and in tensors of other sizes."""
    return [compare(*case, settings) for case in CASES if case[0] in settings.cases]


if __name__ == "__main__":
    run(main)
