"""Pictures of a shard folder, and their embeddings: what zero-shot, retrieval and generation share."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from rich.progress import track
from torch import Tensor

from leam_mm.data.captions import cut_padding
from leam_mm.data.image_decoding import ImageDecoding, image_member
from leam_mm.data.shard_index import ShardFolder, parse_sample
from leam_mm.errors import UserError


@dataclass(frozen=True)
class Picture:
    """One sample of a shard folder: its key, its encoded picture and its JSON record."""

    key: str
    encoded: bytes
    record: dict[str, Any]

    def captions(self, language: str) -> list[str]:
        """The captions in one language, in the order of the record."""
        found = (c for c in self.record.get("captions", []) if c.get("language") == language)
        return [text for text in (str(caption.get("text", "")).strip() for caption in found) if text]

    @property
    def class_id(self) -> str | None:
        """The class of the picture, where its source gave one."""
        found = (self.record.get("metadata") or {}).get("class_id")
        return None if found is None else str(found)

    def pixels(self, size: int) -> Tensor:
        """Decode to (3, size, size) uint8, as training does without its randomness.

        Raises:
            UserError: The bytes are no picture, or it has too many pixels.
        """
        try:
            return ImageDecoding(size)(self.encoded, numpy.random.default_rng(0))
        except UserError as error:
            raise UserError(f"sample {self.key}: {error}") from None


def read_pictures(
    shards: Path, limit: int | None = None, keep: Callable[[Picture], bool] = lambda picture: True
) -> Iterator[Picture]:
    """Walk a shard folder, or `limit` samples spread evenly over it, always the same ones.

    Args:
        shards: A final shard folder.
        limit: Upper bound of the samples looked at, before `keep`; None takes all.
        keep: Samples for which this is false are left out.
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
        index = folder.index(number)
        with open(folder.tar(number), "rb") as file:
            for row in rows:
                file.seek(int(index.offset[row]))
                picture = _picture(index.keys[row], parse_sample(file.read(int(index.size[row]))))
                if keep(picture):
                    yield picture


def _picture(key: str, members: dict[str, bytes]) -> Picture:
    if "json" not in members:
        raise UserError(f"sample {key}: has no json, only {sorted(members)}; build the shards again")
    try:
        encoded = image_member(members)
    except UserError as error:
        raise UserError(f"sample {key}: {error}") from None
    try:
        record = json.loads(members["json"])
    except ValueError as error:
        raise UserError(f"sample {key}: its json cannot be read ({error}); vet the shards again") from None
    if not isinstance(record, dict):
        raise UserError(f"sample {key}: its json is no object; vet the shards again")
    return Picture(key, encoded, record)


@torch.inference_mode()
def embed_images(module: Any, pictures: list[Picture], batch_size: int, device: torch.device) -> Tensor:
    """Encode pictures with the (averaged) encoder of a contrastive module.

    Returns:
        (B, D) float32 on the CPU, each row of length 1.
    """
    encoder = module.ema_encoder()
    parts = []
    for start in track(range(0, len(pictures), batch_size), description="pictures", transient=True):
        pixels = [picture.pixels(encoder.image_size) for picture in pictures[start : start + batch_size]]
        parts.append(encoder.encode_image(encoder.normalise(torch.stack(pixels).to(device))).float().cpu())
    return _unit(torch.cat(parts), "picture")


@torch.inference_mode()
def embed_texts(module: Any, texts: list[str], batch_size: int, device: torch.device) -> Tensor:
    """Encode texts with the (averaged) encoder of a contrastive module; equal texts are encoded once.

    Returns:
        (B, D) float32 on the CPU, each row of length 1; equal texts have bitwise equal rows.
    """
    encoder = module.ema_encoder()
    unique = sorted(set(texts), key=len)  # neighbours of similar length
    parts = []
    for start in range(0, len(unique), batch_size):
        text, text_length = module.tokenizer.encode(unique[start : start + batch_size])
        text = cut_padding(text, text_length)
        parts.append(encoder.encode_text(text.to(device), text_length.to(device)).float().cpu())
    place = {text: row for row, text in enumerate(unique)}
    return _unit(torch.cat(parts), "text")[[place[text] for text in texts]]


def _unit(embedding: Tensor, kind: str) -> Tensor:
    # A NaN compares as false with everything, which would count as rank one: it must never reach the metrics.
    if not torch.isfinite(embedding).all():
        raise UserError(f"the encoder gives {kind} embeddings that are not finite: the checkpoint diverged")
    return torch.nn.functional.normalize(embedding, dim=-1)
