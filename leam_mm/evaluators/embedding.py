"""Images of a shard folder, and their embeddings: shared by zero-shot, retrieval and generation."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from rich.progress import Progress
from torch import Tensor

from leam_mm.data.image_decoding import ImageDecoding, image_member
from leam_mm.data.sample_json import read_sample_json
from leam_mm.data.shard_index import ShardFolder
from leam_mm.data.tokenizer import cut_padding
from leam_mm.errors import UserError
from leam_mm.evaluators.ranks import is_mine, over_ranks, rank


@dataclass(frozen=True)
class ImageSample:
    """One sample of a shard folder: its key, its encoded image and its JSON record."""

    key: str
    encoded: bytes
    record: dict[str, Any]

    def captions(self, language: str) -> list[str]:
        """Return the captions in one language, in the order of the record."""
        found = (c for c in self.record.get("captions", []) if c.get("language") == language)
        return [text for text in (str(caption.get("text", "")).strip() for caption in found) if text]

    @property
    def class_id(self) -> str | None:
        """Class of the image, if its source gave one."""
        found = (self.record.get("metadata") or {}).get("class_id")
        return None if found is None else str(found)

    def pixels(self, size: int) -> Tensor:
        """Decode to (3, size, size) uint8, as in training but without augmentation.

        Raises:
            UserError: The bytes are not an image, or it has too many pixels.
        """
        try:
            return ImageDecoding(size)(self.encoded, numpy.random.default_rng(0))
        except UserError as error:
            raise UserError(f"sample {self.key}: {error}") from None


def read_image_samples(
    shards: Path, limit: int | None = None, keep: Callable[[ImageSample], bool] = lambda sample: True
) -> Iterator[ImageSample]:
    """Yield the samples of a shard folder, or `limit` samples spread evenly over it, always the same ones.

    Args:
        shards: A final shard folder.
        limit: Upper bound of the samples that are read, before `keep`; None reads all.
        keep: Samples for which this is false are skipped.
    """
    folder = ShardFolder(shards)
    count = folder.samples if limit is None else min(limit, folder.samples)
    chosen = numpy.arange(count, dtype=numpy.int64) * folder.samples // max(count, 1)
    start = 0
    for number, entry in enumerate(folder.shards):
        rows = chosen[(chosen >= start) & (chosen < start + entry.samples)] - start
        start += entry.samples
        if not len(rows):
            continue
        with folder.open_shard(number) as shard:
            for row in rows.tolist():
                sample = _sample(shard.keys[row], shard.members(row))
                if keep(sample):
                    yield sample


def _sample(key: str, members: dict[str, bytes]) -> ImageSample:
    try:
        return ImageSample(key, image_member(members), read_sample_json(members))
    except UserError as error:
        raise UserError(f"sample {key}: {error}") from None


def keep_own_bytes(found: Iterable[ImageSample], batch_size: int) -> list[ImageSample]:
    """Return all samples, without the image bytes of those that other ranks embed, to save memory.

    Args:
        found: The same samples on each rank.
        batch_size: The batch size that `embed_images` gets.
    """
    return [sample if is_mine(row, batch_size) else replace(sample, encoded=b"") for row, sample in enumerate(found)]


# Not inference_mode: tensors that a network caches (masks, kernels) must be usable in the training that continues.
@torch.no_grad()
def embed_images(module: Any, samples: list[ImageSample], batch_size: int, device: torch.device) -> Tensor:
    """Encode images with the (averaged) encoder of a contrastive module, each rank its part.

    Returns:
        (B, D) float32 on the CPU, each row of length 1, the same on every rank.
    """
    encoder = module.ema_encoder()
    with Progress(transient=True, disable=rank() != 0) as progress:
        task = progress.add_task("images", total=len(samples))

        def read(part: slice) -> Tensor:
            progress.update(task, completed=part.stop)
            return torch.stack([sample.pixels(encoder.image_size) for sample in samples[part]])

        def compute(pixels: Tensor) -> Tensor:
            return encoder.encode_image(encoder.normalise(pixels.to(device))).float()

        return _unit(over_ranks(len(samples), batch_size, read, compute, device), "image")


@torch.no_grad()
def embed_texts(module: Any, texts: list[str], batch_size: int, device: torch.device) -> Tensor:
    """Encode texts with the (averaged) encoder of a contrastive module; equal texts are encoded once.

    Returns:
        (B, D) float32 on the CPU, each row of length 1, the same on every rank; equal texts have bitwise equal rows.
    """
    encoder = module.ema_encoder()
    # Texts of similar length share a batch; the order does not depend on the hash seed of the process.
    unique = sorted(set(texts), key=lambda text: (len(text), text))

    def read(part: slice) -> tuple[Tensor, Tensor]:
        text, text_length = module.tokenizer.encode(unique[part])
        return cut_padding(text, text_length), text_length

    def compute(read: tuple[Tensor, Tensor]) -> Tensor:
        return encoder.encode_text(read[0].to(device), read[1]).float()  # lengths on the host, to skip padding

    rows = {text: row for row, text in enumerate(unique)}
    embedding = _unit(over_ranks(len(unique), batch_size, read, compute, device), "text")
    return embedding[[rows[text] for text in texts]]


def _unit(embedding: Tensor, kind: str) -> Tensor:
    # Comparisons with NaN are false, which would count as rank one: NaN must not reach the metrics.
    if not torch.isfinite(embedding).all():
        raise UserError(f"the encoder gives {kind} embeddings that are not finite: the checkpoint diverged")
    return torch.nn.functional.normalize(embedding, dim=-1)
