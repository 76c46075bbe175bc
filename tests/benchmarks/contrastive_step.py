"""One training step of our ContrastiveModule against open_clip's, on the same towers, weights, images and captions."""

import argparse
import json
import math
import tempfile
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
from torch import Tensor
from toy_input import captions, write_tokenizer

from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.data.captions import Tokenizer
from leam_mm.data.shard_index import read_samples
from leam_mm.errors import UserError, run
from leam_mm.losses.contrastive import InfoNCE
from leam_mm.models.dual_encoder import DualEncoder, ImageTower, TextTower
from leam_mm.training.optimizer import build_optimizer

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
    "vit_b_32": Size(512, ImageTower(), TextTower(), 512),
}


def caption_lengths(shards: Path, tokenizer: Path, scratch: Path) -> tuple[np.ndarray, str]:
    """Tokens of each caption, begin and end included, of real shards if they are there, else of made-up captions."""
    if (shards / "manifest.jsonl").is_file() and (tokenizer / "tokenizer.json").is_file():
        records = [json.loads(members["json"]) for _, members in read_samples(shards)]
        texts = [caption["text"] for record in records for caption in record["captions"]]
        texts = [texts[number] for number in np.random.default_rng(0).permutation(len(texts))[:4096]]
        return Tokenizer(tokenizer, CONTEXT).encode(texts)[1].numpy(), f"captions of {shards}"
    texts = captions(4096)
    folder = write_tokenizer(scratch / "tokenizer", CONTEXT, texts)
    return Tokenizer(folder, CONTEXT).encode(texts)[1].numpy(), "made-up captions of log-normal length, median 9 words"


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
    optimizer_kind = partial(torch.optim.AdamW, lr=RATE, betas=BETAS, eps=EPSILON, weight_decay=DECAY)
    module = ContrastiveModule(encoder, InfoNCE(), tokenizer="", optimizer=optimizer_kind).to(device).train()
    optimizer = build_optimizer(optimizer_kind, encoder)

    def step(batch: dict[str, Tensor]) -> Tensor:
        kept: list[Tensor] = []

        def closure() -> Tensor:
            moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                kept.append(module.training_step(moved, 0))
            kept[0].backward()
            return kept[0]

        module.optimizer_step(0, 0, optimizer, closure)
        return kept[0].detach()

    return module, step


def peer_steps(ours: DualEncoder, device: str) -> Callable[[Tensor, Tensor], Tensor]:
    """open_clip's step as in train_one_epoch of open_clip_train 3.3.0, clamp of the scale included."""
    config: Any = ours.config()
    model = CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"], output_dict=True)
    model.load_state_dict(ours.clip.state_dict())
    model = model.to(device).train()
    loss = open_clip.loss.ClipLoss(cache_labels=True)
    plain = [p for name, p in model.named_parameters() if p.ndim < 2 or "ln" in name or "bias" in name]
    named = {id(parameter) for parameter in plain}
    decayed = [parameter for parameter in model.parameters() if id(parameter) not in named]
    groups: Any = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": DECAY}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPSILON)

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


def compare(name: str, size: Size, lengths: np.ndarray, source: str, settings: argparse.Namespace) -> Path:
    """Check the losses of the first steps, then time both."""
    torch.manual_seed(0)
    module, step = our_steps(size, settings.device)
    theirs = peer_steps(module.encoder, settings.device)
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
    labels = ("ContrastiveModule", f"open_clip, context {CONTEXT}")
    return measure.write_comparison(name, labels, found, (size.batch * BATCHES, "pair"), same, settings, notes)


def main(args: list[str] | None = None) -> list[Path]:
    """Measure at the captions' own lengths, and with a caption in each batch that fills the context."""

    def extend(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--size", choices=sorted(SIZES), help="default: tiny on a cpu, vit_b_32 on cuda")
        parser.add_argument("--shards", type=Path, default=Path("runs/quickstart/shards/test"), help="of the captions")
        parser.add_argument("--tokenizer", type=Path, default=Path("runs/quickstart/tokenizer"), help="for them")

    settings = measure.parse_arguments("contrastive_step", __doc__ or "", args, 9, extend)
    # Lightning warns that nothing is logged without a trainer.
    warnings.filterwarnings("ignore", message=".*self.log.*")
    name = settings.size or ("tiny" if settings.device == "cpu" else "vit_b_32")
    with tempfile.TemporaryDirectory() as scratch:
        lengths, source = caption_lengths(settings.shards, settings.tokenizer, Path(scratch))
    if lengths.max() > CONTEXT:
        raise UserError(f"{settings.tokenizer} gives captions of {lengths.max()} tokens, above {CONTEXT}")
    full = lengths.copy()
    full[:: SIZES[name].batch] = CONTEXT
    prefix = "contrastive_step" if name == "tiny" else f"contrastive_step_{name}"
    return [
        compare(prefix, SIZES[name], lengths, source, settings),
        compare(f"{prefix}_full_context", SIZES[name], full, f"{source}, the first of each batch {CONTEXT}", settings),
    ]


if __name__ == "__main__":
    run(main)
