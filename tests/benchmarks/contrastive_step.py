"""One training step of our ContrastiveModule against open_clip's, on the same towers, weights, images and captions."""

import json
import math
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import measure
import numpy as np
import open_clip
import torch
from open_clip.model import CLIP
from open_clip_peer import decay_groups
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from leam_mm.callbacks.compilation import Compilation
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.data.shard_index import read_samples
from leam_mm.data.tokenizer import Tokenizer
from leam_mm.encoders.dual_encoder import DualEncoder, ImageTower, TextTower
from leam_mm.errors import UserError, run
from leam_mm.losses.contrastive import InfoNCE
from leam_mm.optim.optimizer import build_optimizer

CONTEXT = 77  # open_clip's default
RATE, BETAS, EPSILON, DECAY = 5e-4, (0.9, 0.98), 1e-6, 0.2  # open_clip's defaults
BATCHES = 4


@dataclass(frozen=True)
class Size:
    """What is trained, and on how many pairs a step."""

    embed_dim: int
    vision: ImageTower
    text: TextTower
    batch: int


SIZES = {
    "tiny": Size(128, ImageTower(32, 8, 128, 4, 32), TextTower(CONTEXT, 2048, 128, 4, 3), 64),
    "vit_b_32": Size(512, ImageTower(), TextTower(), 1024),
    "vit_b_16": Size(512, ImageTower(patch_size=16), TextTower(), 512),
    "vit_l_14": Size(768, ImageTower(224, 14, 1024, 24), TextTower(width=768, heads=12), 256),
}
# Tokens of the 254,827 names and keywords of emoji in 24 languages that configs/pipeline_emoji.yaml gathers from CLDR,
# by its tokenizer of 8,192, begin and end included: how many captions have 3 tokens, 4, 5, ... 50; then the longest.
EMOJI_LENGTHS = (
    *(7259, 21714, 26844, 25955, 23291, 19215, 15608, 12950, 10895, 8816, 7990, 7791, 7667, 7792, 7490, 7229, 6631),
    *(5989, 4978, 4136, 3331, 2733, 2061, 1583, 1199, 966, 667, 528, 368, 299, 199, 166, 129, 97, 58, 48, 45, 24, 21),
    *(17, 17, 7, 3, 3, 2, 3, 4, 2),
)
LONGEST = (51, 51, 54, 54, 61, 62, 67)
# Dense bfloat16 multiply-adds a second, times two, as the makers state them; an MI250X as one die, which is a device.
PEAK = {"H200": 989e12, "H100": 989e12, "GH200": 989e12, "A100": 312e12, "MI300X": 1307e12, "MI250X": 191.5e12}


def caption_lengths(shards: Path | None, tokenizer: Path | None) -> tuple[np.ndarray, str]:
    """Tokens of 4,096 captions, begin and end included: of the given shards, else as long as the names of emoji."""
    generator = np.random.default_rng(0)
    if shards is None or tokenizer is None:
        lengths = np.repeat(np.arange(3, 3 + len(EMOJI_LENGTHS)), EMOJI_LENGTHS)
        drawn = generator.choice(np.concatenate([lengths, LONGEST]), 4096, replace=False)
        return drawn, "lengths of emoji names and keywords in 24 languages"
    records = [json.loads(members["json"]) for _, members in read_samples(shards)]
    texts = [caption["text"] for record in records for caption in record["captions"]]
    texts = [texts[number] for number in generator.permutation(len(texts))[:4096]]
    return Tokenizer(tokenizer, CONTEXT).encode(texts)[1].numpy(), f"captions of {shards}"


def step_flops(size: Size, lengths: np.ndarray) -> float:
    """Floating-point operations of a step for captions of these lengths: twice the multiply-adds, three times forward.

    Matrices and attention only, causal attention counted in full, as it is usual.
    """
    vision, text, pairs = size.vision, size.text, len(lengths)
    patches = (vision.image_size // vision.patch_size) ** 2
    seen = pairs * (patches + 1)
    image = vision.layers * (12 * vision.width**2 * seen + 2 * vision.width * (patches + 1) * seen)
    image += pairs * (patches * 3 * vision.patch_size**2 * vision.width + vision.width * size.embed_dim)
    words = text.layers * (12 * text.width**2 * lengths.sum() + 2 * text.width * np.square(lengths).sum())
    words += pairs * text.width * size.embed_dim
    return 6.0 * float(image + words + size.embed_dim * pairs**2)


def count_flops(work: Callable[[], object]) -> float:
    """The same by torch's counter, which looks at what is really run."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def make_batches(size: Size, lengths: np.ndarray, seed: int) -> list[dict[str, Tensor]]:
    """Random pictures, and random tokens of the given lengths: begin, words, end, padding."""
    generator = np.random.default_rng(seed)
    vocabulary, side = size.text.vocab_size, size.vision.image_size
    batches = []
    for number in range(BATCHES):
        length = lengths[np.arange(number * size.batch, (number + 1) * size.batch) % len(lengths)]
        text = generator.integers(1, vocabulary - 2, (size.batch, CONTEXT))
        text[:, 0] = vocabulary - 2
        text[np.arange(size.batch), length - 1] = vocabulary - 1
        text[np.arange(CONTEXT) >= length[:, None]] = 0
        image = generator.integers(0, 256, (size.batch, 3, side, side), dtype=np.uint8)
        arrays = {"image": image, "text": text, "text_length": length}
        batches.append({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()})
    return batches


def our_steps(size: Size, device: str) -> tuple[ContrastiveModule, Callable[[dict[str, Tensor]], Tensor]]:
    """The module, and its step as Lightning calls it, without the trainer around it."""
    encoder = DualEncoder(size.embed_dim, size.vision, size.text)
    optimizer_kind = partial(torch.optim.AdamW, lr=RATE, betas=BETAS, eps=EPSILON, weight_decay=DECAY, fused=True)
    module = ContrastiveModule(encoder, InfoNCE(), tokenizer="", optimizer=optimizer_kind).to(device).train()
    optimizer = build_optimizer(optimizer_kind, encoder)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        return module.training_step(module.transfer_batch_to_device(batch, torch.device(device), 0), 0)

    return module, lightning_step(module, optimizer, loss, device)


def lightning_step(
    module: Any,
    optimizer: Any,
    loss: Callable[[dict[str, Tensor]], Tensor],
    device: str,
    after_backward: Callable[[], object] = lambda: None,
) -> Callable[[dict[str, Tensor]], Tensor]:
    """Return one optimizer step as Lightning runs it, without its trainer; it gives the loss."""

    def step(batch: dict[str, Tensor]) -> Tensor:
        kept: list[Tensor] = []

        def closure() -> Tensor:
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                kept.append(loss(batch))
            kept[0].backward()
            after_backward()
            return kept[0]

        module.optimizer_step(0, 0, optimizer, closure)
        return kept[0].detach()

    return step


def peer_steps(ours: DualEncoder, device: str, compiled: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """open_clip's step as in train_one_epoch of open_clip_train 3.3.0, clamp of the scale included."""
    config: Any = ours.config()
    model = CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"], output_dict=True)
    model.load_state_dict(ours.clip.state_dict())
    model = model.to(device).train()
    if compiled:
        model = torch.compile(model)  # as its --torchcompile does
    loss = open_clip.loss.ClipLoss(cache_labels=True)
    optimizer = torch.optim.AdamW(decay_groups(model, DECAY), lr=RATE, betas=BETAS, eps=EPSILON)

    def step(image: Tensor, text: Tensor) -> Tensor:
        image, text = image.to(device, non_blocking=True), text.to(device, non_blocking=True)
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            total = sum(loss(**model(image, text), output_dict=True).values())
        total.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        return total.detach()

    return step


def compare(name: str, size: Size, lengths: np.ndarray, source: str, settings: measure.Settings) -> Path:
    """Check the losses of the first steps, then time both."""
    torch.manual_seed(0)
    module, step = our_steps(size, settings.device)
    theirs = peer_steps(module.encoder, settings.device, settings.compile)
    if settings.compile:
        Compilation().on_fit_start(None, module)  # type: ignore[arg-type]
    batches = make_batches(size, lengths, seed=1)
    with torch.no_grad():  # their loader hands over normalised floats
        pictures = [module.encoder.normalise(batch["image"].to(settings.device)).cpu() for batch in batches]
    if settings.device == "cuda":
        batches = [{key: value.pin_memory() for key, value in batch.items()} for batch in batches]
    losses = [
        (float(step(batch)), float(theirs(image, batch["text"])))
        for batch, image in zip(batches[:3], pictures, strict=False)
    ]
    # In bfloat16 other text lengths round differently.
    limit = 1e-5 if settings.device == "cpu" else 2e-3
    difference = max(abs(a - b) / abs(b) for a, b in losses)
    same = [measure.require_same("loss of the first three steps, relative", difference, limit)]
    flops = [step_flops(size, batch["text_length"].numpy()) for batch in batches]
    padded = step_flops(size, np.full(size.batch, CONTEXT))
    if settings.device == "cpu" and not settings.compile:
        found_flops = count_flops(lambda: theirs(pictures[0], batches[0]["text"]))
        same.append(
            measure.require_same("operations of the peer's step, by formula", abs(padded / found_flops - 1), 0.03)
        )

    def ours() -> None:
        for batch in batches:
            step(batch)

    def peer() -> None:
        for image, batch in zip(pictures, batches, strict=True):
            theirs(image, batch["text"])

    found = measure.time_pairs(ours, peer, settings.repeats, warmup=2, device=settings.device)
    longest = [int(batch["text_length"].max()) for batch in batches]
    notes = (
        f"batch {size.batch}; {source}: mean {lengths.mean():.1f} tokens, longest of each batch {longest}; the peer "
        f"runs all {CONTEXT}; ours normalises uint8 pictures inside the step, the peer gets floats; without "
        "Lightning's loop around it"
    )
    further: dict[str, Any] = {"flops_per_step": {"ours": float(np.mean(flops)), "peer": padded}}
    further["flops_ratio"] = padded / float(np.mean(flops))
    if settings.device == "cuda":
        further |= device_numbers(found, flops, padded, (ours, peer))
        notes += "; " + json.dumps({key: further[key] for key in ("mfu", "max_memory_gib")})
    labels = ("ContrastiveModule", f"open_clip, context {CONTEXT}")
    return measure.write_comparison(name, labels, found, (size.batch * BATCHES, "pair"), same, settings, notes, further)


def device_numbers(
    found: measure.Comparison, flops: list[float], padded: float, sides: tuple[Callable[[], None], Callable[[], None]]
) -> dict[str, Any]:
    """Model FLOPs over what the device could have done in that time, and the memory of a step beside both models."""
    device = torch.cuda.get_device_name()
    peak = next((value for name, value in PEAK.items() if name in device.replace(" ", "")), None)
    memory = []
    for side in sides:
        side()  # gradients and optimizer states of this side are there
        torch.cuda.reset_peak_memory_stats()
        side()
        memory.append(torch.cuda.max_memory_allocated() / 2**30)
    seconds = (statistics.median(found.ours.wall), statistics.median(found.peer.wall))
    mfu = [
        total / second / peak if peak else None
        for total, second in zip((sum(flops), padded * BATCHES), seconds, strict=True)
    ]
    return {
        "mfu": dict(zip(("ours", "peer"), mfu, strict=True)),
        "max_memory_gib": dict(zip(("ours", "peer"), memory, strict=True)),
        "peak_flops": peak,
    }


@measure.benchmark(
    repeats=9,
    devices=("cpu", "cuda"),
    size=(str, "default: tiny on a cpu, vit_b_32 on cuda", {"choices": sorted(SIZES)}),
    shards=(Path, "take the lengths of their captions (default: of emoji names)"),
    tokenizer=(Path, "their tokenizer"),
    compile=(False, "torch.compile: our blocks, the peer's whole model"),
)
def main(settings: measure.Settings) -> list[Path]:
    """Measure at the captions' own lengths, and with a caption in each batch that fills the context."""
    # Lightning warns that nothing is logged without a trainer.
    warnings.filterwarnings("ignore", message=".*self.log.*")
    name = settings.size or ("tiny" if settings.device == "cpu" else "vit_b_32")
    lengths, source = caption_lengths(settings.shards, settings.tokenizer)
    if lengths.max() > CONTEXT:
        raise UserError(f"{settings.tokenizer} gives captions of {lengths.max()} tokens, above {CONTEXT}")
    full = lengths.copy()
    full[:: SIZES[name].batch] = CONTEXT
    prefix = "contrastive_step" if name == "tiny" else f"contrastive_step_{name}"
    prefix += "_compiled" if settings.compile else ""
    return [
        compare(prefix, SIZES[name], lengths, source, settings),
        compare(f"{prefix}_full_context", SIZES[name], full, f"{source}, the first of each batch {CONTEXT}", settings),
    ]


if __name__ == "__main__":
    run(main)
