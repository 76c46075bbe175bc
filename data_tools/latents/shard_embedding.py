"""Embeddings of a larger encoder, the teacher, stored with the samples of a shard folder."""

import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_tools.work.foreign_error import first_line
from leam_mm.data.array_format import read_array
from leam_mm.data.batch import read_record
from leam_mm.data.image_decoding import ImageDecoding, image_member
from leam_mm.data.parquet_file import own_parquet
from leam_mm.data.shard_index import ShardFolder, ShardWriter, index_name, read_samples
from leam_mm.data.tokenizer import Tokenizer
from leam_mm.encoders.dual_encoder import DualEncoder
from leam_mm.errors import UserError
from leam_mm.model_address import load_encoder

IMAGE, TEXT = "teacher_image.npy", "teacher_text.npy"
StoredSample = tuple[str, dict[str, bytes]]  # key, and content of each member by its extension
Readable = tuple[str, dict[str, bytes], dict[str, Any], list[str], torch.Tensor]


@dataclass(frozen=True)
class Embedding:
    """Everything that decides the content of the output: two runs with equal settings write equal shards.

    Args:
        shards: Merkle root of the input.
        teacher_sha256: Digest of the teacher's checkpoint.
        size: D', values of an embedding.
        scale: The teacher's inverse temperature.
        image_size: H = W in pixels of the images that the teacher sees.
    """

    shards: str
    teacher_sha256: str
    size: int
    scale: float
    image_size: int


@dataclass
class Teacher:
    """An image-text encoder with its tokenizer.

    Args:
        encoder: The encoder, on ``device``, in evaluation mode.
        tokenizer: Tokenizer of its text tower.
        sha256: Digest of its weights.
        device: Where it runs.
        threads: Threads that decode images.
    """

    encoder: DualEncoder
    tokenizer: Tokenizer
    sha256: str
    device: torch.device
    threads: ThreadPoolExecutor

    def decode(self, sample: StoredSample) -> torch.Tensor:
        """Return the whole image of a sample as the encoder sees it: (3, H, W) uint8."""
        try:
            content = image_member(sample[1])
            return ImageDecoding(self.encoder.image_size).evaluation()(content, np.random.default_rng(0))
        except UserError as error:
            raise UserError(f"sample {sample[0]}: {error}") from None

    def embed_images(self, samples: list[StoredSample]) -> np.ndarray:
        """Return the embeddings of the whole images, (B, D') float16 of unit length."""
        return self.embed_pixels(list(self.threads.map(self.decode, samples)))

    @torch.no_grad()
    def embed_pixels(self, images: list[torch.Tensor]) -> np.ndarray:
        """Return the embeddings of B decoded images, (B, D') float16 of unit length."""
        pixels = torch.stack(images).to(self.device)
        return _to_float16(self.encoder.encode_image(self.encoder.normalise(pixels)))

    @torch.no_grad()
    def embed_texts(self, captions: list[list[str]], batch_size: int) -> list[np.ndarray]:
        """Return the embeddings of each sample's captions, B arrays (captions, D') float16 of unit length."""
        flat = [text for texts in captions for text in texts]
        parts = []
        for first in range(0, len(flat), batch_size):
            text, length = self.tokenizer.encode(flat[first : first + batch_size])
            parts.append(_to_float16(self.encoder.encode_text(text.to(self.device), length)))
        return np.split(np.concatenate(parts), np.cumsum([len(texts) for texts in captions])[:-1])


def open_teacher(teacher: str, tokenizer: str | None, device: str, threads: int = 1) -> Teacher:
    """Open a run or checkpoint of a contrastive model with its tokenizer, or any weights that open_clip knows.

    Args:
        teacher: Run, checkpoint, release, open_clip folder or open_clip's ``NAME:TAG``.
        tokenizer: A folder or ``open_clip``; None takes the teacher's own.
        device: Device of the encoder.
        threads: Number of threads that decode images.
    """
    module, where = load_encoder(teacher, tokenizer), torch.device(device)
    sha256 = module.checkpoint_evidence["sha256"]  # type: ignore[index, union-attr]
    encoder = module.ema_encoder().to(where).eval()
    return Teacher(encoder, module.tokenizer, str(sha256), where, ThreadPoolExecutor(threads))  # type: ignore[arg-type]


def _to_float16(embedding: torch.Tensor) -> np.ndarray:
    array = embedding.float().cpu().numpy().astype(np.float16)
    if not np.isfinite(array).all():
        raise UserError("the teacher's embeddings are NaN or infinite: take a checkpoint that has not diverged")
    return array


def _appended(members: dict[str, bytes], name: str, new: np.ndarray) -> bytes:
    """Return the member with this teacher's embedding after those of earlier teachers."""
    if name in members:
        earlier = read_array(members, name)
        if earlier.shape[:-1] != new.shape[:-1]:
            raise UserError(f"{name} is {earlier.shape}, this teacher's {new.shape}: embed the original shards")
        new = np.concatenate([earlier.astype(np.float16), new], axis=-1)
    buffer = io.BytesIO()
    np.save(buffer, new, allow_pickle=False)
    return buffer.getvalue()


def _batches(samples: Iterator[Readable], size: int, restart: int) -> Iterator[list[Readable]]:
    """Give lists of ``size`` samples that start anew every ``restart`` samples: a resumed run forms the same lists."""
    position = 0
    while batch := list(islice(samples, min(size, restart - position))):
        yield batch
        position = (position + len(batch)) % restart


def read_teachable(teacher: Teacher, sample: StoredSample) -> Readable:
    """Return a sample's key, members, json, captions and image.

    Raises:
        UserError: It cannot be read. Libraries raise other types on samples of strangers.
    """
    key, members = sample
    try:
        texts = [str(caption["text"]) for caption in read_record(members, "captions")]
    except UserError as error:
        raise UserError(f"sample {key}: {error}") from None
    return key, members, json.loads(members["json"]), texts, teacher.decode(sample)


def _readable(teacher: Teacher, samples: Iterator[StoredSample], count: int) -> Iterator[Readable]:
    """Give the samples that can be read, ``count`` of which are decoded at once."""

    def read(sample: StoredSample) -> Readable | None:
        try:
            return read_teachable(teacher, sample)
        except Exception:  # any library may fail on a sample of a stranger; `unreadable_samples` says why
            return None

    while batch := list(islice(samples, count)):
        yield from (found for found in teacher.threads.map(read, batch) if found is not None)


def write_embeddings(
    teacher: Teacher,
    embedding: Embedding,
    shards: Path,
    writer: ShardWriter,
    batch_size: int,
    advance: Callable[[int], object],
) -> list[tuple[str, str]]:
    """Embed every sample that the writer does not hold yet.

    Args:
        teacher: The encoder.
        embedding: Settings, recorded in each sample's json.
        shards: The input.
        writer: Writer of the output; it may hold the first samples of an interrupted run.
        batch_size: Samples at once.
        advance: Called with the number of samples after each batch.

    Returns:
        Key and reason of each sample that cannot be read and was left out.
    """
    written = _finished_keys(writer)
    samples = read_samples(shards)
    if written:
        last = written[-1]
        next((key for key, _ in samples if key == last), None)
    for batch in _batches(_readable(teacher, samples, batch_size), batch_size, writer.samples_per_shard):
        images = teacher.embed_pixels([image for *_, image in batch])
        texts = teacher.embed_texts([captions for *_, captions, _ in batch], batch_size)
        for (key, members, record, _, _), image, text in zip(batch, images, texts, strict=True):
            about = {"sha256": embedding.teacher_sha256, "size": embedding.size, "scale": embedding.scale}
            record["teachers"] = [*record.get("teachers", []), about]
            new = {IMAGE: _appended(members, IMAGE, image), TEXT: _appended(members, TEXT, text)}
            kept = {name: content for name, content in members.items() if name != "json"}
            writer.write(key, {**kept, **new, "json": json.dumps(record, ensure_ascii=False).encode()})
            written.append(key)
        advance(len(batch))
    return list(_unreadable_samples(teacher, shards, set(written)))


def _finished_keys(writer: ShardWriter) -> list[str]:
    """Return the keys of the shards that an interrupted run has finished."""
    keys: list[str] = []
    for entry in writer.entries:
        with own_parquet(writer.partial / index_name(entry.shard)) as file:
            keys += file.read(columns=["key"], use_threads=False)["key"].to_pylist()
    return keys


def _unreadable_samples(teacher: Teacher, shards: Path, written: set[str]) -> Iterator[tuple[str, str]]:
    """Give key and reason of each sample that was not written; a resumed run finds the same ones."""
    folder = ShardFolder(shards)
    if all(key in written for number in range(len(folder.shards)) for key in folder.index(number).keys):
        return
    for sample in read_samples(shards):
        if sample[0] not in written:
            try:
                read_teachable(teacher, sample)
            except Exception as error:
                yield sample[0], first_line(error)
