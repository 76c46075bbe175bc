"""The work of encode_latents in jobs of one output shard each, for one process or several; nothing is done twice.

Below ``OUTPUT.partial/work`` each job has a folder that gets its name when the job is finished, so that a kill at any
moment leaves nothing half. Which process does a job, and in which order, changes no byte: its batches are its own.
"""

import argparse
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures import ThreadPoolExecutor as Threads
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from data_tools.latents.latent_encoder import STATISTICS, LatentEncoder, Pictures, Sample, open_encoder, statistics_of
from leam_mm.codecs.latent_codec import LatentStatistics
from leam_mm.data.aspect_buckets import Shape, folder_name
from leam_mm.data.image_decoding import image_member, open_picture
from leam_mm.data.shard_index import MANIFEST, ShardFolder, ShardWriter, parse_sample, read_samples
from leam_mm.errors import UserError

T = TypeVar("T")
Advance = Callable[[int], object]


@dataclass(frozen=True)
class Part:
    """The samples of one shape, which make one shard folder.

    Args:
        folder: Its name below the output; empty where the output itself is the only one.
        shape: Height and width of the pictures.
        rows: Of the input, ascending.
    """

    folder: str
    shape: Shape
    rows: np.ndarray


@dataclass(frozen=True)
class Job:
    """One shard of one part.

    Args:
        part: Folder of the part.
        number: Of the shard.
        shape: Height and width of the pictures.
        rows: Of the input that go into this shard.
        place: Folder that appears when the shard is written.
        batch_size: Samples at once.
    """

    part: str
    number: int
    shape: Shape
    rows: np.ndarray
    place: Path
    batch_size: int

    @property
    def pictures(self) -> Path:
        """Folder of what was seen in the pictures, one file for each batch; appears when all of them were seen."""
        return self.place.with_name(self.place.name + ".pictures")

    @property
    def written(self) -> bool:
        """Whether the shard is finished."""
        return (self.place / MANIFEST).is_file()


def read_rows(folder: ShardFolder, rows: np.ndarray) -> Iterator[Sample]:
    """Key and members of samples by their ascending numbers."""
    starts = np.cumsum([0, *(entry.samples for entry in folder.shards)])
    shards = np.searchsorted(starts, rows, side="right") - 1
    for number in np.unique(shards).tolist():
        index = folder.index(number)
        with open(folder.tar(number), "rb") as file:
            for place in (rows[shards == number] - starts[number]).tolist():
                file.seek(int(index.offset[place]))
                yield index.keys[place], parse_sample(file.read(int(index.size[place])))


def plan_parts(encoder: LatentEncoder, folder: ShardFolder, known: Path) -> list[Part]:
    """Which pictures go into which folder.

    Args:
        encoder: Says the shapes.
        folder: The input.
        known: File that may hold the pictures' shapes from an interrupted run.
    """
    buckets, sizes = encoder.encoding.aspect_buckets(), encoder.encoding.image_sizes
    if buckets is None:
        rows = np.arange(folder.samples)
        names = [folder_name((size, size)) for size in sizes] if len(sizes) > 1 else [""]
        return [Part(name, (size, size), rows) for name, size in zip(names, sizes, strict=True)]
    if known.is_file():
        shapes = np.load(known, allow_pickle=False)
    else:
        found = []
        for key, members in read_samples(folder.path):
            try:
                found.append(buckets.assign(*open_picture(image_member(members)).size))
            except (UserError, OSError, ValueError, SyntaxError) as error:
                raise UserError(f"sample {key}: unreadable image ({error}); run data_tools/check_shards.py") from None
        shapes = np.array(found)
    present = sorted({(int(height), int(width)) for height, width in shapes})
    return [Part(folder_name(shape), shape, np.flatnonzero((shapes == shape).all(1))) for shape in present]


def keep_shapes(parts: list[Part], known: Path) -> None:
    """Write the pictures' shapes down, so that an interrupted run need not look at all pictures again."""
    shapes = np.zeros((sum(len(part.rows) for part in parts), 2), np.int64)
    for part in parts:
        shapes[part.rows] = part.shape
    with open(known.with_suffix(".tmp"), "wb") as file:
        np.save(file, shapes)
    os.replace(known.with_suffix(".tmp"), known)


def plan_jobs(parts: list[Part], per_shard: int, work: Path, batch_size: int) -> list[Job]:
    """All jobs, in the order in which their statistics are merged and their shards are put together."""
    jobs = []
    for part in parts:
        place = work / (part.folder or "shards")
        for number, first in enumerate(range(0, len(part.rows), per_shard)):
            rows = part.rows[first : first + per_shard]
            jobs.append(Job(part.folder, number, part.shape, rows, place / f"{number:05d}", batch_size))
    return jobs


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made while the one before it is used."""
    with Threads(1) as maker:
        pending = maker.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = maker.submit(next, items, None)
            yield item


def _seen(encoder: LatentEncoder, job: Job, folder: ShardFolder) -> Iterator[tuple[list[Sample], Pictures]]:
    """Each batch of samples, and what the networks see in its pictures."""
    rows = read_rows(folder, job.rows)
    batches = iter(lambda: list(islice(rows, job.batch_size)), [])
    decoded = ((samples, encoder.decode(samples, job.shape)) for samples in batches)
    for samples, (images, sizes) in ahead(decoded):
        yield samples, encoder.look(images, sizes)


@torch.no_grad()
def measure(encoder: LatentEncoder, job: Job, folder: ShardFolder, advance: Advance) -> None:
    """Look at the pictures of a shard; keep what was seen, with the statistics of each batch, until it is written."""
    partial = job.pictures.with_name(job.pictures.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for number, (samples, seen) in enumerate(_seen(encoder, job, folder)):
        part = statistics_of(seen)
        moments = {"count": part.count, "mean": part.mean.numpy(), "deviation": part.deviation.numpy()}
        np.savez(partial / f"{number:05d}.npz", **seen, **moments)  # type: ignore[arg-type]
        advance(len(samples))
    os.replace(partial, job.pictures)


def merge_statistics(jobs: list[Job]) -> LatentStatistics:
    """Statistics of all latents: batch after batch, shard after shard, so that it does not matter who measured them."""
    merged: LatentStatistics | None = None
    for job in jobs:
        for file in sorted(job.pictures.glob("*.npz")):
            with np.load(file, allow_pickle=False) as kept:
                mean, deviation = torch.from_numpy(kept["mean"]), torch.from_numpy(kept["deviation"])
                part = LatentStatistics(int(kept["count"]), mean, deviation)
            merged = part if merged is None else merged.merge(part)
    assert merged is not None
    return merged


def _kept(job: Job, folder: ShardFolder) -> Iterator[tuple[list[Sample], Pictures]]:
    """Each batch of samples, and what was seen in its pictures before."""
    rows = read_rows(folder, job.rows)
    for file in sorted(job.pictures.glob("*.npz")):
        with np.load(file, allow_pickle=False) as kept:
            seen = {name: kept[name] for name in kept.files if name not in ("count", "mean", "deviation")}
        yield list(islice(rows, len(seen["size"]))), seen


@torch.no_grad()
def write(encoder: LatentEncoder, job: Job, folder: ShardFolder, advance: Advance) -> None:
    """Write one shard; what was measured for it is thrown away."""
    work = job.place.parents[1]
    encoder.codec.load_statistics(work.parent / STATISTICS)
    batches = ahead(_kept(job, folder)) if job.pictures.is_dir() else _seen(encoder, job, folder)
    with ShardWriter(job.place, len(job.rows)) as writer:
        for samples, seen in batches:
            for (key, _), members in zip(samples, encoder.write_members(samples, seen), strict=True):
                writer.write(key, members)
            advance(len(samples))
    shutil.rmtree(job.pictures, ignore_errors=True)


class Workers:
    """Does jobs in this process, or in several that have the networks of their own.

    Args:
        encoder: Of this process.
        options: Of the command line, from which the others load theirs.
    """

    def __init__(self, encoder: LatentEncoder, options: argparse.Namespace) -> None:
        """Start nothing yet; see the class for the arguments."""
        self.encoder, self.options, self.folder = encoder, options, ShardFolder(options.shards)
        self._pool: ProcessPoolExecutor | None = None
        self._others: set[Any] = set(multiprocessing.active_children())

    def run(self, task: Callable[..., None], jobs: list[Job], advance: Advance) -> None:
        """Do a task for each job; the order is anyone's."""
        if self.options.processes == 1:
            for job in jobs:
                task(self.encoder, job, self.folder, advance)
            return
        if self._pool is None:
            context = multiprocessing.get_context("spawn")  # CUDA and threads do not survive a fork
            counter = context.Value("i", 0)
            count = self.options.processes
            self._pool = ProcessPoolExecutor(count, context, _start, (self.options, counter))
        try:
            done = {self._pool.submit(_do, task, job): job for job in jobs}
            for future in as_completed(done):
                future.result()
                advance(len(done[future].rows))
        except BrokenProcessPool:
            raise UserError(
                "a process ended in the midst of its work (out of memory?): give fewer --processes or a smaller "
                "--batch-size; the same command goes on where this one ended"
            ) from None

    def close(self, wait: bool) -> None:
        """End the processes, without waiting for what they do after an error."""
        if self._pool is None:
            return
        self._pool.shutdown(wait=wait, cancel_futures=True)
        if not wait:
            for process in set(multiprocessing.active_children()) - self._others:
                process.kill()  # a job that is cut off leaves nothing behind that counts


_own: dict[str, Any] = {}  # of a process of Workers: its networks and the input


def _start(options: argparse.Namespace, counter: Any) -> None:
    """Load the networks of a new process, on its own GPU or on one CPU core."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the keyboard's is for the one that ends the others
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    with counter.get_lock():
        rank, counter.value = counter.value, counter.value + 1
    if options.device == "cpu":
        torch.set_num_threads(1)
    device = torch.device(f"cuda:{rank}" if options.device == "cuda" else options.device)
    threads = max(1, min(8, (os.cpu_count() or 1) // options.processes))
    _own["encoder"], _own["folder"] = open_encoder(options, device, threads), ShardFolder(options.shards)


def _end_with(parent: Any) -> None:
    """A process whose parent was killed must not go on: nobody would hear of it, and it holds a GPU."""
    wait([parent.sentinel])
    os._exit(1)


def _do(task: Callable[..., None], job: Job) -> None:
    task(_own["encoder"], job, _own["folder"], lambda _: None)
