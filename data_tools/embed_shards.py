"""Store a larger encoder's embeddings with the samples, for distillation (leam_mm/losses/distillation.py).

    python data_tools/embed_shards.py --shards run/shards/train --teacher run/large_clip --output run/shards/taught

Writes the same samples with two more members: ``teacher_image.npy`` (D') of the whole picture, and ``teacher_text.npy``
(captions, D'), one row for each caption of the json in its order; unit length, float16. Shards that hold a teacher
already get the new one behind it, so several teachers are several runs. An interrupted run goes on at the last finished
shard when the same command is given again.
"""

import argparse
import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_tools.latents.latent_encoder import Sample
from leam_mm.checkpoint import find_checkpoint, load_module
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.data.array_format import read_array
from leam_mm.data.batch import read_record
from leam_mm.data.captions import Tokenizer
from leam_mm.data.image_decoding import ImageDecoding, image_member
from leam_mm.data.shard_index import ShardFolder, ShardWriter, read_samples
from leam_mm.encoders.dual_encoder import DualEncoder
from leam_mm.errors import UserError, run
from leam_mm.files import file_sha256

SETTINGS, IMAGE, TEXT = "embedding.json", "teacher_image.npy", "teacher_text.npy"


@dataclass(frozen=True)
class Embedding:
    """Everything that decides what the output contains: two runs with equal settings write equal shards.

    Args:
        shards: Merkle root of the input.
        teacher_sha256: Of the teacher's checkpoint.
        size: D', values of an embedding.
        scale: The teacher's inverse temperature.
        image_size: H = W in pixels, the teacher's own.
    """

    shards: str
    teacher_sha256: str
    size: int
    scale: float
    image_size: int


@dataclass
class Teacher:
    """The encoder and what it reads with."""

    encoder: DualEncoder
    tokenizer: Tokenizer
    device: torch.device
    threads: ThreadPoolExecutor

    def images(self, samples: list[Sample]) -> np.ndarray:
        """Embeddings (B, D') of the whole pictures."""
        decoding = ImageDecoding(self.encoder.image_size).evaluation()

        def decode(sample: Sample) -> torch.Tensor:
            try:
                return decoding(image_member(sample[1]), np.random.default_rng(0))
            except UserError as error:
                raise UserError(f"sample {sample[0]}: {error}") from None

        pixels = torch.stack(list(self.threads.map(decode, samples))).to(self.device)
        return stored(self.encoder.encode_image(self.encoder.normalise(pixels)))

    def texts(self, captions: list[list[str]], batch_size: int) -> list[np.ndarray]:
        """Embeddings (captions, D') of each sample's captions."""
        flat = [text for several in captions for text in several]
        parts = []
        for first in range(0, len(flat), batch_size):
            text, length = self.tokenizer.encode(flat[first : first + batch_size])
            parts.append(stored(self.encoder.encode_text(text.to(self.device), length)))
        return np.split(np.concatenate(parts), np.cumsum([len(several) for several in captions])[:-1])


def stored(embedding: torch.Tensor) -> np.ndarray:
    """As the shards keep it."""
    array = embedding.float().cpu().numpy().astype(np.float16)
    if not np.isfinite(array).all():
        raise UserError("the teacher gives embeddings that are no numbers: take a checkpoint that has not diverged")
    return array


def appended(members: dict[str, bytes], name: str, new: np.ndarray) -> bytes:
    """The member with this teacher behind the earlier ones."""
    if name in members:
        earlier = read_array(members, name)
        if earlier.shape[:-1] != new.shape[:-1]:
            raise UserError(f"{name} is {earlier.shape}, this teacher's {new.shape}: embed the original shards")
        new = np.concatenate([earlier.astype(np.float16), new], axis=-1)
    buffer = io.BytesIO()
    np.save(buffer, new, allow_pickle=False)
    return buffer.getvalue()


def grouped(samples: Iterator[Sample], size: int, restart: int) -> Iterator[list[Sample]]:
    """Lists of ``size`` samples that begin anew every ``restart`` samples, so that a resumed run has the same lists."""
    place = 0
    while group := list(islice(samples, min(size, restart - place))):
        yield group
        place = (place + len(group)) % restart


def write(teacher: Teacher, embedding: Embedding, shards: Path, writer: ShardWriter, size: int, bar: Progress) -> None:
    """Embed every sample that the writer does not hold yet."""
    task = bar.add_task("embed", total=ShardFolder(shards).samples, completed=writer.finished)
    remaining = islice(read_samples(shards), writer.finished, None)
    for group in grouped(remaining, size, writer.samples_per_shard):
        captions = []
        for key, members in group:
            try:
                captions.append([str(caption["text"]) for caption in read_record(members, "captions")])
            except UserError as error:
                raise UserError(f"sample {key}: {error}") from None
        for (key, members), image, text in zip(
            group, teacher.images(group), teacher.texts(captions, size), strict=True
        ):
            record: dict[str, Any] = json.loads(members["json"])
            about = {"sha256": embedding.teacher_sha256, "size": embedding.size, "scale": embedding.scale}
            record["teachers"] = [*record.get("teachers", []), about]
            further = {IMAGE: appended(members, IMAGE, image), TEXT: appended(members, TEXT, text)}
            kept = {name: content for name, content in members.items() if name != "json"}
            writer.write(key, {**kept, **further, "json": json.dumps(record, ensure_ascii=False).encode()})
        bar.advance(task, len(group))


def finished(folder: Path, embedding: Embedding) -> bool:
    """Whether the folder already holds exactly this; refuses one that holds or has begun something else."""
    for place in (folder, folder.with_name(folder.name + ".partial")):
        if not place.exists():
            continue
        try:
            same = json.loads((place / SETTINGS).read_text(encoding="utf-8")) == asdict(embedding)
        except (OSError, ValueError):
            same = False
        if not same:
            raise UserError(f"{place} was written with other data or another teacher: delete it, or change --output")
        if place == folder:
            return True
    return False


def open_teacher(options: argparse.Namespace) -> tuple[DualEncoder, Tokenizer, str]:
    """A checkpoint of ours with its tokenizer, or any weights that open_clip knows; and the digest of the weights."""
    path = Path(options.teacher)
    if any(place.is_file() for place in (path / "checkpoints" / "last.ckpt", path / "last.ckpt")) or (
        path.suffix == ".ckpt"
    ):
        module = load_module(path, ContrastiveModule)
        return module.ema_encoder(), module.tokenizer, file_sha256(find_checkpoint(path))
    from leam_mm.encoders.pretrained_encoder import PretrainedEncoder

    encoder = PretrainedEncoder(options.teacher)
    tokenizer = Tokenizer(options.tokenizer or path, encoder.context_length)
    encoder.check_tokenizer(tokenizer)
    return encoder, tokenizer, encoder.origin()["sha256"]


@torch.no_grad()
def embed_shards(options: argparse.Namespace, console: Console) -> None:
    """Do what the command line asks for."""
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {options.device}: no GPU is visible here; give --device cpu")
    device, folder = torch.device(options.device), ShardFolder(options.shards)
    encoder, tokenizer, sha256 = open_teacher(options)
    encoder = encoder.to(device).eval()
    embedding = Embedding(
        folder.merkle_root,
        sha256,
        encoder.embed_dim,
        round(float(encoder.scale), 4),
        encoder.image_size,
    )
    if finished(options.output, embedding):
        console.print(f"{options.output} already holds exactly this; nothing to do")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    per_shard = max(entry.samples for entry in folder.shards)
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads,
        Progress(*columns, console=console) as bar,
        ShardWriter(options.output, per_shard, resume=True) as writer,
    ):
        temporary = writer.partial / f"{SETTINGS}.tmp-{os.getpid()}"
        temporary.write_text(json.dumps(asdict(embedding), indent=1), encoding="utf-8")
        os.replace(temporary, writer.partial / SETTINGS)
        teacher = Teacher(encoder, tokenizer, device, threads)
        write(teacher, embedding, options.shards, writer, options.batch_size, bar)
    teachers = json.loads(next(read_samples(options.output))[1]["json"])["teachers"]
    console.print(f"wrote {folder.samples} samples to {options.output}; the recipe's loss takes")
    for each in teachers:
        console.print(f"  - {{size: {each['size']}, scale: {each['scale']}}}")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shards", type=Path, required=True, help="folder of final shards, or of ones with a teacher")
    parser.add_argument(
        "--teacher",
        required=True,
        help="run or checkpoint of a contrastive training, or open_clip's folder or NAME:TAG",
    )
    parser.add_argument("--tokenizer", help="of open_clip's models: a folder, or open_clip; by default the teacher's")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--batch-size", type=int, default=256, help="samples at once; changes speed and memory only")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args(arguments)
    if options.batch_size < 1:
        raise UserError(f"--batch-size is {options.batch_size}: give at least 1")
    return options


def main() -> None:
    """Run the program."""
    embed_shards(parse(), Console())


if __name__ == "__main__":
    run(main)
