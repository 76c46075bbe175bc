"""Turn final shards into latent shards: images through the codec, some of their captions through text encoders.

    python data_tools/encode_latents.py --shards run/shards/train --codec run/codec --clip run/clip --output run/latents

Each image is decoded and encoded once. The program measures mean and deviation of the latents over the whole data set,
then writes the shards normalised with them. codec_statistics.json beside the shards holds the numbers for training,
sampling and release; held-out shards take those of training by ``--statistics run/latents``. To resume an interrupted
run, give the same command again. leam_mm/data/latent_members.py describes the members of a latent sample. The program
first prints the disk space that it needs. Further options:

    --processes 8 --device cuda           eight GPUs; with --device cpu, eight processes of one thread each
    --image-size 256 --image-size 512     a shard folder for each size below the output
    --image-size 512 --buckets            a shard folder for each aspect ratio, and buckets.json
    --image-size 2048 --tile 512          the codec works on overlapping tiles: bounded memory, see LatentCodec.set_tile
    --moments --dtype bfloat16            mean and log-variance of AutoencoderKL, so that training draws the latents
    --texts-only --captions-per-sample 24  captions without states, for a generator with a caption_tower
    --clip run/clip --text-encoder FOLDER several text encoders, also of transformers (T5, ...), in the order given
    --features run/clip                   patch tokens of an image encoder (ours, open_clip's, DINO of transformers)
    --verify                              afterwards: check digests, decode latents into images and compare

The bytes do not depend on the number of processes if each has the same number of threads: set OMP_NUM_THREADS=1 to
compare one process on a CPU with several.
"""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_tools.latents.encode_settings import EncodeSettings, Encoding
from data_tools.latents.latent_encoder import (
    STATISTICS,
    LatentEncoder,
    open_encoder,
    read_captions,
    statistics_file,
)
from data_tools.latents.latent_jobs import (
    Job,
    LatentWorker,
    Part,
    measure,
    merge_statistics,
    no_sample,
    plan_jobs,
    plan_parts,
    prepare_worker,
    read_faults,
    read_rows,
    save_shapes,
    write,
)
from data_tools.latents.latent_verification import verify
from data_tools.work.workers import WorkerPool
from leam_mm.command_line import parse_settings
from leam_mm.data.aspect_buckets import BUCKETS
from leam_mm.data.ledger import LEDGER, LedgerWriter, read_ledger
from leam_mm.data.shard_index import MANIFEST, ShardFolder, join_shards
from leam_mm.errors import UserError, run
from leam_mm.files import TEMPORARY, replace_folder, write_text
from leam_mm.recorded_classes import trust_modules
from leam_mm.run_lock import beside, run_lock

STAGE = "encode_latents"
SETTINGS, SHAPES = "encoding.json", "shapes.npy"
MEMBER = 512 + 128 + 256  # bytes of a member's tar header, numpy's header, and padding on average
SAMPLED = 32  # samples from which the disk space is estimated


def is_finished(folder: Path, encoding: Encoding) -> bool:
    """Return whether the folder already holds exactly this output.

    Raises:
        UserError: The folder, or an unfinished one, was written with other settings.
    """
    partial = partial_folder(folder)
    if partial.is_dir() and all(file.name.startswith(f"{SETTINGS}{TEMPORARY}") for file in partial.iterdir()):
        shutil.rmtree(partial)  # left by a run that was killed at its start
    for path in (folder, partial):
        if not path.exists():
            continue
        try:
            stored = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
            same = {"tile": None, **stored} == asdict(encoding)  # older folders do not name the tile
        except (OSError, ValueError):
            same = False
        if not same:
            raise UserError(f"{path} was written with other data or settings: delete it, or give another --output")
        if path == folder:
            shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed at its end
            return True
    return False


def partial_folder(folder: Path) -> Path:
    """Return the folder of the unfinished output."""
    return folder.with_name(folder.name + ".partial")


def estimate_disk(encoder: LatentEncoder, folder: ShardFolder, parts: list[Part], measured: bool) -> dict[str, float]:
    """Estimate the bytes of the output, by content; ``in between`` is needed during the run only.

    Latents and features are exact; records and caption states are estimated from a few samples.
    """
    settings, codec = encoder.encoding, encoder.codec
    width = 4 if settings.dtype == "float32" else 2
    rows = np.unique(np.linspace(0, folder.samples - 1, SAMPLED, dtype=int))
    records = states = 0
    for row in rows:
        try:
            sample = next(read_rows(folder, np.array([row])))
            captions = read_captions(sample)["captions"][: settings.captions_per_sample]
        except UserError:  # left out later
            continue
        texts = [caption["text"] for caption in captions]
        records += len(sample[1]["json"]) + MEMBER + 500 + sum(len(str(caption).encode()) for caption in captions)
        for text_encoder in encoder.texts:
            state, mask = text_encoder.encode(texts)
            states += MEMBER + int(mask.sum(1).max()) * len(texts) * state.shape[2] * width
    samples = sum(len(part.rows) for part in parts)
    disk = {"latents": 0.0, "caption states": states / len(rows) * samples, "records": records / len(rows) * samples}
    if encoder.features is not None:
        disk["features"] = 0.0
    between = 0.0
    for part in parts:
        rows_high, rows_wide = part.shape
        values = codec.channels * (rows_high // codec.downscale) * (rows_wide // codec.downscale)
        values *= 1 + settings.moments
        disk["latents"] += len(part.rows) * (values * width + MEMBER * (1 + settings.moments))
        between += len(part.rows) * 4 * values
        if encoder.features is not None:
            tokens = encoder.features.encode(torch.zeros(1, 3, *part.shape, device=encoder.device))
            disk["features"] += len(part.rows) * (MEMBER + 2 * tokens.numel())
            between += len(part.rows) * 2 * tokens.numel()
    return disk | {"in between": between if measured else 0.0}


def announce_disk(disk: dict[str, float], samples: int, output: Path, console: Console) -> None:
    """Print the disk space that the output needs, and refuse to start if there is less."""
    output.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(output.parent).free
    kept = {name: size for name, size in disk.items() if name != "in between"}
    parts = ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in kept.items())
    console.print(
        f"{samples} samples will take about {sum(kept.values()) / 1e6:,.1f} MB ({parts}), and "
        f"{disk['in between'] / 1e6:,.1f} MB more during the run; {free / 1e6:,.0f} MB are free"
    )
    if sum(disk.values()) > free:
        raise UserError(f"{output.parent} has too little space: lower --captions-per-sample or choose another disk")


def encode(settings: EncodeSettings, encoder: LatentEncoder, jobs: list[Job], console: Console) -> None:
    """Do all jobs that are not done yet."""
    statistics = partial_folder(settings.output) / STATISTICS
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    samples, finished = (sum(len(job.rows) for job in some) for some in (jobs, [job for job in jobs if job.written]))
    if finished:
        console.print(f"continuing after {finished} samples of an interrupted run")
    with Progress(*columns, console=console) as progress:
        worker = LatentWorker(
            encoder, ShardFolder(settings.shards), lambda count: progress.advance(progress.task_ids[-1], count)
        )
        pool = WorkerPool(
            settings.processes,
            prepare_worker,
            settings,
            state=worker,
            cure="give fewer --processes or a smaller --batch-size",
        )

        def run_all(task: Any, missing: list[Job]) -> None:
            done = samples - sum(len(job.rows) for job in missing)
            bar = progress.add_task(task.__name__, total=samples, completed=done)
            for job, _ in workers.run(task, missing):
                progress.update(bar, completed=(done := done + len(job.rows)))

        with pool as workers:
            if not statistics.is_file():
                if settings.statistics:
                    encoder.codec.load_statistics(statistics_file(settings.statistics))
                else:
                    run_all(measure, [job for job in jobs if not job.encoded.is_dir()])
                    encoder.codec.set_statistics(merge_statistics(jobs))
                _write_json(statistics, encoder.codec.statistics())
            run_all(write, [job for job in jobs if not job.written])
    encoder.codec.load_statistics(statistics)


def finish(settings: EncodeSettings, encoder: LatentEncoder, parts: list[Part], jobs: list[Job]) -> None:
    """Join the shards and rename the folder; may be killed and repeated."""
    partial = partial_folder(settings.output)
    finished = partial / "finished"
    listed = []
    for part in parts:
        outputs = [job.output for job in jobs if job.part == part.folder and (job.output / MANIFEST).stat().st_size]
        if outputs:
            join_shards(outputs, finished / part.folder)
            _write_json(finished / part.folder / STATISTICS, encoder.codec.statistics())
            shape = {"folder": part.folder, "height": part.shape[0], "width": part.shape[1]}
            listed.append(shape | {"samples": ShardFolder(finished / part.folder).samples})
    if not listed:
        raise no_sample(jobs)
    if parts[0].folder:
        _write_json(finished / BUCKETS, {"buckets": listed})
    _write_json(finished / STATISTICS, encoder.codec.statistics())
    _write_json(finished / SETTINGS, asdict(encoder.encoding))
    write_faults(finished / LEDGER, jobs)
    replace_folder(finished, settings.output)
    shutil.rmtree(partial, ignore_errors=True)


def write_faults(path: Path, jobs: list[Job]) -> None:
    """Write the ledger of the samples that cannot be read, if there are any."""
    faults = {fault["row"]: fault for job in jobs for fault in read_faults(job)}
    if faults:
        with LedgerWriter(path, STAGE) as ledger:
            for row, fault in sorted(faults.items()):
                decision = {"key": fault["key"], "rule": "sample", "value": str(row), "kept": False}
                ledger.write([decision | {"reason": fault["reason"]}])


def without_faults(parts: list[Part], output: Path, console: Console) -> list[Part]:
    """Return the parts without the samples that the ledger of the output lists."""
    if not (output / LEDGER).is_file():
        return parts
    rows = [int(row["value"]) for batch in read_ledger(output / LEDGER, ["value"]) for row in batch.to_pylist()]
    console.print(f"{len(rows)} samples cannot be read and are left out: {output / LEDGER} names them")
    parts = [replace(part, rows=np.setdiff1d(part.rows, rows)) for part in parts]
    return [part for part in parts if len(part.rows)]


@torch.no_grad()
def encode_latents(settings: EncodeSettings, console: Console) -> None:
    """Write the latent shards, and verify them if asked to."""
    trust_modules(settings.trust)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if settings.device.startswith("cuda") and count < (settings.processes if settings.device == "cuda" else 1):
        visible = f"{count} GPUs are" if count else "no GPU is"
        raise UserError(f"--device {settings.device}: {visible} visible here; give fewer --processes, or --device cpu")
    encoder, folder = open_encoder(settings, torch.device(settings.device)), ShardFolder(settings.shards)
    done, partial = is_finished(settings.output, encoder.encoding), partial_folder(settings.output)
    parts = [] if done and not settings.verify else plan_parts(encoder, folder, partial / SHAPES)
    if done:
        parts = without_faults(parts, settings.output, console)
        console.print(f"{settings.output} already holds exactly this; nothing to do")
    else:
        samples = sum(len(part.rows) for part in parts)
        disk = estimate_disk(encoder, folder, parts, not settings.statistics)
        announce_disk(disk, samples, settings.output, console)
        partial.mkdir(exist_ok=True)
        _write_json(partial / SETTINGS, asdict(encoder.encoding))
        if settings.buckets:
            save_shapes(parts, partial / SHAPES)
        per_shard = max(entry.samples for entry in folder.shards)
        jobs = plan_jobs(parts, per_shard, partial / "work", settings.batch_size)
        encode(settings, encoder, jobs, console)
        finish(settings, encoder, parts, jobs)
        parts = without_faults(parts, settings.output, console)
        samples = sum(len(part.rows) for part in parts)
        console.print(f"wrote {samples} samples and {STATISTICS} to {settings.output}")
    if settings.verify:
        report_verification(settings, encoder, folder, parts, console)


def report_verification(
    settings: EncodeSettings, encoder: LatentEncoder, folder: ShardFolder, parts: list[Part], console: Console
) -> None:
    """Read the output back, print the result, and raise an error that names the first fault."""
    encoder.codec.load_statistics(settings.output)
    found = verify(encoder, folder, parts, settings.output, settings.verify)
    largest = ", ".join(f"{name} {gap:.1e}" for name, gap in found.largest.items())
    console.print(
        f"read back {found.samples} samples; {found.decoded} decoded: PSNR {found.stored_psnr:.2f} dB, without storing "
        f"{found.direct_psnr:.2f} dB; largest differences: {largest or 'not measured'}"
    )
    for fault in found.faults:
        console.print(f"broken: {fault}", markup=False)
    if found.faults:
        first = found.faults[0]
        raise UserError(f"{settings.output}: {len(found.faults)} faults, the first: {first}; encode it again")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1))


def parse(args: list[str] | None = None) -> EncodeSettings:
    """Read the command line."""
    settings = parse_settings(EncodeSettings, __doc__, args)
    if settings.texts_only and settings.text_encoders:
        raise UserError("--texts-only stores no caption states: give it without --clip and --text-encoder")
    if not settings.text_encoders and not settings.texts_only:
        raise UserError(
            "no text encoder is given: name a run by --clip, or a folder of transformers by --text-encoder, or give "
            "--texts-only for a generator with a caption_tower"
        )
    return settings


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    settings = parse(args)
    with run_lock(beside(settings.output), settings.output):
        encode_latents(settings, Console())


if __name__ == "__main__":
    run(main)
