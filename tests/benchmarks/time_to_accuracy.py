"""CPU seconds until an encoder has 60 % of the accuracy that open_clip's trainer ends with, and what equal CPU buys.

Both train the same towers on the same images with the same captions, tokens, batch size and augmentation, one torch
thread and one loader process each. The peer is open_clip_train's `train_one_epoch` over `get_wds_dataset`; one of an
image's captions is drawn anew each time, a language first. Ours is the recipe as it stands, at several multiples of its
learning rates. Both sides' rates are chosen by the same number of runs, on images that are neither trained on nor
in the test. Ours is given as many samples as take the peer's CPU seconds, loader processes included, as short runs of
both show beforehand. Start-up and evaluation are not counted on either side. Finished runs are kept in the output
folder, and a benchmark that was killed continues after them.

Needs runs/emoji or runs/pictures, which `make emoji` and `make pictures` write:

    python tests/benchmarks/time_to_accuracy.py --corpus pictures
"""

import json
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure
import numpy
import yaml
from accuracy_clock import AccuracyClock, reached
from accuracy_corpus import Corpus, open_corpus
from open_clip_peer import train_peer, write_peer_shards
from rich.console import Console
from rich.table import Table

from leam_mm.cli import LeamCLI
from leam_mm.cli import main as train
from leam_mm.errors import run
from leam_mm.files import write_json
from leam_mm.intervals.intervals import mean_interval
from leam_mm.intervals.outcomes import read_outcomes

SHARE, FIRST_SEED = 0.6, 1
NEAR = 0.15  # of CPU seconds that shall be equal
PROBE = 20  # steps of the short runs that compare what a sample costs


@dataclass
class Side:
    """One of both trainers.

    Args:
        name: ``ours`` or ``peer``.
        rates: What is searched: learning rates of the peer, multiples of our recipe's.
        samples: Images seen in a run.
        rate: The chosen one.
        searched: Runs with the first seed, one a rate.
        runs: Runs with the chosen rate, one a seed.
    """

    name: str
    rates: list[float]
    samples: int
    rate: float = 0.0
    searched: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)


def train_ours(recipe: dict[str, Any], factor: float, seed: int, samples: int, clock: AccuracyClock) -> AccuracyClock:
    """Train the recipe through the command line of train.py, in this process, with its learning rates multiplied."""
    made: dict[str, Any] = json.loads(json.dumps(recipe))
    made |= {"seed_everything": seed, "max_samples": samples}
    for name in ("lr", "matrix_lr"):
        options = made["model"]["init_args"]["optimizer"]["init_args"]
        options |= {name: factor * options[name]} if name in options else {}
    callbacks = [entry for entry in made["trainer"].get("callbacks", []) if "EvaluateEvery" not in entry["class_path"]]
    with tempfile.TemporaryDirectory() as folder:
        made["trainer"] |= {"default_root_dir": folder, "callbacks": callbacks, "enable_progress_bar": False}
        made["trainer"] |= {"limit_val_batches": 0, "num_sanity_val_steps": 0}
        made["checkpoint"] = {"every_n_train_steps": 10**9}
        made["data"]["init_args"]["seed"] = seed
        file = Path(folder) / "ours.yaml"
        file.write_text(yaml.safe_dump(made))
        with clock_in_trainer(clock):
            train(["fit", "--config", str(file)])
    return clock


class clock_in_trainer:
    """Adds the clock to the callbacks of the next trainer; YAML cannot hand over an object."""

    def __init__(self, clock: AccuracyClock) -> None:
        """See the class."""
        self.clock = clock

    def __enter__(self) -> None:
        """Wrap the constructor of trainers."""
        self.plain = LeamCLI.instantiate_trainer
        clock, plain = self.clock, self.plain

        def instantiate(cli: Any, **named: Any) -> Any:
            trainer = plain(cli, **named)
            trainer.callbacks.append(clock)  # type: ignore[attr-defined]
            return trainer

        LeamCLI.instantiate_trainer = instantiate  # type: ignore[method-assign, assignment]

    def __exit__(self, *_: object) -> None:
        """Leave it as it was."""
        LeamCLI.instantiate_trainer = self.plain  # type: ignore[method-assign]


class Trainer:
    """Trains either side, and keeps each finished run in a file, so that a killed benchmark continues.

    Args:
        corpus: What is trained on and measured.
        shards: The peer's.
        every: Steps between two measurements.
        kept: Folder of the finished runs.
    """

    def __init__(self, corpus: Corpus, shards: str, every: int, kept: Path) -> None:
        """See the class for the arguments."""
        self.corpus, self.shards, self.every, self.kept = corpus, shards, every, kept
        self.batch = corpus.recipe["data"]["init_args"]["batch_size"]

    def run(self, side: str, rate: float, seed: int, samples: int) -> dict[str, Any]:
        """Train one side.

        Args:
            side: ``ours`` or ``peer``.
            rate: See `Side`.
            seed: Of weights and order.
            samples: Images seen; a multiple of the batch times the interval.

        Returns:
            ``curve`` of the clock; ``test`` with the lines of results, ``test_accuracy`` and ``validation_accuracy``.
        """
        path = self.kept / f"{side}-{rate:g}-{seed}-{samples}-{self.every}.json"
        if path.is_file():
            return json.loads(path.read_text())
        corpus = self.corpus
        clock = AccuracyClock(corpus.test, self.every, self.batch, final={"validation": corpus.validation})
        self._train(side, rate, seed, samples, clock)
        found: dict[str, Any] = {"side": side, "rate": rate, "seed": seed, "curve": clock.curve}
        found["test"] = {name: metric.as_dict() for name, metric in clock.last["test"].items() if kept_metric(name)}
        for name, measured in (("test", corpus.test), ("validation", corpus.validation)):
            found[f"{name}_accuracy"] = clock.last[name][measured.metric].as_dict()
        write_json(path, found)
        end = clock.curve[-1]
        Console().print(
            f"{side} {rate:g}, seed {seed}: {end['samples']:.0f} samples, {end['cpu_seconds']:.0f} CPU s, test "
            f"{end['accuracy']:.2%}, validation {found['validation_accuracy']['value']:.2%}"
        )
        return found

    def cost(self, side: str, rate: float) -> float:
        """Return the CPU seconds of a sample, from a short run."""
        path = self.kept / f"cost-{side}.json"
        if not path.is_file():
            clock = AccuracyClock(None, PROBE, self.batch)
            self._train(side, rate, 0, PROBE * self.batch, clock)
            write_json(path, clock.cpu / (PROBE * self.batch))
        return json.loads(path.read_text())

    def _train(self, side: str, rate: float, seed: int, samples: int, clock: AccuracyClock) -> None:
        corpus, steps = self.corpus, samples // self.batch
        if side == "ours":
            train_ours(corpus.recipe, rate, seed, samples, clock)
        else:
            train_peer(corpus.recipe, corpus.folder / "tokenizer", self.shards, rate, seed, steps, clock)


def kept_metric(name: str) -> bool:
    """Return whether a metric is worth keeping: recall at 1 and 5 and accuracy of all languages."""
    return "/r10/" not in name and not name.endswith(("/min", "/min_over_mean"))


@measure.benchmark(
    repeats=3,
    corpus=("emoji", "what is trained on", {"choices": ("emoji", "pictures")}),
    folder=(Path(""), "folder that make emoji or make pictures wrote; runs/CORPUS by default"),
    recipe=(Path(""), "our recipe; configs/CORPUS_clip.yaml by default"),
    samples=(128_000, "images that the peer sees in a run"),
    every=(50, "steps between two measurements"),
    peer_rates=([0.0005, 0.001, 0.002], "learning rates of the peer to search"),
    our_factors=([0.5, 1.0, 2.0], "multiples of our recipe's learning rates to search"),
)
def main(settings: measure.Settings) -> list[Path]:
    """Search both sides' rates, then train both in turns, one seed after the other."""
    name = settings.corpus
    folder = settings.folder if settings.folder != Path("") else Path("runs") / name
    recipe = settings.recipe if settings.recipe != Path("") else Path(f"configs/{name}_clip.yaml")
    if not (folder / "shards/train/manifest.jsonl").is_file():
        Console().print(f"time_to_accuracy: {folder} is not there, not measured; make {name} writes it")
        return []
    corpus = open_corpus(name, folder, recipe)
    data = corpus.recipe["data"]["init_args"]
    whole = settings.every * data["batch_size"]
    samples = max(1, settings.samples // whole) * whole
    sides = [Side("ours", settings.our_factors, samples), Side("peer", settings.peer_rates, samples)]
    with tempfile.TemporaryDirectory() as scratch:
        written, count = write_peer_shards(
            corpus.folder / "shards/train", set(data["captions"]["languages"]), Path(scratch) / "peer"
        )
        trainer = Trainer(corpus, written, settings.every, settings.output / f"time_to_accuracy_{name}_runs")
        ours, peer = (trainer.cost(side.name, side.rates[0]) for side in sides)
        sides[0].samples = max(1, round(samples * peer / ours / whole)) * whole
        for side in sides:
            side.searched = [trainer.run(side.name, rate, FIRST_SEED, side.samples) for rate in side.rates]
            best = max(side.searched, key=lambda found: found["validation_accuracy"]["value"])
            side.rate, side.runs = best["rate"], [best]
        at_equal_samples = trainer.run("ours", sides[0].rate, FIRST_SEED, samples)
        for seed in range(FIRST_SEED + 1, FIRST_SEED + settings.repeats):
            for side in sides if seed % 2 else reversed(sides):
                side.runs.append(trainer.run(side.name, side.rate, seed, side.samples))
    return [report(corpus, sides, at_equal_samples, settings, count)]


def report(corpus: Corpus, sides: list[Side], at_equal_samples: dict[str, Any], settings: Any, count: int) -> Path:
    """Print the table and write the JSON."""
    ours, peer = sides
    target = SHARE * statistics.mean(found["curve"][-1]["accuracy"] for found in peer.runs)
    spent = [statistics.mean(found["curve"][-1]["cpu_seconds"] for found in side.runs) for side in sides]
    seen = at_equal_samples["curve"][-1]["samples"] - peer.runs[0]["curve"][-1]["samples"]
    same = [
        measure.require_same("images seen in runs of equal samples", abs(seen), 0),
        measure.require_same("CPU seconds of runs of equal CPU seconds, relative", abs(spent[0] / spent[1] - 1), NEAR),
    ]
    table = Table(
        "", "rate", "samples", "CPU s", f"CPU s to {target:.2%}", "final", title=f"time_to_accuracy {corpus.name}"
    )
    content: dict[str, Any] = {"corpus": corpus.name, "target": target, "images": count}
    for side in sides:
        ends = [found["curve"][-1] for found in side.runs]
        to_target = [reached(found["curve"], target, "cpu_seconds") for found in side.runs]
        content[side.name] = {
            "rate": side.rate,
            "searched": {
                f"{found['rate']:g}": {
                    "validation": found["validation_accuracy"]["value"],
                    "test": found["test_accuracy"]["value"],
                    "cpu_seconds": found["curve"][-1]["cpu_seconds"],
                }
                for found in side.searched
            },
            "samples": side.samples,
            "cpu_seconds": [end["cpu_seconds"] for end in ends],
            "seconds": [end["seconds"] for end in ends],
            "cpu_seconds_to_target": to_target,
            "final": [end["accuracy"] for end in ends],
            "curves": [found["curve"] for found in side.runs],
            "metrics": summarise([found["test"] for found in side.runs]),
        }
        table.add_row(
            side.name,
            f"{side.rate:g}",
            f"{side.samples:,}",
            ", ".join(f"{end['cpu_seconds']:.0f}" for end in ends),
            ", ".join("never" if value is None else f"{value:.0f}" for value in to_target),
            ", ".join(f"{end['accuracy']:.2%}" for end in ends),
        )
    pairs = list(zip(content["ours"]["cpu_seconds_to_target"], content["peer"]["cpu_seconds_to_target"], strict=True))
    known = [theirs / own for own, theirs in pairs if own is not None and theirs is not None]
    content |= {"ratio": statistics.median(known) if len(known) == len(pairs) else None, "ratios": known}
    if known:
        content["ratio_interval"] = dict(
            zip(("low", "high", "confidence"), measure.median_interval(known), strict=True)
        )
    content["equal_cpu_seconds"] = paired(
        [f["test_accuracy"] for f in peer.runs], [f["test_accuracy"] for f in ours.runs]
    )
    content["equal_samples"] = paired([peer.runs[0]["test_accuracy"]], [at_equal_samples["test_accuracy"]])
    content |= {"ratio_means": "peer's CPU seconds over ours: above 1 ours is faster", "same_work": same}
    content["notes"] = (
        f"target: 60 % of the mean accuracy that the peer ends with; accuracy: {corpus.test.metric}; rates chosen by "
        f"{corpus.validation.metric} of {corpus.validation.evaluator.shards.name}; CPU seconds with loader processes; "
        "differences are ours less the peer's, paired by image, hits averaged over the seeds"
    )
    lines: list[str] = [f"ratio {content['ratio']}, each {', '.join(f'{ratio:.2f}' for ratio in known)}"]
    for kind in ("equal_cpu_seconds", "equal_samples"):
        apart = content[kind]
        ends = f"{apart['low']:+.2%} to {apart['high']:+.2%}"
        lines.append(f"{kind}: {apart['difference']:+.2%} ({ends}), {apart['images']} images")
    name = settings.program if corpus.name == "emoji" else f"{settings.program}_{corpus.name}"
    return measure.write_result(content, settings, table, name, message="\n".join(lines))


def paired(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean difference of outcomes over images, with its 95 % interval.

    Args:
        one: Lines of results of a metric, one a seed.
        other: As many, of the same images.
    """
    values = []
    for rows in (one, other):
        outcomes = [read_outcomes(row) for row in rows]
        assert all(outcomes) and len({found.samples for found in outcomes if found}) == 1
        values.append(numpy.mean([found.values for found in outcomes if found], axis=0))
    apart = values[1] - values[0]
    low, high = mean_interval(apart)
    return {"difference": float(apart.mean()), "low": low, "high": high, "images": len(apart), "seeds": len(one)}


def summarise(runs: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Return the mean of each metric over the seeds, with the interval over images of the hits averaged over seeds."""
    found = {}
    for name in runs[0]:
        rows = [run[name] for run in runs]
        outcomes = [read_outcomes(row) for row in rows]
        if all(outcomes):
            values = numpy.mean([each.values for each in outcomes if each], axis=0)
            low, high = mean_interval(values)
            found[name] = {"value": float(values.mean()), "low": low, "high": high, "images": len(values)}
    return found


if __name__ == "__main__":
    run(main)
