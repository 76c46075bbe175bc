"""What a loader loses or doubles when its run is killed (signal 9): ours, litData and MosaicML Streaming.

All read the same samples in the same loop, which saves the state of the loader every few steps by the way that its
documentation gives and continues from it. Samples are counted in the batches that the final weights would have seen.
`resume` measures whole training programs.
"""

import random
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import measure
from loader_attempt import Attempt, Reading
from resume import Attempts, killed
from rich.table import Table
from streaming_peers import PACKAGES, label, load, missing, stored_rows
from toy_input import jpeg

from leam_mm.data.shard_index import ShardWriter
from leam_mm.errors import UserError, run

SAMPLES, BATCH, SHARDS = 512, 16, 4
SAVE_EVERY = 7  # steps, never the last of an epoch: libraries differ in what a state there means
EPOCH = SAMPLES // BATCH  # steps
WORKERS = (1, 2, 0, 3)
DOCUMENTED = {
    "ours": "the position is one integer; ranks and workers change nothing (docs/train.md)",
    "litdata": "num_workers and world_size may change: never duplicates remaining samples (README, Pause, resume)",
    "mosaic": "the same order regardless of the number of GPUs, nodes or CPU workers (README, True Determinism)",
}


def program(reading: Reading, changing_workers: bool) -> Callable[..., Any]:
    """How an attempt is started: by its number, its record and its ranks."""

    def start(number: int, path: Path, ranks: int = 1) -> Attempt:
        attempt = Attempt(reading, path, WORKERS[number % len(WORKERS)] if changing_workers else 1, ranks)
        attempt.start()
        return attempt

    return start


def compare(whole: Attempts, broken: Attempts, epochs: int) -> dict[str, Any]:
    """Samples of each epoch in the batches that are kept, and what the run without kills saw there."""
    expected, kept = whole.kept, broken.kept
    lost = doubled = 0
    for epoch in range(epochs):
        seen = Counter(n for place, line in kept.items() if place[0] == epoch for n in line["samples"])
        lost += sum(n not in seen for n in range(SAMPLES))
        doubled += sum(count - 1 for count in seen.values())
    samples = {place: sorted(line["samples"]) for place, line in expected.items()}
    moved = sum(sorted(line["samples"]) != samples.get(place) for place, line in kept.items())
    return {
        "samples": epochs * SAMPLES,
        "samples_lost": lost,
        "samples_doubled": doubled,
        "samples_computed_again": broken.computed - sum(len(line["samples"]) for line in kept.values()),
        "batches_with_other_samples": moved + len(samples.keys() - kept.keys()),
        "batches": len(samples),
        "attempts_that_could_not_start": broken.unreadable,
    }


def measure_side(name: str, data: Path, folder: Path, kills: dict[str, list[int]], epochs: int) -> dict[str, Any]:
    """A run without kills, and one of each kind with them; what stops a kind for good is its finding."""
    folder.mkdir()
    reading = Reading(name, data, folder / "whole.pt", BATCH, epochs, SAVE_EVERY)
    whole = killed(program(reading, False), [], folder / "of_whole")
    found: dict[str, Any] = {"without_kills": compare(whole, whole, epochs)}
    for kind, steps in kills.items():
        start = program(replace(reading, state=folder / f"{kind}.pt"), kind == "other_workers")
        try:
            broken = killed(start, steps, folder / f"of_{kind}", changing_ranks=kind == "other_ranks")
        except UserError as error:
            log = max(folder.glob(f"of_{kind}*.log"), key=lambda path: path.stat().st_mtime)
            found[kind] = {"stopped": str(error), "last_line": (log.read_text().splitlines() or [""])[-1][:300]}
            continue
        found[kind] = compare(whole, broken, epochs)
    return found


@measure.benchmark(
    repeats=1,
    kills=(10, "with the same workers and ranks"),
    worker_kills=(4, "with other numbers of workers"),
    rank_kills=(10, "with 2 ranks and 1 in turns"),
    peers=(list(PACKAGES), "what ours is measured beside", {"choices": tuple(PACKAGES)}),
)
def main(settings: measure.Settings) -> list[Path]:
    """Kill and compare; a peer that is not installed is left out with the reason."""
    if settings.kills < 1:
        raise UserError("--kills must be at least 1")
    peers = [name for name in settings.peers if not missing(name)]
    for name in set(settings.peers) - set(peers):
        print(f"not measured: {missing(name)}")
    if not peers:
        return []
    rng = random.Random(0)
    counts = {"same": settings.kills, "other_workers": settings.worker_kills, "other_ranks": settings.rank_kills}
    kills = {kind: [rng.randint(1, EPOCH) for _ in range(count)] for kind, count in counts.items() if count}
    # So many that the last kill finds something to do: an attempt makes some steps more before the kill reaches it.
    epochs = max(map(sum, kills.values())) // EPOCH + 1 + max(map(len, kills.values())) // 3
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with ShardWriter(folder / "shards", SAMPLES // SHARDS) as writer:
            for number in range(SAMPLES):
                record = b'{"captions": [{"text": "a picture", "language": "en"}]}'
                writer.write(str(number), {"jpg": jpeg(number % 16, 48), "json": record})
        for name in ("ours", *peers):
            data = folder / "shards"
            if name != "ours":
                data = load(name).write(stored_rows(data), folder / f"{name}_data", SAMPLES // SHARDS, False)
            found[name] = measure_side(name, data, folder / name, kills, epochs)
    return [write(settings, found, kills, epochs)]


def write(settings: measure.Settings, found: dict[str, Any], kills: dict[str, list[int]], epochs: int) -> Path:
    """Check what ours promises, print the table, write the file."""
    nothing = ("samples_lost", "samples_doubled", "batches_with_other_samples")
    same = [
        measure.require_same(f"ours, {kind}, {name}".replace("_", " "), found["ours"][kind][name], 0)
        for kind in kills
        for name in nothing
    ]
    table = Table("", *found, title="lost, doubled, batches with other samples")
    for kind in ("without_kills", *kills):
        cells = [
            side[kind].get("last_line") or ", ".join(str(side[kind][name]) for name in nothing)
            for side in found.values()
        ]
        table.add_row(f"{kind.replace('_', ' ')}, {len(kills.get(kind, []))} kills", *cells)
    content = {
        name: {"label": "ours" if name == "ours" else label(name), "documented": DOCUMENTED[name]} | side
        for name, side in found.items()
    }
    circumstances = {"kills_after_steps": kills, "epochs": epochs, "samples_of_an_epoch": SAMPLES}
    notes = (
        f"state saved every {SAVE_EVERY} steps of {BATCH} samples over all ranks; one worker a rank unless it changes"
    )
    return measure.write_result(content | {"same_work": same, "notes": notes} | circumstances, settings, table)


if __name__ == "__main__":
    run(main)
