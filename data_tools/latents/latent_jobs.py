"""Jobs of encode_latents, one for each output shard and pass; none is done twice.

Each job writes a folder below ``OUTPUT.partial/work`` that gets its name when the job is finished, so a kill at any
time leaves nothing incomplete. Which process does a job, and in which order, changes no byte: a batch never crosses the
border of a job.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from data_tools.latents.encode_settings import EncodeSettings
from data_tools.latents.latent_encoder import STATISTICS, Encoded, LatentEncoder, open_encoder, statistics_of
from data_tools.latents.shard_embedding import StoredSample
from data_tools.work.workers import worker_number
from leam_mm.codecs.latent_codec import LatentStatistics
from leam_mm.data.aspect_buckets import Shape, folder_name
from leam_mm.data.image_decoding import image_member
from leam_mm.data.image_file import open_image
from leam_mm.data.shard_index import MANIFEST, ShardFolder, ShardWriter, parse_sample, read_samples
from leam_mm.errors import UserError
from leam_mm.files import atomic_folder, atomic_write

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
    starts = np.cumsum([0, *(entry.samples for entry in folder.shards)])
    shards = np.searchsorted(starts, rows, side="right") - 1
    for number in np.unique(shards).tolist():
        index = folder.index(number)
        with open(folder.tar(number), "rb") as file:
            for row in (rows[shards == number] - starts[number]).tolist():
                file.seek(int(index.offset[row]))
                yield index.keys[row], parse_sample(file.read(int(index.size[row])))


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
        found = []
        for key, members in read_samples(folder.path):
            try:
                found.append(buckets.assign(*open_image(image_member(members)).size))
            except (UserError, OSError, ValueError, SyntaxError) as error:
                raise UserError(f"sample {key}: unreadable image ({error}); run data_tools/check_shards.py") from None
        shapes = np.array(found)
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


def _encode_batches(worker: LatentWorker, job: Job) -> Iterator[tuple[list[StoredSample], Encoded]]:
    """Give each batch of samples with its encoded images."""
    rows = read_rows(worker.folder, job.rows)
    batches = iter(lambda: list(islice(rows, job.batch_size)), [])
    decoded = ((samples, worker.encoder.decode(samples, job.shape)) for samples in batches)
    for samples, (images, sizes) in prefetch(decoded):
        yield samples, worker.encoder.encode_images(images, sizes)


@torch.no_grad()
def measure(worker: LatentWorker, job: Job) -> None:
    """Encode the images of a shard, and keep the result with the statistics of each batch until it is written."""
    with atomic_folder(job.encoded) as folder:
        for number, (samples, encoded) in enumerate(_encode_batches(worker, job)):
            part = statistics_of(encoded)
            moments = {"count": part.count, "mean": part.mean.numpy(), "deviation": part.deviation.numpy()}
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
    assert merged is not None
    return merged


def _read_batches(worker: LatentWorker, job: Job) -> Iterator[tuple[list[StoredSample], Encoded]]:
    """Give each batch of samples with its images as ``measure`` encoded them."""
    rows = read_rows(worker.folder, job.rows)
    for file in sorted(job.encoded.glob("*.npz")):
        with np.load(file, allow_pickle=False) as kept:
            encoded = {name: kept[name] for name in kept.files if name not in ("count", "mean", "deviation")}
        yield list(islice(rows, len(encoded["size"]))), encoded


@torch.no_grad()
def write(worker: LatentWorker, job: Job) -> None:
    """Write one shard, and delete what was kept for it."""
    worker.encoder.codec.load_statistics(job.output.parents[2] / STATISTICS)
    batches = prefetch(_read_batches(worker, job)) if job.encoded.is_dir() else _encode_batches(worker, job)
    with ShardWriter(job.output, len(job.rows)) as writer:
        for samples, encoded in batches:
            for (key, _), members in zip(samples, worker.encoder.write_members(samples, encoded), strict=True):
                writer.write(key, members)
            worker.advance(len(samples))
    shutil.rmtree(job.encoded, ignore_errors=True)
