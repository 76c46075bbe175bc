"""Turn final shards into latent shards: each picture through the codec, some of its captions through the CLIP.

    python data_tools/encode_latents.py --shards run/shards/train --codec run/codec --clip run/clip --output run/latents

Two passes: the first measures mean and deviation of the codec's latents over the whole data set, the second writes the
latents normalised with them. The numbers lie beside the shards (codec_statistics.json), where training, sampling and
release find them; held-out shards take those of the training set by ``--statistics run/latents``. An interrupted run
goes on at the last finished shard when the same command is given again.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from leam_mm.checkpoint import checkpoint_config, file_sha256, find_checkpoint, load_module, read_checkpoint
from leam_mm.codec_module import LatentCodecModule, signed
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.data.image_decoding import ImageDecoding, image_member
from leam_mm.data.shard_index import ShardFolder, ShardWriter, read_samples
from leam_mm.errors import UserError, run
from leam_mm.models.caption_encoder import CaptionEncoder
from leam_mm.models.latent_codec import LatentCodec, LatentStatistics, PretrainedCodec

SETTINGS, STATISTICS = "encoding.json", "codec_statistics.json"
Sample = tuple[str, dict[str, bytes]]


@dataclass(frozen=True)
class Encoding:
    """Everything that decides what the output contains: two runs with equal settings write equal bytes.

    Args:
        shards: Merkle root of the input.
        codec_sha256: Of the codec's file.
        clip_sha256: Of the encoder's checkpoint.
        image_size: H = W, in pixels.
        captions_per_sample: K, caption states of each sample at most.
        languages: Captions in these only, where a sample has any; None takes all.
        seed: Of the choice of captions.
        dtype: Of the stored arrays.
        statistics_sha256: Of the statistics taken from another folder; None measures them.
    """

    shards: str
    codec_sha256: str
    clip_sha256: str
    image_size: int
    captions_per_sample: int
    languages: list[str] | None
    seed: int
    dtype: str
    statistics_sha256: str | None


@dataclass
class Encoder:
    """The two networks and the settings they run with; turns samples into the members of latent samples."""

    codec: LatentCodec
    captions: CaptionEncoder
    encoding: Encoding
    device: torch.device
    _threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(min(8, os.cpu_count() or 1)))

    def images(self, samples: list[Sample]) -> torch.Tensor:
        """Decode the pictures (B, 3, H, W) in [-1, 1], the way that codec training decodes its held-out ones."""
        decoding = ImageDecoding(self.encoding.image_size)

        def decode(sample: Sample) -> torch.Tensor:
            try:
                return decoding(image_member(sample[1]), np.random.default_rng(0))
            except UserError as error:
                raise UserError(f"sample {sample[0]}: {error}") from None

        return signed(torch.stack(list(self._threads.map(decode, samples))).to(self.device))

    def latents(self, samples: list[Sample]) -> np.ndarray:
        """Normalised latents (B, C, h, w) in the stored type."""
        return self._stored(self.codec.encode(self.images(samples)), samples)

    def states(self, samples: list[Sample], chosen: list[list[dict[str, Any]]]) -> list[tuple[np.ndarray, list[int]]]:
        """Caption states (K, L, D) of each sample, zero beyond each caption's end, and the captions' lengths."""
        texts = [caption["text"] for captions in chosen for caption in captions]
        state, mask = self.captions.encode(texts)
        stored = self._stored(state * mask[..., None], samples)
        lengths = mask.sum(1).tolist()
        ends = np.cumsum([len(captions) for captions in chosen]).tolist()
        return [(stored[end - len(c) : end], lengths[end - len(c) : end]) for end, c in zip(ends, chosen, strict=True)]

    def _stored(self, values: torch.Tensor, samples: list[Sample]) -> np.ndarray:
        array = values.float().cpu().numpy().astype(self.encoding.dtype)
        if not np.isfinite(array).all():
            raise UserError(
                f"values between sample {samples[0][0]} and {samples[-1][0]} do not fit {self.encoding.dtype}: "
                "give --dtype float32, or train the network again if it diverged"
            )
        return array


def choose_captions(
    captions: list[dict[str, Any]], count: int, seed: int, key: str, languages: list[str] | None = None
) -> list[dict[str, Any]]:
    """Draw up to ``count`` different captions, one language after the other in an order drawn from (seed, key)."""
    captions = [caption for caption in captions if caption["language"] in (languages or [])] or captions
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], np.uint64)))
    by_language: dict[str, list[dict[str, Any]]] = {}
    for caption in captions:
        by_language.setdefault(str(caption["language"]), []).append(caption)
    names = sorted(by_language)
    order = [by_language[names[place]] for place in generator.permutation(len(names))]
    queues = [[group[place] for place in generator.permutation(len(group))] for group in order]
    rounds = [queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue)]
    return rounds[:count]


def grouped(samples: Iterator[Sample], size: int, restart: int) -> Iterator[list[Sample]]:
    """Lists of ``size`` samples that begin anew every ``restart`` samples, so that a resumed run has the same lists."""
    place = 0
    while group := list(islice(samples, min(size, restart - place))):
        yield group
        place = (place + len(group)) % restart


def measure(encoder: Encoder, shards: Path, batch_size: int, progress: Progress) -> LatentStatistics:
    """Statistics of the raw latents over the whole data set."""
    task = progress.add_task("measure", total=ShardFolder(shards).samples)
    merged: LatentStatistics | None = None
    for group in grouped(read_samples(shards), batch_size, batch_size):
        part = LatentStatistics.of(encoder.codec.encode_raw(encoder.images(group)))
        merged = part if merged is None else merged.merge(part)
        progress.advance(task, len(group))
    if merged is None:
        raise UserError(f"{shards} holds no sample: build it with data_tools/download_shards.py")
    return merged


def write(encoder: Encoder, shards: Path, writer: ShardWriter, batch_size: int, progress: Progress) -> None:
    """Encode every sample that the writer does not hold yet."""
    settings, codec = encoder.encoding, encoder.codec
    about = {
        "codec_sha256": settings.codec_sha256,
        "clip_sha256": settings.clip_sha256,
        "downscale": codec.downscale,
        "channels": codec.channels,
        "image_size": settings.image_size,
    }
    task = progress.add_task("encode", total=ShardFolder(shards).samples, completed=writer.finished)
    remaining = islice(read_samples(shards), writer.finished, None)
    for group in grouped(remaining, batch_size, writer.samples_per_shard):
        records = [_record(sample) for sample in group]
        chosen = [
            choose_captions(record["captions"], settings.captions_per_sample, settings.seed, key, settings.languages)
            for (key, _), record in zip(group, records, strict=True)
        ]
        latents, states = encoder.latents(group), encoder.states(group, chosen)
        for (key, _), record, captions, latent, (state, lengths) in zip(
            group, records, chosen, latents, states, strict=True
        ):
            record["caption_states"] = [
                {"text": caption["text"], "language": caption["language"], "length": length}
                for caption, length in zip(captions, lengths, strict=True)
            ]
            members = {
                "latent.npy": _npy(latent),
                "caption_state.npy": _npy(state),
                "json": json.dumps(record | {"latent": about}, ensure_ascii=False).encode(),
            }
            writer.write(key, members)
        progress.advance(task, len(group))


def _record(sample: Sample) -> dict[str, Any]:
    key, members = sample
    try:
        record = json.loads(members["json"])
        complete = bool(record["captions"]) and all("text" in c and "language" in c for c in record["captions"])
    except (KeyError, TypeError, ValueError):
        complete = False
    if not complete:
        raise UserError(f"sample {key} has no json with captions: run data_tools/check_shards.py on the folder")
    return record


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def load_codec(path: Path) -> tuple[LatentCodec, str, int | None]:
    """A codec of our training or a folder of diffusers: the codec, its digest, the size of its training images."""
    if (path / "config.json").is_file():
        weights = sorted(path.glob("*.safetensors"))
        return PretrainedCodec(str(path)), file_sha256(weights[0]) if weights else "", None
    module = load_module(path, LatentCodecModule)
    section = checkpoint_config(read_checkpoint(path)).get("data") or {}
    image = (section.get("init_args") or {}).get("image") or {}
    size = (image.get("init_args") or image).get("image_size")
    return module.codec, file_sha256(find_checkpoint(path)), size


def open_encoder(options: argparse.Namespace) -> Encoder:
    """Load both networks and settle what will be written."""
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {options.device}: no GPU is visible here; give --device cpu")
    device = torch.device(options.device)
    codec, codec_sha256, trained_size = load_codec(options.codec)
    size = options.image_size or trained_size
    if size is None:
        raise UserError(f"{options.codec} does not say how large its images are: give --image-size")
    if size % codec.downscale:
        raise UserError(
            f"--image-size {size} does not fit the codec of {options.codec}: give a multiple of {codec.downscale}"
        )
    clip = load_module(options.clip, ContrastiveModule)
    statistics = options.statistics and _statistics_file(options.statistics)
    encoding = Encoding(
        shards=ShardFolder(options.shards).merkle_root,
        codec_sha256=codec_sha256,
        clip_sha256=file_sha256(find_checkpoint(options.clip)),
        image_size=size,
        captions_per_sample=options.captions_per_sample,
        languages=sorted(options.languages) if options.languages else None,
        seed=options.seed,
        dtype=options.dtype,
        statistics_sha256=file_sha256(statistics) if statistics else None,
    )
    captions = CaptionEncoder.from_module(clip).to(device)
    return Encoder(codec.eval().requires_grad_(False).to(device), captions, encoding, device)


def check_output(folder: Path, encoding: Encoding) -> bool:
    """Whether the folder already holds exactly this; refuses one that holds or has begun something else."""
    for place in (folder, folder.with_name(folder.name + ".partial")):
        if not place.exists():
            continue
        try:
            same = json.loads((place / SETTINGS).read_text(encoding="utf-8")) == asdict(encoding)
        except (OSError, ValueError):
            same = False
        if not same:
            raise UserError(f"{place} was written with other data or settings: delete it, or give another --output")
        if place == folder:
            return True
    return False


def announce_disk(encoder: Encoder, folder: ShardFolder, output: Path, console: Console) -> None:
    """Say what the output will take, and refuse when the disk has less."""
    state, _ = encoder.captions.encode([""])
    side = encoder.encoding.image_size // encoder.codec.downscale
    values = encoder.codec.channels * side**2 + encoder.encoding.captions_per_sample * state[0].numel()
    record = len(next(read_samples(folder.path))[1].get("json", b"")) + 4096  # and the tar headers
    needed = folder.samples * (values * np.dtype(encoder.encoding.dtype).itemsize + record)
    output.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(output.parent).free
    console.print(f"{folder.samples} samples will take about {needed / 1e6:,.0f} MB; {free / 1e6:,.0f} MB are free")
    if needed > free:
        raise UserError(f"{output.parent} has too little room: lower --captions-per-sample or choose another disk")


@torch.no_grad()
def encode_latents(options: argparse.Namespace, console: Console) -> None:
    """Both passes, as the command line asks for them."""
    encoder, folder = open_encoder(options), ShardFolder(options.shards)
    if check_output(options.output, encoder.encoding):
        console.print(f"{options.output} already holds exactly this; nothing to do")
        return
    announce_disk(encoder, folder, options.output, console)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    per_shard = max(entry.samples for entry in folder.shards)
    with Progress(*columns, console=console) as progress, ShardWriter(options.output, per_shard, resume=True) as writer:
        _replace(writer.partial / SETTINGS, asdict(encoder.encoding))
        begun = writer.partial / STATISTICS
        if begun.is_file() or options.statistics:
            encoder.codec.load_statistics(begun if begun.is_file() else _statistics_file(options.statistics))
        else:
            encoder.codec.set_statistics(measure(encoder, options.shards, options.batch_size, progress))
        _replace(begun, encoder.codec.statistics())
        if writer.finished:
            console.print(f"going on after {writer.finished} samples of an interrupted run")
        write(encoder, options.shards, writer, options.batch_size, progress)
    console.print(f"wrote {folder.samples} samples and {STATISTICS} to {options.output}")


def _statistics_file(path: Path) -> Path:
    file = path / STATISTICS if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"--statistics {path} names no {STATISTICS}: give the latent folder of the training set")
    return file


def _replace(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(temporary, path)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shards", type=Path, required=True, help="folder of final shards")
    parser.add_argument("--codec", type=Path, required=True, help="run or checkpoint of a codec, or diffusers' folder")
    parser.add_argument("--clip", type=Path, required=True, help="run or checkpoint of a contrastive training")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--statistics", type=Path, help="latent folder whose statistics to take; by default measured")
    parser.add_argument("--captions-per-sample", type=int, default=4, help="caption states per sample, at most")
    parser.add_argument("--languages", nargs="+", help="captions in these only, where a sample has any")
    parser.add_argument("--image-size", type=int, help="pixels; by default as in the codec's training")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of captions")
    parser.add_argument("--batch-size", type=int, default=256, help="samples at once; changes speed and memory only")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="of the stored arrays")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args(arguments)
    for name in ("captions_per_sample", "batch_size"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(options, name)}: give at least 1")
    return options


def main() -> None:
    """Run the program."""
    encode_latents(parse(), Console())


if __name__ == "__main__":
    run(main)
