"""Turn final shards into latent shards: each picture through the codec, some of its captions through text encoders.

    python data_tools/encode_latents.py --shards run/shards/train --codec run/codec --clip run/clip --output run/latents

Each picture is decoded and encoded once; mean and deviation of the latents over the whole data set are measured by the
way, and the shards then written normalised with them. The numbers lie beside the shards (codec_statistics.json), where
training, sampling and release find them; held-out shards take those of training by ``--statistics run/latents``.
An interrupted run goes on where it ended when the same command is given again. The members of a latent sample are
described in leam_mm/data/latent_members.py. With any of these, the disk that it takes is said beforehand:

    --processes 8 --device cuda           eight GPUs; with --device cpu, eight processes of one thread each
    --image-size 256 --image-size 512     a shard folder for each size below the output
    --image-size 512 --buckets            a shard folder for each aspect ratio, and buckets.json
    --image-size 2048 --tile 512          the codec works on overlapping tiles: bounded memory, see LatentCodec.set_tile
    --moments --dtype bfloat16            mean and log-variance of AutoencoderKL, so that training draws the latents
    --clip run/clip --text-encoder FOLDER several text encoders, also of transformers (T5, ...), in the order given
    --features run/clip                   patch tokens of an image encoder (ours, open_clip's, DINO of transformers)
    --verify                              afterwards: digests, and latents decoded into pictures again

The bytes do not depend on the number of processes as long as each has as many threads: set OMP_NUM_THREADS=1 to compare
one process on a CPU with several.
"""

import argparse
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_tools.latents.latent_encoder import (
    STATISTICS,
    Encoding,
    LatentEncoder,
    open_encoder,
    read_captions,
    statistics_file,
)
from data_tools.latents.latent_jobs import (
    Job,
    Part,
    Workers,
    keep_shapes,
    measure,
    merge_statistics,
    plan_jobs,
    plan_parts,
    read_rows,
    write,
)
from data_tools.latents.latent_verification import verify
from leam_mm.data.array_format import DTYPES
from leam_mm.data.aspect_buckets import BUCKETS
from leam_mm.data.shard_index import ShardFolder, join_shards
from leam_mm.errors import UserError, run

SETTINGS, SHAPES = "encoding.json", "shapes.npy"
MEMBER = 512 + 128 + 256  # bytes of a member's tar header, numpy's header, and on average its padding
LOOKED_AT = 32  # samples from which the disk is estimated


def check_output(folder: Path, encoding: Encoding) -> bool:
    """Whether the folder already holds exactly this; refuses one that holds or has begun something else."""
    partial = partial_folder(folder)
    if partial.is_dir() and all(file.name.startswith(f"{SETTINGS}.tmp-") for file in partial.iterdir()):
        shutil.rmtree(partial)  # of a run killed right at its start
    for place in (folder, partial):
        if not place.exists():
            continue
        try:
            stored = json.loads((place / SETTINGS).read_text(encoding="utf-8"))
            same = {"tile": None, **stored} == asdict(encoding)  # folders of before the tiles do not name them
        except (OSError, ValueError):
            same = False
        if not same:
            raise UserError(f"{place} was written with other data or settings: delete it, or give another --output")
        if place == folder:
            shutil.rmtree(partial, ignore_errors=True)  # of a run killed right at its end
            return True
    return False


def partial_folder(folder: Path) -> Path:
    """Where an unfinished output grows."""
    return folder.with_name(folder.name + ".partial")


def estimate_disk(encoder: LatentEncoder, folder: ShardFolder, parts: list[Part], measured: bool) -> dict[str, float]:
    """About how many bytes the output will take, by what; ``in between`` is what only the run itself needs.

    Latents and features are known exactly; records and caption states are those of some samples.
    """
    settings, codec = encoder.encoding, encoder.codec
    rows = np.unique(np.linspace(0, folder.samples - 1, LOOKED_AT, dtype=int))
    records = states = 0
    for sample in read_rows(folder, rows):
        captions = read_captions(sample)["captions"][: settings.captions_per_sample]
        texts = [caption["text"] for caption in captions]
        records += len(sample[1]["json"]) + MEMBER + 500 + sum(len(str(caption).encode()) for caption in captions)
        for text_encoder in encoder.texts:
            state, mask = text_encoder.encode(texts)
            states += MEMBER + int(mask.sum(1).max()) * len(texts) * state.shape[2] * _width(settings.dtype)
    samples = sum(len(part.rows) for part in parts)
    disk = {"latents": 0.0, "caption states": states / len(rows) * samples, "records": records / len(rows) * samples}
    if encoder.features is not None:
        disk["features"] = 0.0
    between = 0.0
    for part in parts:
        height, width = part.shape
        values = codec.channels * (height // codec.downscale) * (width // codec.downscale) * (1 + settings.moments)
        latent = values * _width(settings.dtype) + MEMBER * (1 + settings.moments)
        disk["latents"] += len(part.rows) * latent
        between += len(part.rows) * 4 * values
        if encoder.features is not None:
            tokens = encoder.features.encode(torch.zeros(1, 3, height, width, device=encoder.device))
            disk["features"] += len(part.rows) * (MEMBER + 2 * tokens.numel())
            between += len(part.rows) * 2 * tokens.numel()
    return disk | {"in between": between if measured else 0.0}


def _width(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def announce_disk(disk: dict[str, float], samples: int, output: Path, console: Console) -> None:
    """Say what the output will take, and refuse when the disk has less."""
    output.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(output.parent).free
    kept = {name: size for name, size in disk.items() if name != "in between"}
    parts = ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in kept.items())
    console.print(
        f"{samples} samples will take about {sum(kept.values()) / 1e6:,.1f} MB ({parts}), and "
        f"{disk['in between'] / 1e6:,.1f} MB more while this runs; {free / 1e6:,.0f} MB are free"
    )
    if sum(disk.values()) > free:
        raise UserError(f"{output.parent} has too little room: lower --captions-per-sample or choose another disk")


def encode(options: argparse.Namespace, encoder: LatentEncoder, jobs: list[Job], console: Console) -> None:
    """Do all jobs that are not done, in processes that end with this function."""
    partial = partial_folder(options.output)
    statistics = partial / STATISTICS
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    workers, samples = Workers(encoder, options), sum(len(job.rows) for job in jobs)
    finished = sum(len(job.rows) for job in jobs if job.written)
    if finished:
        console.print(f"going on after {finished} samples of an interrupted run")
    with Progress(*columns, console=console) as progress:
        try:
            if not statistics.is_file() and options.statistics:
                encoder.codec.load_statistics(statistics_file(options.statistics))
                _replace(statistics, encoder.codec.statistics())
            elif not statistics.is_file():
                missing = [job for job in jobs if not job.pictures.is_dir()]
                left = sum(len(job.rows) for job in missing)
                task = progress.add_task("measure", total=samples, completed=samples - left)
                workers.run(measure, missing, lambda count: progress.advance(task, count))
                encoder.codec.set_statistics(merge_statistics(jobs))
                _replace(statistics, encoder.codec.statistics())
            task = progress.add_task("write", total=samples, completed=finished)
            missing = [job for job in jobs if not job.written]
            workers.run(write, missing, lambda count: progress.advance(task, count))
        except BaseException:
            workers.close(wait=False)
            raise
        workers.close(wait=True)
    encoder.codec.load_statistics(statistics)


def finish(options: argparse.Namespace, encoder: LatentEncoder, parts: list[Part], jobs: list[Job]) -> None:
    """Put the shards together, and give the folder its name; may be killed and repeated."""
    partial = partial_folder(options.output)
    finished = partial / "finished"
    for part in parts:
        join_shards([job.place for job in jobs if job.part == part.folder], finished / part.folder)
        _replace(finished / part.folder / STATISTICS, encoder.codec.statistics())
    if parts[0].folder:
        listed = [
            {"folder": part.folder, "height": part.shape[0], "width": part.shape[1], "samples": len(part.rows)}
            for part in parts
        ]
        _replace(finished / BUCKETS, {"buckets": listed})
    _replace(finished / STATISTICS, encoder.codec.statistics())
    _replace(finished / SETTINGS, asdict(encoder.encoding))
    os.replace(finished, options.output)
    shutil.rmtree(partial, ignore_errors=True)


@torch.no_grad()
def encode_latents(options: argparse.Namespace, console: Console) -> None:
    """Do what the command line asks for."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if options.device.startswith("cuda") and count < (options.processes if options.device == "cuda" else 1):
        seen = f"{count} GPUs are" if count else "no GPU is"
        raise UserError(f"--device {options.device}: {seen} visible here; give fewer --processes, or --device cpu")
    encoder, folder = open_encoder(options, torch.device(options.device)), ShardFolder(options.shards)
    there, partial = check_output(options.output, encoder.encoding), partial_folder(options.output)
    parts = [] if there and not options.verify else plan_parts(encoder, folder, partial / SHAPES)
    if there:
        console.print(f"{options.output} already holds exactly this; nothing to do")
    else:
        samples = sum(len(part.rows) for part in parts)
        announce_disk(estimate_disk(encoder, folder, parts, not options.statistics), samples, options.output, console)
        partial.mkdir(exist_ok=True)
        _replace(partial / SETTINGS, asdict(encoder.encoding))
        if options.buckets:
            keep_shapes(parts, partial / SHAPES)
        per_shard = max(entry.samples for entry in folder.shards)
        jobs = plan_jobs(parts, per_shard, partial / "work", options.batch_size)
        encode(options, encoder, jobs, console)
        finish(options, encoder, parts, jobs)
        console.print(f"wrote {samples} samples and {STATISTICS} to {options.output}")
    if options.verify:
        report_verification(options, encoder, folder, parts, console)


def report_verification(
    options: argparse.Namespace, encoder: LatentEncoder, folder: ShardFolder, parts: list[Part], console: Console
) -> None:
    """Read the output back, say what was found, and end with a line for the first fault if there is any."""
    encoder.codec.load_statistics(options.output)
    found = verify(encoder, folder, parts, options.output, options.verify)
    largest = ", ".join(f"{name} {gap:.1e}" for name, gap in found.largest.items())
    console.print(
        f"read back {found.samples} samples; {found.decoded} decoded: PSNR {found.stored_psnr:.2f} dB, without storing "
        f"{found.direct_psnr:.2f} dB; largest differences: {largest or 'not measured'}"
    )
    for fault in found.faults:
        console.print(f"broken: {fault}", markup=False)
    if found.faults:
        raise UserError(f"{options.output}: {len(found.faults)} faults, the first: {found.faults[0]}; encode it again")


def _replace(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(temporary, path)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shards", type=Path, required=True, help="folder of final shards")
    add("--codec", type=Path, required=True, help="run or checkpoint of a codec, or diffusers' folder")
    texts: dict[str, Any] = {"action": "append", "dest": "text_encoders", "default": []}
    add("--clip", type=lambda path: ("clip", path), **texts, help="run or checkpoint of a contrastive training")
    add("--text-encoder", type=lambda path: ("transformers", path), **texts, help="folder of transformers")
    add("--text-length", type=int, default=128, help="tokens per caption at most, of --text-encoder")
    add("--features", help="image encoder: run or checkpoint, open_clip's folder or NAME:TAG, folder of transformers")
    add("--feature-size", type=int, help="pixels of its pictures; by default as in its training")
    add("--output", type=Path, required=True, help="folder to write")
    add("--statistics", type=Path, help="latent folder whose statistics to take; by default measured")
    add("--captions-per-sample", type=int, default=4, help="caption states per sample, at most")
    add("--languages", nargs="+", help="captions in these only, where a sample has any")
    add("--image-size", type=int, action="append", help="pixels, several times for several; default: the codec's own")
    add("--buckets", action="store_true", help="keep aspect ratios, in shapes of about image-size squared pixels")
    add("--bucket-multiple", type=int, help="of which heights and widths are multiples; default: 2 x downscale")
    add("--max-ratio", type=float, default=2.0, help="of the longer to the shorter side of a bucket")
    add("--tile", type=int, help="pixels of the codec's tiles for large pictures; by default whole pictures")
    add("--moments", action="store_true", help="keep the log-variance of an AutoencoderKL too")
    add("--seed", type=int, default=0, help="of the choice of captions")
    add("--batch-size", type=int, default=256, help="samples at once; changes speed and memory only")
    add("--dtype", choices=DTYPES, default="float16", help="of the stored latents and caption states")
    add("--device", default="cpu", help="cpu or cuda")
    add("--processes", type=int, default=1, help="that share the work; with cuda, each has a GPU of its own")
    add("--verify", type=int, nargs="?", const=64, default=0, metavar="N", help="check all, and N latents as pictures")
    options = parser.parse_args(arguments)
    if not options.text_encoders:
        raise UserError("no text encoder is given: name a run by --clip, or a folder of transformers by --text-encoder")
    for name in ("captions_per_sample", "batch_size", "processes", "text_length"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(options, name)}: give at least 1")
    return options


def main() -> None:
    """Run the program."""
    encode_latents(parse(), Console())


if __name__ == "__main__":
    run(main)
