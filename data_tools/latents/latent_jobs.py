"""Jobs of encode_latents, one for each output shard and pass; none is done twice.

Each job writes a folder below ``OUTPUT.partial/work`` that gets its name when the job is finished, so a kill at any
time leaves nothing incomplete. Which process does a job, and in which order, changes no byte: a batch never crosses the
border of a job.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from data_tools.latents.encode_settings import EncodeSettings
from data_tools.latents.latent_encoder import STATISTICS, Encoded, LatentEncoder, open_encoder, statistics_of
from data_tools.latents.shard_embedding import StoredSample
from data_tools.work.foreign_error import first_line
from data_tools.work.workers import begin_sample, runs_alone, worker_number
from leam_mm.codecs.latent_codec import LatentStatistics
from leam_mm.data.aspect_buckets import ImageSize, Shape, folder_name
from leam_mm.data.image_decoding import image_member
from leam_mm.data.image_file import open_image
from leam_mm.data.shard_index import MANIFEST, ShardFolder, ShardWriter, parse_sample
from leam_mm.errors import UserError
from leam_mm.files import atomic_folder, atomic_write, write_text

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """The samples of one shape, which become one shard folder.

    Args:
        folder: Its name below the output; empty if it is the output itself.
        shape: Height and width of the images.
        rows: Numbers of the samples in the input, ascending.
    """

    folder: str
    shape: Shape
    rows: np.ndarray


@dataclass(frozen=True)
class Job:
    """One output shard of one part.

    Args:
        part: Folder of the part.
        number: Number of the shard.
        shape: Height and width of the images.
        rows: Numbers of the samples in the input.
        output: Folder that appears when the shard is written.
        batch_size: Samples at once.
    """

    part: str
    number: int
    shape: Shape
    rows: np.ndarray
    output: Path
    batch_size: int

    @property
    def encoded(self) -> Path:
        """Folder of the encoded images, one file for each batch; appears when all of them are encoded."""
        return self.output.with_name(self.output.name + ".encoded")

    @property
    def faults(self) -> Path:
        """File with the number, key and reason of each sample of the shard that cannot be read."""
        return self.output.with_name(self.output.name + ".faults.json")

    @property
    def written(self) -> bool:
        """Whether the shard is finished."""
        return (self.output / MANIFEST).is_file()


@dataclass(frozen=True)
class LatentWorker:
    """What a process needs for its jobs.

    Args:
        encoder: The networks.
        folder: The input.
        advance: Called with the number of samples after each batch.
    """

    encoder: LatentEncoder
    folder: ShardFolder
    advance: Callable[[int], object] = lambda count: None


def prepare_worker(settings: EncodeSettings) -> LatentWorker:
    """Load the networks in a new worker process, on a GPU of its own or on one CPU core."""
    if settings.device == "cpu":
        torch.set_num_threads(1)
    device = torch.device(f"cuda:{worker_number()}" if settings.device == "cuda" else settings.device)
    threads = max(1, min(8, (os.cpu_count() or 1) // settings.processes))
    return LatentWorker(open_encoder(settings, device, threads), ShardFolder(settings.shards))


def read_rows(folder: ShardFolder, rows: np.ndarray) -> Iterator[StoredSample]:
    """Give samples by their ascending numbers."""
    return ((key, parse_sample(raw)) for _, key, raw in _read_raw(folder, rows))


def _read_raw(folder: ShardFolder, rows: np.ndarray) -> Iterator[tuple[int, str, bytes]]:
    """Give the number, the key and the bytes of samples by their ascending numbers."""
    starts = np.cumsum([0, *(entry.samples for entry in folder.shards)])
    shards = np.searchsorted(starts, rows, side="right") - 1
    for number in np.unique(shards).tolist():
        with folder.open_shard(number) as shard:
            for row in (rows[shards == number] - starts[number]).tolist():
                yield int(starts[number]) + row, shard.keys[row], shard.raw(row)


def plan_parts(encoder: LatentEncoder, folder: ShardFolder, shapes_file: Path) -> list[Part]:
    """Decide which images go into which folder.

    Args:
        encoder: Its settings give the shapes.
        folder: The input.
        shapes_file: May hold the shape of each image from an interrupted run.
    """
    buckets, sizes = encoder.encoding.aspect_buckets(), encoder.encoding.image_sizes
    if buckets is None:
        rows = np.arange(folder.samples)
        names = [folder_name((size, size)) for size in sizes] if len(sizes) > 1 else [""]
        return [Part(name, (size, size), rows) for name, size in zip(names, sizes, strict=True)]
    if shapes_file.is_file():
        shapes = np.load(shapes_file, allow_pickle=False)
    else:
        found: list[Shape | None] = []
        for _, _, raw in _read_raw(folder, np.arange(folder.samples)):
            try:
                found.append(buckets.assign(*open_image(image_member(parse_sample(raw))).size))
            except Exception:  # Pillow raises many types; the job that decodes the sample records it
                found.append(None)
        common = Counter(shape for shape in found if shape).most_common(1)
        shapes = np.array([shape or (common[0][0] if common else buckets.shapes[0]) for shape in found])
    present = sorted({(int(height), int(width)) for height, width in shapes})
    return [Part(folder_name(shape), shape, np.flatnonzero((shapes == shape).all(1))) for shape in present]


def save_shapes(parts: list[Part], shapes_file: Path) -> None:
    """Save the shape of each image, so that a resumed run need not open all images again."""
    shapes = np.zeros((sum(len(part.rows) for part in parts), 2), np.int64)
    for part in parts:
        shapes[part.rows] = part.shape
    with atomic_write(shapes_file) as temporary, open(temporary, "wb") as file:
        np.save(file, shapes)


def plan_jobs(parts: list[Part], per_shard: int, work: Path, batch_size: int) -> list[Job]:
    """Return all jobs, in the order in which statistics are merged and shards are joined."""
    jobs = []
    for part in parts:
        folder = work / (part.folder or "shards")
        for number, first in enumerate(range(0, len(part.rows), per_shard)):
            rows = part.rows[first : first + per_shard]
            jobs.append(Job(part.folder, number, part.shape, rows, folder / f"{number:05d}", batch_size))
    return jobs


def prefetch(items: Iterator[T]) -> Iterator[T]:
    """Give the same items; a thread makes each while the previous one is used."""
    with ThreadPoolExecutor(1) as maker:
        pending = maker.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = maker.submit(next, items, None)
            yield item


Decoded = tuple[int, StoredSample, torch.Tensor, ImageSize]


def _decode_batches(worker: LatentWorker, job: Job, faults: list[dict[str, Any]]) -> Iterator[list[Decoded]]:
    """Give the samples of each batch that can be read, and add the others to ``faults``."""
    raw = _read_raw(worker.folder, job.rows)
    alone = runs_alone()  # a process has died: one sample after the other shows which of them ended it

    def decode(item: tuple[int, str, bytes]) -> Decoded | str:
        row, key, content = item
        if not begin_sample(row):
            return "decoding it ended two processes"
        try:
            sample = key, parse_sample(content)
            return row, sample, *worker.encoder.decode_one(sample, job.shape)
        except Exception as error:  # any library may fail on a sample of a stranger
            return first_line(error)

    while batch := list(islice(raw, job.batch_size)):
        found = list(map(decode, batch) if alone else worker.encoder.map(decode, batch))
        for (row, key, _), fault in zip(batch, found, strict=True):
            if isinstance(fault, str):
                faults.append({"row": row, "key": key, "reason": fault})
        yield [each for each in found if not isinstance(each, str)]


def _encode_batches(worker: LatentWorker, job: Job) -> Iterator[tuple[list[int], list[StoredSample], Encoded]]:
    """Give each batch of samples that can be read, by their numbers, with its encoded images."""
    faults: list[dict[str, Any]] = []
    for batch in prefetch(_decode_batches(worker, job, faults)):
        if batch:
            rows, samples, images, sizes = (list(column) for column in zip(*batch, strict=True))
            yield rows, samples, worker.encoder.encode_images(torch.stack(images), sizes)
    if faults:
        write_text(job.faults, json.dumps(faults))


@torch.no_grad()
def measure(worker: LatentWorker, job: Job) -> None:
    """Encode the images of a shard, and keep the result with the statistics of each batch until it is written."""
    with atomic_folder(job.encoded) as folder:
        for number, (rows, samples, encoded) in enumerate(_encode_batches(worker, job)):
            part = statistics_of(encoded)
            moments = {
                "row": np.array(rows),
                "count": part.count,
                "mean": part.mean.numpy(),
                "deviation": part.deviation.numpy(),
            }
            np.savez(folder / f"{number:05d}.npz", **encoded, **moments)  # type: ignore[arg-type]
            worker.advance(len(samples))


def merge_statistics(jobs: list[Job]) -> LatentStatistics:
    """Merge the statistics batch by batch, in the order of the jobs, whichever process measured them."""
    merged: LatentStatistics | None = None
    for job in jobs:
        for file in sorted(job.encoded.glob("*.npz")):
            with np.load(file, allow_pickle=False) as kept:
                mean, deviation = torch.from_numpy(kept["mean"]), torch.from_numpy(kept["deviation"])
                part = LatentStatistics(int(kept["count"]), mean, deviation)
            merged = part if merged is None else merged.merge(part)
    if merged is None:
        raise no_sample(jobs)
    return merged


def no_sample(jobs: list[Job]) -> UserError:
    """Return the error of a data set of which no sample can be read."""
    first = next((fault for job in jobs for fault in read_faults(job)), {"reason": "it holds none"})
    reason = first["reason"].removesuffix("; run data_tools/check_shards.py on the folder")
    return UserError(f"no sample can be read, the first: {reason}; run data_tools/check_shards.py on the folder")


def read_faults(job: Job) -> list[dict[str, Any]]:
    """Return the samples of a shard that cannot be read."""
    return json.loads(job.faults.read_text(encoding="utf-8")) if job.faults.is_file() else []


def _read_batches(worker: LatentWorker, job: Job) -> Iterator[tuple[list[int], list[StoredSample], Encoded]]:
    """Give each batch of samples with its images as ``measure`` encoded them."""
    dropped = [fault["row"] for fault in read_faults(job)]
    samples = read_rows(worker.folder, np.setdiff1d(job.rows, dropped))
    for file in sorted(job.encoded.glob("*.npz")):
        with np.load(file, allow_pickle=False) as kept:
            encoded = {name: kept[name] for name in kept.files if name not in ("row", "count", "mean", "deviation")}
            rows = kept["row"].tolist()
        yield rows, list(islice(samples, len(rows))), encoded


@torch.no_grad()
def write(worker: LatentWorker, job: Job) -> None:
    """Write one shard, and delete what was kept for it."""
    worker.encoder.codec.load_statistics(job.output.parents[2] / STATISTICS)
    batches = prefetch(_read_batches(worker, job)) if job.encoded.is_dir() else _encode_batches(worker, job)
    first = next(batches, None)
    if first is None:  # no sample can be read: an empty manifest marks the job as done
        write_text(job.output / MANIFEST, "")
        return
    with ShardWriter(job.output, len(job.rows), card=False) as writer:
        for _, samples, encoded in chain([first], batches):
            for (key, _), members in zip(samples, worker.encoder.write_members(samples, encoded), strict=True):
                writer.write(key, members)
            worker.advance(len(samples))
    shutil.rmtree(job.encoded, ignore_errors=True)
