"""Seconds that training waits for a checkpoint of 1 GB: an asynchronous save against one in step with training.

Both write the same bytes to the same disk. The file of the asynchronous save is complete before the next save begins.
Beside the wait stand the seconds until then, the first save, which allocates the memory of the copy, and how much
slower a loop of matrix products runs meanwhile.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import torch

from leam_mm.callbacks.asynchronous_save import AsynchronousCheckpointIO
from leam_mm.callbacks.save_failures import RetriedCheckpointIO
from leam_mm.checkpoint import EVIDENCE, read_checkpoint
from leam_mm.errors import run
from leam_mm.files import file_sha256

TENSORS = 150  # weights and two moments of fifty layers
EDGE = 512  # of the matrices that stand for training
SHARE = 0.1  # of a synchronous save, which an asynchronous one may take


def state(megabytes: int, device: str) -> dict[str, Any]:
    """A checkpoint of so many tensors and bytes."""
    torch.manual_seed(0)
    weights = {f"w{number}": torch.randn(megabytes * 250_000 // TENSORS, device=device) for number in range(TENSORS)}
    return {"state_dict": weights, EVIDENCE: {"config": "model: {}", "samples_seen": 1}, "global_step": 1}


def timed(work: Callable[[], object], timing: measure.Timing) -> None:
    """Append the seconds of one call."""
    wall, cpu = time.perf_counter(), measure.cpu_seconds()
    work()
    timing.wall.append(time.perf_counter() - wall)
    timing.cpu.append(measure.cpu_seconds() - cpu)


def products_per_second(while_true: Callable[[], bool], device: str) -> float:
    """Run matrix products as long as a condition holds."""
    left, right = torch.randn(2, EDGE, EDGE, device=device)
    count, begin = 0, time.perf_counter()
    while while_true():
        torch.mm(left, right).sum().item()
        count += 1
    return count / (time.perf_counter() - begin)


def compare(folder: Path, settings: Any) -> Path:
    """Save in turns, each side in a folder of its own."""
    content = state(settings.megabytes, settings.device)
    background, in_step = AsynchronousCheckpointIO(keep=1, patience=600.0), RetriedCheckpointIO(keep=1)
    paths = folder / "background" / "last.ckpt", folder / "in_step" / "last.ckpt"
    first, ours, peer = measure.Timing(), measure.Timing(), measure.Timing()
    timed(lambda: background.save_checkpoint(content, paths[0]), first)
    background.finish()
    in_step.save_checkpoint(content, paths[1])
    if settings.device == "cpu":
        difference = float(file_sha256(paths[0]) != file_sha256(paths[1]))
    else:  # the tensors of one file are marked as of the GPU
        states = [read_checkpoint(path)["state_dict"] for path in paths]
        difference = float(not all(torch.equal(value, states[1][name]) for name, value in states[0].items()))
    same = [measure.require_same("files of both saves, 0 if equal", difference, 0.0)]
    complete, slower = [], []
    (busy, total), own = measure._machine(), measure.cpu_seconds()
    for number in range(settings.repeats):
        content["global_step"] = number
        for side in range(2) if number % 2 == 0 else (1, 0):
            if side == 1:
                timed(lambda: in_step.save_checkpoint(content, paths[1]), peer)
                continue
            begin = time.perf_counter()
            timed(lambda: background.save_checkpoint(content, paths[0]), ours)
            speed = products_per_second(lambda: not background.finish(0.0), settings.device)
            complete.append(time.perf_counter() - begin)
            end = time.perf_counter() + complete[-1]
            slower.append(products_per_second(lambda end=end: time.perf_counter() < end, settings.device) / speed)  # type: ignore[misc]
    busy_after, total_after = measure._machine()
    others = max(0.0, (busy_after - busy - (measure.cpu_seconds() - own)) / max(total_after - total, 1e-9))
    failures = [writer.failure for writer in (background, in_step) if writer.failure]
    same.append(measure.require_same(f"saves that failed {failures}", len(failures), 0))
    shares = [one / other for one, other in zip(ours.wall, peer.wall, strict=True)]
    found = measure.Comparison(ours, peer, min(1.0, others))
    further = {
        "share": statistics.median(shares),
        "shares": shares,
        "share_wanted": SHARE,
        "reached": statistics.median(shares) <= SHARE,
        "first_save_seconds": first.wall[0],
        "seconds_until_complete": complete,
        "slower_meanwhile": statistics.median(slower),
        "megabytes": settings.megabytes,
    }
    notes = (
        f"an asynchronous save holds training for {further['share']:.1%} of a synchronous one (median of "
        f"{settings.repeats}); wanted: at most {SHARE:.0%}. The first one took {first.wall[0]:.2f} s. A loop on one "
        f"thread runs {further['slower_meanwhile']:.2f} times slower until the file is complete"
    )
    labels = "asynchronous save", "save in step with training"
    gigabytes = settings.megabytes / 1000, "GB"
    return measure.write_comparison("checkpoint_saves", labels, found, gigabytes, same, settings, notes, further)


@measure.benchmark(
    repeats=5,
    megabytes=(1000, "size of the checkpoint"),
    folder=(Path("runs/bench"), "folder on the disk that is written to"),
)
def main(settings: Any) -> list[Path]:
    """Time both and write the result."""
    settings.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        return [compare(Path(folder), settings)]


if __name__ == "__main__":
    run(main)
