"""The parallel passes of vet_shards: one job for each shard, done by one process or several, never twice.

A job's folder appears when the job is finished, so a kill at any moment leaves nothing half; which process does a job,
and in which order, changes no byte.
"""

import io
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from data_tools.samples.image_repair import encode_image
from data_tools.vetting.read_samples import IMAGES
from data_tools.vetting.shard_findings import Stage, read_changes, review_shard
from data_tools.vetting.vetting_rule import VettingRule
from leam_mm.data.shard_index import ShardFolder, ShardWriter, parse_sample
from leam_mm.errors import UserError


@dataclass(frozen=True)
class VettingJob:
    """The work on one shard.

    Args:
        shards: Folder of the shard.
        number: Of the shard.
        place: Folder that appears when the job is done.
        stage: Samples and what is known of them; without steps they are written.
    """

    shards: Path
    number: int
    place: Path
    stage: Stage


def do(job: VettingJob, folder: ShardFolder, rules: list[VettingRule]) -> None:
    """Review a shard, or write it anew."""
    if job.stage.steps:
        review_shard(folder, job.number, rules, job.stage, job.place)
    else:
        write_shard(job, folder)


def write_shard(job: VettingJob, folder: ShardFolder) -> None:
    """Write the kept samples of a shard with what the rules changed in them; untouched ones keep their bytes."""
    changes, index, rows = read_changes(job.stage), folder.index(job.number), job.stage.rows or []
    with ShardWriter(job.place, len(rows)) as writer, open(folder.tar(job.number), "rb") as file:
        for row in rows:
            file.seek(int(index.offset[row]))
            members = parse_sample(file.read(int(index.size[row])))
            change = changes.get(row, {"record": {}, "content": None})
            if change["record"]:
                record = json.loads(members["json"]) | change["record"]
                members["json"] = json.dumps(record, ensure_ascii=False, sort_keys=True).encode()
            if change["content"] is not None:
                kind = next(name for name in IMAGES if name in members)
                with Image.open(io.BytesIO(change["content"]), formats=["PNG"]) as image:
                    members[kind] = encode_image(image, kind)
            writer.write(index.keys[row], members)


class Workers:
    """Does jobs in this process, or in several, which are started once.

    Args:
        rules: All, in the order in which they are asked.
        processes: How many; 1 is this one.
    """

    def __init__(self, rules: list[VettingRule], processes: int) -> None:
        """Start nothing yet; see the class for the arguments."""
        self.rules, self.processes = rules, processes
        self._pool: ProcessPoolExecutor | None = None
        self._others: set[Any] = set(multiprocessing.active_children())

    def __enter__(self) -> "Workers":
        """Return itself."""
        return self

    def run(self, jobs: list[VettingJob], advance: Callable[[], object]) -> None:
        """Do all jobs that are not done yet; the order is anyone's.

        Raises:
            UserError: A process was brought down.
        """
        waiting = [job for job in jobs if not job.place.is_dir()]
        for _ in range(len(jobs) - len(waiting)):
            advance()
        if self.processes == 1 or len(waiting) < 2:
            folders = {path: ShardFolder(path) for path in {job.shards for job in waiting}}
            for job in waiting:
                do(job, folders[job.shards], self.rules)
                advance()
            return
        if self._pool is None:
            # Spawned, because forking a process that has threads (the progress bar, pyarrow) may hang.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.processes, context, _start, (self.rules,))
        job = waiting[0]
        try:
            done = {self._pool.submit(_do, job): job for job in waiting}
            for future in as_completed(done):
                job = done[future]
                future.result()
                advance()
        except BrokenProcessPool:
            raise UserError(
                f"a process ended in the midst of its work (out of memory?), perhaps on shard {job.number} of "
                f"{job.shards}: give fewer --processes; the same command goes on where this one ended"
            ) from None

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """End the processes, without waiting for what they do after an error."""
        if self._pool is None:
            return
        self._pool.shutdown(wait=kind is None, cancel_futures=True)
        if kind is not None:
            for process in set(multiprocessing.active_children()) - self._others:
                process.kill()  # a job that is cut off leaves nothing behind that counts


_own: dict[str, Any] = {}  # of a process of the pool: the rules, and the folders that it opened


def _start(rules: list[VettingRule]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the keyboard's is for the one that ends the others
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    pa.set_cpu_count(1)
    _own.update(rules=rules, folders={})


def _end_with(parent: Any) -> None:
    """A process whose parent was killed must not go on: nobody would hear of it."""
    wait([parent.sentinel])
    os._exit(1)


def _do(job: VettingJob) -> None:
    folders = _own["folders"]
    if job.shards not in folders:
        folders[job.shards] = ShardFolder(job.shards)
    do(job, folders[job.shards], _own["rules"])
