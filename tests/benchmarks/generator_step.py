"""One training step of our LatentDiffusionModule on latents against the loop of diffusers' scripts, same denoiser.

`generator_step` is as each ships: ours cuts the padding that no caption of a batch needs and compiles the blocks, as
the recipes do; the peer pads to 77 tokens. `_trimmed` gives the peer our cut captions, `_eager` compiles nothing.
Ours draws noise and times from (seed, sample's number), the peer from torch's generator; both average and clip.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import contrastive_step
import measure
import numpy as np
import torch
from published_loop import AVERAGE, BETAS, CLIP, DECAY, EPSILON, RATE, TABLE, PublishedLoop
from torch import Tensor, nn

from leam_mm.callbacks.compilation import Compilation, probe
from leam_mm.data.random_stream import PhiloxStream
from leam_mm.denoisers.attention import choose_attention
from leam_mm.denoisers.denoiser import PRXDenoiser
from leam_mm.diffusion.rectified_flow import RectifiedFlow
from leam_mm.diffusion_module import LatentDiffusionModule
from leam_mm.errors import run
from leam_mm.optim.optimizer import build_optimizer
from leam_mm.optim.schedule import Schedule

CONTEXT, BATCHES, SEED = 77, contrastive_step.BATCHES, 0
CHANNELS = 16
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Size:
    """The denoiser, and what it sees in a step."""

    hidden_size: int
    depth: int
    num_heads: int
    patch_size: int
    latent_size: int
    context_dim: int
    batch: int


SIZES = {
    "quickstart": Size(160, 5, 5, 1, 4, 128, 64),
    "small": Size(384, 8, 6, 2, 16, 512, 8),
    "base": Size(1024, 16, 16, 2, 32, 768, 128),
    "large": Size(1792, 16, 28, 2, 32, 2304, 64),
}


class TableFlow(RectifiedFlow):
    """Our process at the peer's 1,000 times, to compare losses."""

    def time(self, uniform: Tensor, positions: int | None = None) -> Tensor:
        """The entry of the table that the peer takes for this density."""
        table = torch.linspace(1, 1 / TABLE, TABLE)
        return table[(density(uniform) * TABLE).long().cpu()].to(uniform)


def density(uniform: Tensor) -> Tensor:
    """Logit-normal, as both draw it."""
    return torch.sigmoid(torch.special.ndtri(uniform))


def make_batches(size: Size, count: int) -> list[Batch]:
    """Latents and caption states of unit size, captions as long as the names of emoji, cut to the longest."""
    lengths, _ = contrastive_step.caption_lengths(None, None)
    generator = torch.Generator().manual_seed(1)
    batches = []
    for number in range(count):
        index = torch.arange(number * size.batch, (number + 1) * size.batch)
        length = torch.from_numpy(lengths[index.numpy() % len(lengths)]).long()
        latent = torch.randn(size.batch, CHANNELS, size.latent_size, size.latent_size, generator=generator)
        state = torch.randn(size.batch, CONTEXT, size.context_dim, generator=generator)
        state[torch.arange(CONTEXT) >= length[:, None]] = 0
        state = state[:, : int(length.max())].contiguous()
        batches.append({"latent": latent, "caption_state": state, "caption_length": length, "sample_index": index})
    return batches


def peer_batch(batch: Batch, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, states padded to this length, mask."""
    state = batch["caption_state"]
    state = nn.functional.pad(state, (0, 0, 0, length - state.shape[1]))
    mask = torch.arange(length, device=state.device) < batch["caption_length"][:, None].to(state.device)
    return batch["latent"], state, mask


def our_steps(size: Size, device: str) -> tuple[LatentDiffusionModule, Callable[[Batch], Tensor]]:
    """The module with weights none of which is zero, and its step as Lightning calls it, without the trainer."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": size.hidden_size, "depth": size.depth, "num_heads": size.num_heads}
    denoiser = PRXDenoiser(CHANNELS, size.context_dim, patch_size=size.patch_size, **sizes)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        # Predictions as large as their targets, so that the loss tells whether they are right.
        denoiser.model.final_layer.linear.weight.normal_(std=size.hidden_size**-0.5)
    kind = partial(torch.optim.AdamW, lr=RATE, betas=BETAS, eps=EPSILON, weight_decay=DECAY, fused=True)
    module = LatentDiffusionModule(
        denoiser, TableFlow(), size.latent_size, optimizer=kind, caption_dropout=0.0, ema=AVERAGE
    )
    module = module.to(device).train()
    optimizer: Any = build_optimizer(module.optimizer, module.denoiser)
    rate = Schedule(0, "constant").build(optimizer, 1)

    update = contrastive_step.lightning_step(
        module,
        optimizer,
        lambda batch: module.sample_losses(batch).mean(),
        device,
        after_backward=lambda: torch.nn.utils.clip_grad_norm_(module.denoiser.parameters(), CLIP),
    )

    def step(batch: Batch) -> Tensor:
        loss = update(batch)
        rate.step()
        return loss

    return module, step


def get_ready(module: LatentDiffusionModule, device: str, compiled: bool) -> str:
    """What happens when a training starts: the attention kernel is chosen, blocks are compiled; says which kernel."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    chosen = choose_attention(module.denoiser.model, torch.device(device), dtype)
    if compiled:
        Compilation().on_fit_start(None, module)  # type: ignore[arg-type]
    return chosen


def shared_noise(batch: Batch) -> tuple[Tensor, Tensor]:
    """Noise and density that our module draws for this batch, for the peer."""
    noise = PhiloxStream().normal(SEED, batch["sample_index"], "noise", batch["latent"].shape[1:]).to(batch["latent"])
    return noise, density(PhiloxStream().uniform(SEED, batch["sample_index"], "time").to(batch["latent"]))


def check(
    module: LatentDiffusionModule,
    step: Callable[[Batch], Tensor],
    peer: PublishedLoop,
    batches: list[Batch],
    length: Callable[[Batch], int],
    limit: float,
) -> list[dict[str, Any]]:
    """Three steps of both with the same noise and times; then ours goes over to its own times."""
    before = [weight.detach().clone() for weight in module.denoiser.parameters()]
    losses = [
        (float(step(batch)), peer.step(*peer_batch(batch, length(batch)), *shared_noise(batch)))
        for batch in batches[:3]
    ]
    difference = max(abs(mine - theirs) / theirs for mine, theirs in losses)
    pairs = list(zip(module.denoiser.model.parameters(), peer.model.parameters(), before, strict=True))
    apart, moved, size = (
        float(sum((one - other).detach().double().square().sum() for one, other in chosen)) ** 0.5
        for chosen in (
            [(mine, theirs) for mine, theirs, _ in pairs],
            [(mine, old) for mine, _, old in pairs],
            [(mine, torch.zeros_like(mine)) for mine, _, _ in pairs],
        )
    )
    same = [
        measure.require_same("loss of the first three steps, relative", difference, limit),
        measure.require_same("weights after three steps, norm of the difference over theirs", apart / size, 1e-5),
    ]
    same[1]["moved"] = moved / size
    module.process = RectifiedFlow()
    return same


def count_flops(module: LatentDiffusionModule, batches: list[Batch], context: int | None) -> list[float]:
    """Operations of each step, forward and backward, by torch's counter; captions padded to `context` if given."""
    counts = []
    for batch in batches:
        padded = dict(batch)
        if context is not None:
            padded["caption_state"] = peer_batch(batch, context)[1]
        counts.append(contrastive_step.count_flops(lambda given=padded: module.sample_losses(given).mean().backward()))
    module.zero_grad()
    return counts


def compare(name: str, size: Size, compiled: bool, trimmed: bool, settings: Any) -> Path:
    """Check losses and weights of the first steps, then time both."""
    device = settings.device
    module, step = our_steps(size, device)
    batches = [{key: value.to(device) for key, value in batch.items()} for batch in make_batches(size, BATCHES)]
    for batch in batches:
        batch["sample_index"] = batch["sample_index"].cpu()
    flops = count_flops(module, batches, None)
    padded = flops if trimmed else count_flops(module, batches, CONTEXT)
    peer = PublishedLoop(copy.deepcopy(module.denoiser.model), device)
    kernel = get_ready(module, device, compiled)

    def length(batch: Batch) -> int:
        return batch["caption_state"].shape[1] if trimmed else CONTEXT

    limit = (1e-5 if compiled else 1e-6) if device == "cpu" else 2e-3
    same = check(module, step, peer, batches, length, limit)
    given = [peer_batch(batch, length(batch)) for batch in batches]

    def ours() -> None:
        for batch in batches:
            step(batch)

    def theirs() -> None:
        for batch in given:
            peer.step(*batch)

    found = measure.time_pairs(ours, theirs, settings.repeats, warmup=2, device=device)
    weights = sum(weight.numel() for weight in module.denoiser.parameters())
    longest = [batch["caption_state"].shape[1] for batch in batches]
    notes = (
        f"{weights / 1e6:.1f} M weights ({size.hidden_size} x {size.depth}), latents of {size.latent_size} x "
        f"{size.latent_size}, batch {size.batch}; longest captions {longest}, the peer runs "
        f"{'the same' if trimmed else f'all {CONTEXT}'}; our attention {kernel}, "
        f"{'blocks compiled' if compiled else 'nothing compiled'}; without loaders, Lightning's loop and the peer's "
        "progress bar"
    )
    mean = [float(np.mean(each)) for each in (flops, padded)]
    further: dict[str, Any] = {"flops_per_step": {"ours": mean[0], "peer": mean[1]}, "mfu": "not measured"}
    if device == "cuda":
        further |= contrastive_step.device_numbers(found, flops, mean[1], (ours, theirs))
    labels = ("LatentDiffusionModule", "loop of diffusers' scripts")
    work = (size.batch * BATCHES, "sample")
    return measure.write_comparison(name, labels, found, work, same, settings, notes, further)


@measure.benchmark(
    repeats=9,
    devices=("cpu", "cuda"),
    size=(str, "default: quickstart and small; base on cuda", {"choices": list(SIZES), "action": "append"}),
    eager=(False, "compile nothing"),
)
def main(settings: measure.Settings) -> list[Path]:
    """Measure as each ships and on equal captions, with and without the compiler."""
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")  # accelerate steps it after its own optimizer
    reason = "" if settings.eager else probe(torch.device(settings.device))
    if reason:
        print(f"torch.compile does not work here, so nothing is compiled: {reason}")
    written = []
    for name in settings.size or (["quickstart", "small"] if settings.device == "cpu" else ["base"]):
        prefix = "generator_step" if name == "quickstart" else f"generator_step_{name}"
        for trimmed in (False, True):
            for compiled in (True, False) if not (reason or settings.eager) else (False,):
                ending = ("_trimmed" if trimmed else "") + ("" if compiled or reason else "_eager")
                written.append(compare(prefix + ending, SIZES[name], compiled, trimmed, settings))
    return written


if __name__ == "__main__":
    run(main)
