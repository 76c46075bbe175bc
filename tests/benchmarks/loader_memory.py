"""Memory of a loader's processes over twenty epochs: our PairsModule, and open_clip_train's get_wds_dataset.

Each side runs in a fresh process with its workers, and after every epoch the memory of all of them is added up: pages
that several share are counted once in all (PSS, of Linux), elsewhere only what each has alone (USS).
"""

import multiprocessing
import statistics
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import loader
import measure
import psutil
import torch
from processes import in_own_process, tree_memory
from rich.table import Table
from toy_input import captions, write_tokenizer

from leam_mm.data.batch import PlannedBatches, batch_loader
from leam_mm.data.loader_workers import FromPosition
from leam_mm.errors import UserError, run

MIB = 2**20
SETTLED = 8  # epochs after which nothing should grow any more: before, the allocator's heap finds its size


def ours_epochs(shards: Path, tokenizer: Path, samples: int, workers: int, epochs: int) -> Iterator[int]:
    """Samples of each epoch, from one loader that goes on as in a training."""
    data = loader.open_ours(shards, tokenizer, workers)
    assert data.train_plan is not None
    steps = samples // loader.BATCH
    batches = PlannedBatches(data.train_plan, data.decode, loader.BATCH, 0, 1)
    # As a training does, the loader has further batches under way at each epoch's end.
    stream = iter(batch_loader(batches, FromPosition(0, (epochs + 1) * steps), workers))
    for _ in range(epochs):
        yield sum(len(batch["image"]) for batch in islice(stream, steps))


def peer_epochs(shards: Path, tokenizer: Path, samples: int, workers: int, epochs: int) -> Iterator[int]:
    """Samples of each epoch, from workers that persist."""
    info = loader.open_peer(shards, tokenizer, samples, workers)
    for epoch in range(epochs):
        info.set_epoch(epoch)
        yield sum(len(image) for image, _ in info.dataloader)


def watch(side: str, *settings: Any) -> list[tuple[int, int]]:
    """Run one side; (samples, bytes of all its processes) of each epoch."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of the workers, as on every Linux: the peer's cannot spawn
    epochs = {"ours": ours_epochs, "peer": peer_epochs}[side]
    return [(count, tree_memory(psutil.Process())[0]) for count in epochs(*settings)]


def describe(label: str, found: list[tuple[int, int]]) -> dict[str, Any]:
    """Memory after each epoch, and how it goes on growing, by the line through the later epochs."""
    mib = [size / MIB for _, size in found]
    later = mib[SETTLED - 1 :]
    slope = statistics.linear_regression(range(len(later)), later).slope
    return {
        "label": label,
        "unit": "MiB",
        "after_each_epoch": mib,
        "growth_per_epoch": slope,
        "last_less_settled": mib[-1] - mib[SETTLED - 1],
        "highest": max(mib),
    }


@measure.benchmark(
    repeats=1,
    workers=(2, "loader processes of each side"),
    samples=(200, "pictures of an epoch"),
    epochs=(20, f"more than {SETTLED + 2}"),
)
def main(settings: measure.Settings) -> list[Path]:
    """Measure both, one after the other."""
    if settings.epochs < SETTLED + 3:
        raise UserError(f"--epochs {settings.epochs}: growth is looked at from epoch {SETTLED} on; give {SETTLED + 3}")
    whole = loader.BATCH * loader.SHARDS
    samples = max(settings.samples // whole, 1) * whole
    with tempfile.TemporaryDirectory() as scratch:
        shards = loader.write_pairs(Path(scratch) / "shards", samples)
        tokenizer = write_tokenizer(Path(scratch) / "tokenizer", loader.CONTEXT, captions(500))
        work = (shards, tokenizer, samples, settings.workers, settings.epochs)
        found = {side: in_own_process(watch, side, *work) for side in ("ours", "peer")}
    counts = {side: [count for count, _ in epochs] for side, epochs in found.items()}
    differing = sum(abs(a - b) for a, b in zip(counts["ours"], counts["peer"], strict=True))
    same = [measure.require_same(f"samples of {settings.epochs} epochs, number that differs", differing, 0)]
    ours = describe("PairsModule", found["ours"])
    peer = describe("open_clip_train get_wds_dataset", found["peer"])
    table = Table(
        "", "MiB after 1", f"after {SETTLED}", f"after {settings.epochs}", "MiB an epoch", title="loader_memory"
    )
    for side in (ours, peer):
        mib = side["after_each_epoch"]
        table.add_row(
            side["label"], *(f"{mib[at]:,.0f}" for at in (0, SETTLED - 1, -1)), f"{side['growth_per_epoch']:+.2f}"
        )
    content = {
        "ours": ours,
        "peer": peer,
        "ratio": peer["highest"] / ours["highest"],
        "ratio_means": "peer's highest memory over ours: above 1 ours needs less",
        "same_work": same,
        "notes": (
            f"{settings.workers} workers, {samples} samples an epoch; growth: the slope from epoch {SETTLED} on; each "
            "worker of the peer keeps up to 5,000 encoded samples to shuffle them, ours reads by index and keeps none"
        ),
    }
    return [measure.write_result(content, settings, table)]


if __name__ == "__main__":
    run(main)
