"""One training step of our ContrastiveModule against open_clip's, on the same towers, weights, images and captions.

Four cases. ``own``: the peer runs its context of 77, as open_clip 3.3.0 does; ``full_context``: the same where
one caption of each batch fills it. ``trimmed`` and ``bucketed``: the peer at its best. It cuts the captions of a batch
to the longest, rounded up to 8, and uses torch's fused AdamW, as open_clip's main branch can (``variable_text``,
``--text-pad-multiple 8``, ``--opt-kwargs fused=True``). ``bucketed`` also takes that branch's batches
(``--length-bucketing``), on both sides: pools of 2,048 captions are sorted by length, cut into runs of 128, and the
runs shuffled. The order of our data does not depend on captions.
"""

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
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.transformer import text_global_pool
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
POOL, RUN, MULTIPLE = 2048, 128, 8  # open_clip's defaults of --bucket-pool, --bucket-chunk; its --text-pad-multiple
CASES = ("own", "full_context", "trimmed", "bucketed")


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


def bucketed(lengths: np.ndarray) -> np.ndarray:
    """The captions in the order of open_clip's LengthBucketer: sorted in pools, in shuffled runs."""
    generator = np.random.default_rng(0)
    pools = [np.sort(lengths[start : start + POOL]) for start in range(0, len(lengths), POOL)]
    runs = [[pool[start : start + RUN] for start in range(0, len(pool), RUN)] for pool in pools]
    return np.concatenate([part[number] for part in runs for number in generator.permutation(len(part))])


def step_flops(size: Size, lengths: np.ndarray, whole_blocks: bool = False) -> float:
    """Floating-point operations of a step for captions of these lengths: twice the multiply-adds, three times forward.

    Matrices and attention only, causal attention counted in full, as it is usual. Our last block of the image tower
    computes the class token only, unless ``whole_blocks``; its queries, keys and values are computed for all tokens.
    """
    vision, text, pairs = size.vision, size.text, len(lengths)
    patches = (vision.image_size // vision.patch_size) ** 2
    seen = pairs * (patches + 1)
    image = vision.layers * (12 * vision.width**2 * seen + 2 * vision.width * (patches + 1) * seen)
    if not whole_blocks:
        image -= pairs * patches * (9 * vision.width**2 + 2 * vision.width * (patches + 1))
    image += pairs * (patches * 3 * vision.patch_size**2 * vision.width + vision.width * size.embed_dim)
    words = text.layers * (12 * text.width**2 * lengths.sum() + 2 * text.width * np.square(lengths).sum())
    words += pairs * text.width * size.embed_dim
    return 6.0 * float(image + words + size.embed_dim * pairs**2)


def count_flops(work: Callable[[], object]) -> float:
    """The same by torch's counter, which looks at what is really run."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def make_batches(size: Size, lengths: np.ndarray, seed: int, count: int = BATCHES) -> list[dict[str, Tensor]]:
    """Random pictures, and random tokens of the given lengths: begin, words, end, padding."""
    generator = np.random.default_rng(seed)
    vocabulary, side = size.text.vocab_size, size.vision.image_size
    batches = []
    for number in range(count):
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


class TrimmedCLIP(CLIP):
    """open_clip 3.3.0's model for captions of any length: places and mask are cut to it, as in its main branch."""

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Embed (B, L) tokens, L at most the context length."""
        length, dtype = text.shape[1], self.transformer.get_cast_dtype()
        x = self.token_embedding(text).to(dtype) + self.positional_embedding[:length].to(dtype)
        x = self.ln_final(self.transformer(x, attn_mask=self.attn_mask[:length, :length]))
        x = text_global_pool(x, text, self.text_pool_type, eos_token_id=self.text_eos_id) @ self.text_projection
        return F.normalize(x, dim=-1) if normalize else x


def trimmed_length(length: Tensor) -> int:
    """Columns of a batch that open_clip's main branch pads to."""
    return min(CONTEXT, -(-int(length.max()) // MULTIPLE) * MULTIPLE)


def peer_steps(
    ours: DualEncoder, device: str, compiled: bool, best: bool = False
) -> Callable[[Tensor, Tensor], Tensor]:
    """open_clip's step as in train_one_epoch of open_clip_train 3.3.0, clamp of the scale included.

    Args:
        ours: Has the weights to start from.
        device: To train on.
        compiled: Compile the model.
        best: Take captions of any length, and torch's fused AdamW.
    """
    config: Any = ours.config()
    kind = TrimmedCLIP if best else CLIP
    model = kind(config["embed_dim"], config["vision_cfg"], config["text_cfg"], output_dict=True)
    model.load_state_dict(ours.clip.state_dict())
    model = model.to(device).train()
    if compiled:
        model = torch.compile(model)  # as its --torchcompile does
    loss = open_clip.loss.ClipLoss(cache_labels=True)
    optimizer = torch.optim.AdamW(decay_groups(model, DECAY), lr=RATE, betas=BETAS, eps=EPSILON, fused=best or None)

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


def compare(
    name: str, size: Size, lengths: np.ndarray, source: str, settings: measure.Settings, best: bool, count: int
) -> Path:
    """Check the losses of the first steps, then time both on ``count`` batches; ``best``: see `peer_steps`."""
    torch.manual_seed(0)
    module, step = our_steps(size, settings.device)
    theirs = peer_steps(module.encoder, settings.device, settings.compile, best)
    if settings.compile:
        Compilation().on_fit_start(None, module)  # type: ignore[arg-type]
    batches = make_batches(size, lengths, 1, count)
    columns = [trimmed_length(batch["text_length"]) if best else CONTEXT for batch in batches]
    texts = [batch["text"][:, :width].contiguous() for batch, width in zip(batches, columns, strict=True)]
    with torch.no_grad():  # their loader hands over normalised floats
        pictures = [module.encoder.normalise(batch["image"].to(settings.device)).cpu() for batch in batches]
    if settings.device == "cuda":
        batches = [{key: value.pin_memory() for key, value in batch.items()} for batch in batches]
        texts = [text.pin_memory() for text in texts]
    losses = [
        (float(step(batch)), float(theirs(image, text)))
        for batch, image, text in zip(batches[:3], pictures, texts, strict=False)
    ]
    # In bfloat16 other text lengths round differently.
    limit = 1e-5 if settings.device == "cpu" else 2e-3
    difference = max(abs(a - b) / abs(b) for a, b in losses)
    same = [measure.require_same("loss of the first three steps, relative", difference, limit)]
    flops = [step_flops(size, batch["text_length"].numpy()) for batch in batches]
    padded = [step_flops(size, np.full(size.batch, width), whole_blocks=True) for width in columns]
    if settings.device == "cpu" and not settings.compile:
        found_flops = count_flops(lambda: theirs(pictures[0], texts[0]))
        same.append(
            measure.require_same("operations of the peer's step, by formula", abs(padded[0] / found_flops - 1), 0.03)
        )

    def ours() -> None:
        for batch in batches:
            step(batch)

    def peer() -> None:
        for image, text in zip(pictures, texts, strict=True):
            theirs(image, text)

    found = measure.time_pairs(ours, peer, settings.repeats, warmup=2, device=settings.device)
    longest = [int(batch["text_length"].max()) for batch in batches]
    seen = torch.cat([batch["text_length"] for batch in batches]).double().mean()
    runs = f"pads to {np.mean(columns):.1f} on average, with fused AdamW" if best else f"runs all {CONTEXT}"
    notes = (
        f"batch {size.batch}; {source}: mean {seen:.1f} tokens, longest of each batch {longest}; the peer "
        f"{runs}; ours normalises uint8 pictures inside the step, the peer gets floats; without "
        "Lightning's loop around it"
    )
    further: dict[str, Any] = {"flops_per_step": {"ours": float(np.mean(flops)), "peer": float(np.mean(padded))}}
    further["flops_ratio"] = float(np.mean(padded) / np.mean(flops))
    if settings.device == "cuda":
        further |= device_numbers(found, flops, float(np.mean(padded)), (ours, peer))
        notes += "; " + json.dumps({key: further[key] for key in ("mfu", "max_memory_gib")})
    labels = ("ContrastiveModule", f"open_clip, context {'of the batch' if best else CONTEXT}")
    return measure.write_comparison(name, labels, found, (size.batch * count, "pair"), same, settings, notes, further)


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
        for total, second in zip((sum(flops), padded * len(flops)), seconds, strict=True)
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
    cases=(list(CASES), "what is measured", {"choices": CASES}),
)
def main(settings: measure.Settings) -> list[Path]:
    """Measure the cases; see the head of this file."""
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
    pool = max(BATCHES, POOL // SIZES[name].batch)  # batches of a whole pool
    cases = {
        "own": ("", lengths, source, False, BATCHES),
        "full_context": ("_full_context", full, f"{source}, the first of each batch {CONTEXT}", False, BATCHES),
        "trimmed": ("_trimmed", lengths, source, True, BATCHES),
        "bucketed": ("_bucketed", bucketed(lengths), f"{source}, in batches of similar length", True, pool),
    }
    written = []
    for case in settings.cases:
        suffix, drawn, words, best, count = cases[case]
        written.append(compare(prefix + suffix, SIZES[name], drawn, words, settings, best, count))
    return written


if __name__ == "__main__":
    run(main)
