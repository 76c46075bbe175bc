"""What a run loses that is killed (signal 9) after random numbers of steps and started again: ours and open_clip's.

Both train the same small towers on the same tars through their own command lines, each attempt a process of its own,
and are killed after the same numbers of steps of an attempt. Ours resumes with another number of loader workers each
time, and once more with other numbers of ranks too. open_clip 3.3.0 saves at the end of an epoch and resumes there
(--resume latest); it keeps one worker, for its epochs have other lengths with more. Counts and differences, not times.
"""

import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure
import yaml
from batch_record import CAPTION, read
from rich.table import Table
from toy_input import jpeg

from leam_mm.data.shard_index import ShardWriter
from leam_mm.errors import UserError, run

ROOT = Path(__file__).parent.parent.parent
SAMPLES, BATCH, SHARDS, SAVE_EVERY = 512, 16, 4, 8
EPOCH = SAMPLES // BATCH  # steps
WORKERS = (0, 2, 1, 3)
TOWERS = {
    "embed_dim": 32,
    "vision": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32},
    "text": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
PATIENCE = 600.0  # seconds that an attempt may take


@dataclass
class Attempts:
    """What was computed in all attempts of a training.

    Args:
        records: Lines of each attempt.
        unreadable: Attempts that could not start from what the kill had left behind.
    """

    records: list[list[dict[str, Any]]] = field(default_factory=list)
    unreadable: int = 0

    @property
    def computed(self) -> int:
        """Samples through the network, in all attempts together."""
        return sum(len(line["samples"]) for lines in self.records for line in lines)

    @property
    def kept(self) -> dict[tuple[int, ...], dict[str, Any]]:
        """The batches that the final weights have seen: an attempt begins where the kept ones end."""
        kept: dict[tuple[int, ...], dict[str, Any]] = {}
        for lines in self.records:
            if lines:
                kept = {place: line for place, line in kept.items() if place < tuple(lines[0]["position"])}
            kept.update({tuple(line["position"]): line for line in lines})
        return kept


def killed(
    start: Callable[..., subprocess.Popen[bytes]],
    kills: list[int],
    record: Path,
    repair: Callable[[], object] = lambda: None,
    changing_ranks: bool = False,
) -> Attempts:
    """Kill an attempt after each number of steps, then let the last one reach the end.

    Args:
        start: Of an attempt, by its number and the file it writes its batches to.
        kills: Steps of each attempt before its kill.
        record: Where the batches of an attempt are written, without the attempt's number.
        repair: Removes what an attempt could not start from.
        changing_ranks: Run every other attempt on two ranks.
    """
    found, rng = Attempts(), random.Random(len(kills))
    for number, steps in enumerate([*kills, None]):
        path = record.with_name(f"{record.name}.{number}")
        ranks = {"ranks": 2 - number % 2} if changing_ranks else {}
        process, begin = start(number, path, **ranks), time.monotonic()
        try:
            while process.poll() is None and (steps is None or len(read_parts(path)) < steps):
                if time.monotonic() - begin > PATIENCE:
                    raise UserError(f"an attempt of {record.name} did not end within {PATIENCE:.0f} s; see {path}.log")
                time.sleep(0.01)
            if process.poll() is None:
                time.sleep(rng.uniform(0, 0.1))  # at different points of a step
        finally:  # the attempt ends with this program, whatever ends it
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        found.records.append(read_parts(path))
        if code not in (0, -signal.SIGKILL):
            if steps is None or found.records[-1]:
                raise UserError(f"an attempt of {record.name} ended with code {code}; see {path}.log")
            found.unreadable += 1
            repair()
        if code == 0:
            break
    return found


def read_parts(path: Path) -> list[dict[str, Any]]:
    """The batches of an attempt; those of several ranks are put together, as far as all have written them.

    Losses are averaged: a generator's rank has that of its own samples, an encoder's that of all.
    """
    files = sorted(path.parent.glob(f"{path.name}.[0-9]")) or [path]
    ranks = [read(file) for file in files]
    return [
        {
            "position": lines[0]["position"],
            "samples": [sample for line in lines for sample in line["samples"]],
            "loss": statistics.fmean(float.fromhex(line["loss"]) for line in lines).hex(),
        }
        for lines in zip(*ranks, strict=False)
    ]


def spawn(command: list[str], path: Path, **environment: str) -> subprocess.Popen[bytes]:
    """A process group of its own, which a kill ends with all its workers and ranks."""
    shown = {"PYTHONPATH": f"{Path(__file__).parent}:{ROOT}", "OMP_NUM_THREADS": "1", "BATCH_RECORD": str(path)}
    with open(f"{path}.log", "wb") as log:
        return subprocess.Popen(
            command, env={**os.environ, **shown, **environment}, stdout=log, stderr=log, start_new_session=True
        )


def train_program(
    folder: Path, steps: int, data: dict[str, Any], model: dict[str, Any]
) -> Callable[..., subprocess.Popen[bytes]]:
    """How train.py is started on a recipe of these two sections: by the attempt's number, its record and its ranks."""
    recipe: dict[str, Any] = {
        "seed_everything": 1,
        "max_samples": steps * BATCH,
        "trainer": {
            "default_root_dir": str(folder),
            "accelerator": "cpu",
            "devices": 1,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "batch_record.BatchRecord"}],
        },
        "checkpoint": {"every_n_train_steps": SAVE_EVERY},
        "data": data,
        "model": model,
        "ckpt_path": "last",
    }
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, str(ROOT / "train.py"), "fit", "--config", str(folder / "recipe.yaml")]

    def start(number: int, path: Path, ranks: int = 1) -> subprocess.Popen[bytes]:
        words = [f"--data.init_args.loading.workers={WORKERS[number % len(WORKERS)]}"]
        if ranks > 1:
            words += [f"--trainer.devices={ranks}", "--trainer.strategy=ddp"]
        return spawn([*command, *words], path)

    return start


def ours(folder: Path, steps: int) -> Callable[..., subprocess.Popen[bytes]]:
    """train.py with the recipe of this benchmark."""
    data = {
        "class_path": "leam_mm.data.pairs_module.PairsModule",
        "init_args": {
            "train": str(folder.parent / "shards"),
            "image": {"image_size": 32, "crop_scale": [0.9, 1.0]},
            "batch_size": BATCH,
            "captions": {"tokenizer": "open_clip", "context_length": 16},
            "loading": {"workers": 1},
        },
    }
    model = {
        "class_path": "leam_mm.contrastive_module.ContrastiveModule",
        "init_args": {
            "encoder": {**TOWERS, "vision": {**TOWERS["vision"], "patch_dropout": 0.25}},  # type: ignore[dict-item]
            "loss": {"class_path": "leam_mm.losses.contrastive.InfoNCE"},
            "tokenizer": "open_clip",
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 5e-4, "eps": 1e-6}},
            "schedule": {"warmup_steps": 10},
            "ema_decay": 0.99,
        },
    }
    return train_program(folder, steps, data, model)


def theirs(folder: Path, epochs: int) -> Callable[[int, Path], subprocess.Popen[bytes]]:
    """open_clip_train.main."""
    folder.mkdir()
    model = folder / "small_towers.json"
    config = {"embed_dim": TOWERS["embed_dim"], "vision_cfg": TOWERS["vision"], "text_cfg": TOWERS["text"]}
    model.write_text(json.dumps(config))
    shards = f"{folder.parent / 'shards'}/{{00000..{SHARDS - 1:05d}}}.tar"
    words = ["--train-data", shards, "--train-num-samples", str(SAMPLES), "--dataset-type", "webdataset"]
    words += ["--batch-size", str(BATCH), "--workers", "1", "--precision", "fp32", "--epochs", str(epochs)]
    words += ["--model", model.stem, "--lr", "5e-4", "--warmup", "10", "--seed", "1", "--log-every-n-steps", "1000000"]
    words += ["--save-frequency", "1", "--resume", "latest", "--logs", str(folder), "--name", "run"]
    command = [sys.executable, str(Path(__file__).with_name("batch_record.py")), *words]

    def start(number: int, path: Path) -> subprocess.Popen[bytes]:
        return spawn(command, path, PEER_MODEL=str(model), PEER_SAMPLES=str(SAMPLES))

    return start


def compare(whole: Attempts, broken: Attempts) -> dict[str, Any]:
    """What the killed run lost, against the run that was not killed."""
    expected, kept = whole.kept, broken.kept
    both = sorted(expected.keys() & kept.keys())
    losses = [abs(float.fromhex(kept[p]["loss"]) - float.fromhex(expected[p]["loss"])) for p in both]
    seen = [sample for line in kept.values() for sample in line["samples"]]
    planned = [sample for line in expected.values() for sample in line["samples"]]
    moved = sum(expected[p]["samples"] != kept[p]["samples"] for p in both) + len(expected.keys() ^ kept.keys())
    return {
        "attempts": len(broken.records),
        "unreadable_checkpoints": broken.unreadable,
        "samples_planned": len(planned),
        "samples_computed_again": broken.computed - len(seen),
        "batches_with_other_samples": moved,
        "batches": len(expected),
        "samples_lost_or_doubled": sum(abs(seen.count(n) - planned.count(n)) for n in range(SAMPLES)),
        "largest_loss_difference": max(losses),
        "batches_with_another_loss": sum(value > 0 for value in losses),
    }


@measure.benchmark(repeats=1, kills=(20, "of each side"), rank_kills=(4, "of ours with other numbers of ranks"))
def main(settings: measure.Settings) -> list[Path]:
    """Run whole and killed trainings of both, compare, write."""
    if settings.kills < 1:
        raise UserError("--kills must be at least 1")
    rng = random.Random(0)
    kills = [rng.randint(1, 2 * EPOCH) for _ in range(settings.kills)]
    # So many that the last kill finds something to do: an attempt makes some steps more before the kill reaches it.
    epochs = sum(kills) // EPOCH + 1 + settings.kills // 4
    few = [rng.randint(1, EPOCH) for _ in range(settings.rank_kills)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with ShardWriter(folder / "shards", SAMPLES // SHARDS) as writer:
            for number in range(SAMPLES):
                text = CAPTION.format(number)
                record = {"captions": [{"text": text, "language": "en"}]}
                members = {"jpg": jpeg(number % 16, 48), "json": json.dumps(record).encode(), "txt": text.encode()}
                writer.write(str(number), members)
        whole = killed(ours(folder / "whole", epochs * EPOCH), [], folder / "ours_whole")
        broken = killed(ours(folder / "broken", epochs * EPOCH), kills, folder / "ours_broken")
        found = compare(whole, broken)
        rows = [(folder / name / "metrics.csv").read_text().count("\n") for name in ("whole", "broken")]
        found["rows_of_metrics_lost"] = rows[0] - rows[1]
        ranked: dict[str, Any] = {}
        if few:
            start = ours(folder / "ranked", epochs * EPOCH)
            ranked = compare(whole, killed(start, few, folder / "ours_ranked", changing_ranks=True))
        checkpoints = folder / "peer_broken" / "run" / "checkpoints"
        their_whole = killed(theirs(folder / "peer_whole", epochs), [], folder / "theirs_whole")

        def repair() -> None:
            newest = max(checkpoints.glob("*.pt"), key=lambda path: path.stat().st_mtime)
            shutil.move(newest, newest.with_suffix(".torn"))

        their_broken = killed(theirs(folder / "peer_broken", epochs), kills, folder / "theirs_broken", repair)
        peer = compare(their_whole, their_broken)
    return [write(settings, found, ranked, peer, epochs, kills)]


def check_ranks(ranked: dict[str, Any], label: str) -> list[dict[str, Any]]:
    """Same samples, and losses that agree to rounding; nothing where other numbers of ranks were not measured."""
    if not ranked:
        return []
    return [
        measure.require_same(f"{label}, batches with other samples", ranked["batches_with_other_samples"], 0),
        measure.require_same(f"{label}, loss of each batch (rounding)", ranked["largest_loss_difference"], 1e-2),
    ]


def write(
    settings: measure.Settings,
    found: dict[str, Any],
    ranked: dict[str, Any],
    peer: dict[str, Any],
    epochs: int,
    kills: list[int],
) -> Path:
    """Check what ours promises, print the table, write the file."""
    same = [
        measure.require_same("samples planned by both", abs(found["samples_planned"] - peer["samples_planned"]), 0),
        measure.require_same("ours, loss of each batch, killed and whole", found["largest_loss_difference"], 0),
        measure.require_same("ours, batches with other samples", found["batches_with_other_samples"], 0),
        measure.require_same("ours, rows of metrics.csv lost", abs(found["rows_of_metrics_lost"]), 0),
    ]
    same += check_ranks(ranked, "ours with other ranks")
    table = Table("", "ours", "ours, ranks change", "open_clip 3.3.0", title=f"resume after {len(kills)} kills")
    for name in peer:
        table.add_row(name.replace("_", " "), *(f"{side.get(name, '')}" for side in (found, ranked, peer)))
    again = found["samples_computed_again"]
    content: dict[str, Any] = {
        "ours": {"label": f"train.py, checkpoint every {SAVE_EVERY} steps"} | found,
        "ours_with_other_ranks": ranked or "not measured",
        "peer": {"label": f"open_clip_train.main, checkpoint every epoch of {EPOCH} steps"} | peer,
        "ratio": peer["samples_computed_again"] / again if again else None,
        "ratio_means": "samples that the peer computed again over ours; it depends on the length of an epoch",
        "same_work": same,
        "kills_after_steps": kills,
        "epochs": epochs,
        "notes": (
            "an epoch of open_clip on a large set takes hours or days: what it computes again grows with it, ours "
            "is below the interval of checkpoints; its order inside an epoch is not seeded: two runs of it differ"
        ),
    }
    return measure.write_result(content, settings, table)


if __name__ == "__main__":
    run(main)
