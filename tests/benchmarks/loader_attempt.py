"""One attempt of `resume_loaders`: read a loader as a training does, and save its state beside the position.

An attempt is a process group that is forked from the benchmark, one process a rank. The ranks make each step together,
as in distributed training, and the first one saves.
"""

import multiprocessing
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import batch_record
import torch
import torch.distributed as dist
from streaming_peers import Item, load

from leam_mm.data.batch import Decoding, PlannedBatches, Sample, batch_loader
from leam_mm.data.loader_workers import FromPosition
from leam_mm.data.sample_plan import SamplePlan, Source
from leam_mm.files import atomic_write

STEP = 0.02  # seconds that a step takes


@dataclass
class Reading:
    """What an attempt reads.

    Args:
        name: ``ours`` or a streaming peer.
        data: Folder in its format.
        state: File of the saved state.
        batch: Samples per step, over all ranks.
        epochs: After which it ends.
        every: Steps between two saves.
    """

    name: str
    data: Path
    state: Path
    batch: int
    epochs: int
    every: int


class Numbers(Decoding):
    """A sample of ours is its number."""

    def __call__(self, key: str, members: dict[str, bytes], index: int) -> Sample:
        """Nothing is decoded."""
        return {"number": int(key)}

    def collate(self, samples: list[Sample]) -> Any:
        """As ``numbers``."""
        return numbers(samples)


class PlannedLoader:
    """Our loader, put together as PlannedModule does it; its state is the samples seen, which SamplePosition counts."""

    def __init__(self, folder: Path, batch: int, rank: int, ranks: int, workers: int) -> None:
        """``batch`` counts the samples of all ranks."""
        self.plan, self.workers, self.seen, self.batch = SamplePlan([Source(folder)], 0, True), workers, 0, batch
        self.batches = PlannedBatches(self.plan, Numbers(0), batch, rank, ranks)

    def __iter__(self) -> Any:
        """The rest of the epoch."""
        end = (self.seen // self.plan.samples + 1) * self.plan.samples
        sampler = FromPosition(self.seen // self.batch, end // self.batch)
        for batch in batch_loader(self.batches, sampler, self.workers):
            self.seen += self.batch
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The position."""
        return {"samples_seen": self.seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue there."""
        self.seen = state["samples_seen"]


def numbers(items: list[Item]) -> torch.Tensor:
    """A batch is the numbers of its samples."""
    return torch.tensor([int(item["number"]) for item in items])


def as_it_is(item: Item) -> Item:
    """Nothing is decoded."""
    return item


class Attempt(multiprocessing.get_context("fork").Process):  # type: ignore[name-defined,misc]
    """A process group that reads from the saved state to the last epoch; `resume.killed` takes it as it takes a Popen.

    Args:
        reading: What it reads.
        record: Path of the batches; each rank appends its number, and ``record.log`` is their output.
        workers: Loader processes per rank.
        ranks: Number of ranks.
        rank: Of this process; the first one starts the others.
    """

    def __init__(self, reading: Reading, record: Path, workers: int, ranks: int, rank: int = 0) -> None:
        """See the class."""
        super().__init__()
        self.reading, self.record, self.workers, self.ranks, self.rank = reading, record, workers, ranks, rank

    def poll(self) -> int | None:
        """The exit code, once there is one."""
        return self.exitcode

    def wait(self) -> int | None:
        """The exit code."""
        self.join()
        return self.exitcode

    def run(self) -> None:
        """In the new process."""
        if self.rank == 0:
            os.setsid()
            log = os.open(f"{self.record}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
        others = [] if self.rank else [Attempt(*self._parts(), rank) for rank in range(1, self.ranks)]
        for other in others:
            other.start()
        ranks, rank = str(self.ranks), str(self.rank)
        os.environ |= {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "RANK": rank, "LOCAL_RANK": rank}
        self.read()
        if any(other.wait() for other in others):
            raise SystemExit(1)

    def _parts(self) -> tuple[Reading, Path, int, int]:
        return self.reading, self.record, self.workers, self.ranks

    def read(self) -> None:
        """Steps, each recorded when it is made."""
        reading, share = self.reading, self.reading.batch // self.ranks
        if self.ranks > 1:
            meeting = f"file://{self.record}.meeting"
            dist.init_process_group("gloo", meeting, rank=self.rank, world_size=self.ranks)
        if reading.name == "ours":
            loader: Any = PlannedLoader(reading.data, reading.batch, self.rank, self.ranks, self.workers)
        else:
            loader = load(reading.name).open_loader(reading.data, share, self.workers, as_it_is, numbers)
        epoch, step = 0, 0
        if reading.state.exists():
            saved = torch.load(reading.state)
            epoch, step = saved["position"]
            loader.load_state_dict(saved["loader"])
        while epoch < reading.epochs:
            for samples in loader:
                time.sleep(STEP)
                batch_record.write(f"{self.record}.{self.rank}", [epoch, step], samples.tolist(), 0.0)
                step += 1
                if self.ranks > 1:
                    dist.barrier()
                if self.rank == 0 and step % reading.every == 0:
                    with atomic_write(reading.state) as path:
                        torch.save({"position": [epoch, step], "loader": loader.state_dict()}, path)
            epoch, step = epoch + 1, 0
