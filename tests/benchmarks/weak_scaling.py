"""Weak scaling of train.py from one rank to two on one machine: each rank has as many samples, one thread, and gloo.

Runs of one rank and of two ranks take turns, each a process of its own. The time of a step is that of StepClock, mean
of the steps after the first ten. Beside the measurement stands what the simulator of leam_mm.planning predicts from the
single rank and the measured all-reduce. Programs beside the benchmark slow two ranks down more than one: measure on a
quiet machine. ``ours`` in the result is one rank, ``peer`` two.
"""

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measure
import yaml
from batch_record import CAPTION
from processes import ROOT, call
from toy_input import jpeg

from leam_mm.data.shard_index import ShardWriter
from leam_mm.errors import UserError, run
from leam_mm.planning.calibration_run import summarize
from leam_mm.planning.scaling_simulator import Machine, Workload, simulate_step

SAMPLES, SIDE = 512, 48
TOWERS = {
    "embed_dim": 64,
    "vision": {"image_size": SIDE, "patch_size": 6, "width": 192, "layers": 4, "head_width": 64},
    "text": {"context_length": 16, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
}
CLOCK = "leam_mm.callbacks.step_clock.StepClock"
ALLREDUCE = "from leam_mm.planning.allreduce_speed import measure_allreduce; print(measure_allreduce()[0])"


def recipe(folder: Path, shards: Path, ranks: int, batch: int, steps: int) -> dict[str, Any]:
    """Return a recipe of so many ranks; the batch is that of all ranks."""
    clock = {"output": str(folder / "times.json"), "seconds": 1e9, "least_steps": 1}
    return {
        "seed_everything": 1,
        "max_samples": batch * steps,
        "threads": 1,
        "trainer": {
            "default_root_dir": str(folder), "accelerator": "cpu", "devices": ranks,
            "strategy": "ddp" if ranks > 1 else "auto", "log_every_n_steps": 1, "enable_progress_bar": False,
            "enable_model_summary": False, "callbacks": [{"class_path": CLOCK, "init_args": clock}],
        },
        "data": {
            "class_path": "leam_mm.data.pairs_module.PairsModule",
            "init_args": {
                "train": str(shards), "image": {"image_size": SIDE}, "batch_size": batch, "loading": {"workers": 0},
                "captions": {"tokenizer": "open_clip", "context_length": 16}, "seed": 1,
            },
        },
        "model": {
            "class_path": "leam_mm.contrastive_module.ContrastiveModule",
            "init_args": {
                "encoder": TOWERS, "tokenizer": "open_clip",
                "loss": {"class_path": "leam_mm.losses.contrastive.InfoNCE"},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4}},
            },
        },
    }  # fmt: skip


def train(folder: Path, shards: Path, ranks: int, batch: int, steps: int) -> dict[str, Any]:
    """Train and return the clock's record and the losses."""
    content = recipe(folder, shards, ranks, batch, steps)
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    # Ranks that are started by Lightning choose their port by themselves.
    call([sys.executable, str(ROOT / "train.py"), "fit", "--config", str(folder / "recipe.yaml")], OMP_NUM_THREADS="1")
    times = json.loads((folder / "times.json").read_text())
    with open(folder / "metrics.csv", newline="") as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    return {**times, "losses": losses, "step": summarize(times, content)[0]}


def measure_bandwidth() -> float:
    """Return the bus bandwidth of gloo between two processes, in bytes per second."""
    common = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29687",
        "OMP_NUM_THREADS": "1",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", ALLREDUCE], env={**common, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    found = [process.communicate()[0] for process in ranks]
    if any(process.returncode for process in ranks):
        raise UserError("the all-reduce of two processes failed: see its message above")
    return float(found[0].split()[-1])


@measure.benchmark(
    repeats=5,
    batch=(16, "samples of each rank in a step"),
    steps=(40, "steps of a run"),
)
def main(settings: measure.Settings) -> list[Path]:
    """Check that two ranks do the work of one with the same batch, then time both."""
    if settings.steps < 20:
        raise UserError("--steps must be at least 20: the first ten are not timed")
    size, steps = settings.batch, settings.steps
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with ShardWriter(folder / "shards", SAMPLES // 4) as writer:
            for number in range(SAMPLES):
                record = {"captions": [{"text": CAPTION.format(number), "language": "en"}]}
                members = {"jpg": jpeg(number % 16, SIDE), "json": json.dumps(record).encode()}
                writer.write(str(number), members)
        whole = train(folder / "whole", folder / "shards", 1, 2 * size, 20)["losses"]
        halves = train(folder / "halves", folder / "shards", 2, 2 * size, 20)["losses"]
        difference = max(abs(a - b) / abs(b) for a, b in zip(whole, halves, strict=True))
        same = [measure.require_same("loss of 20 steps on one rank and on two, relative", difference, 1e-3)]
        bandwidth = measure_bandwidth()
        found: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
        (busy, total), own = measure._machine(), measure.cpu_seconds()
        for number in range(settings.repeats):
            for ranks in (1, 2) if number % 2 == 0 else (2, 1):
                run_folder = folder / f"ranks{ranks}_{number}"
                found[ranks].append(train(run_folder, folder / "shards", ranks, ranks * size, steps))
        busy_after, total_after = measure._machine()
        others = (busy_after - busy - (measure.cpu_seconds() - own)) / max(total_after - total, 1e-9)
    return [write(settings, found, same, bandwidth, min(1.0, max(0.0, others)))]


def write(
    settings: measure.Settings, found: dict[int, list[dict[str, Any]]], same: list[dict[str, Any]], bandwidth: float,
    others: float,
) -> Path:  # fmt: skip
    """Print the result beside the prediction and write the file."""
    sides = {
        ranks: measure.Timing([one["step"].seconds for one in runs], [one["step"].cpu_seconds for one in runs])
        for ranks, runs in found.items()
    }
    pairs = [one / two for one, two in zip(sides[1].wall, sides[2].wall, strict=True)]
    low, high, confidence = measure.median_interval(pairs)
    single = statistics.median(sides[1].wall)
    weights = found[2][0]["checkpoint_bytes"] / 3  # weights and two states of the optimizer
    machine = Machine(2, 1.0, intra_bytes_per_second=bandwidth, network_efficiency=1.0, straggler_sigma=0.0)
    work = Workload(single / settings.batch, gradient_bytes=weights, gathered_bytes_per_sample=2 * 4 * 64)
    predicted = single / simulate_step(work, machine, 1, 2 * settings.batch).seconds
    further = {
        "efficiency": statistics.median(pairs),
        "efficiency_interval": {"low": low, "high": high, "confidence": confidence},
        "efficiency_predicted": predicted,
        "efficiency_means": "seconds of a step of one rank over those of two ranks with twice the batch; 1 is ideal",
        "allreduce_bytes_per_second": bandwidth,
    }
    notes = "ours is one rank, peer two ranks; CPU seconds are those of one rank, waiting in gloo included"
    comparison = measure.Comparison(sides[1], sides[2], others)
    labels = ("one rank", "two ranks, of each")
    path = measure.write_comparison(
        "weak_scaling", labels, comparison, (settings.batch, "sample"), same, settings, notes, further
    )
    print(
        f"weak scaling efficiency {statistics.median(pairs):.1%} ({low:.1%} to {high:.1%}, {confidence:.0%}), "
        f"predicted {predicted:.1%} from an all-reduce of {bandwidth / 1e9:.2f} GB/s"
    )
    return path


if __name__ == "__main__":
    run(main)
