"""Zero-shot accuracy over 24 languages after training on few large and many small ones, before and after balancing.

Each picture keeps the captions of one language, drawn so that the r-th language of a fixed order has a share of 1/r: as
on the web, where a picture has one caption and few of them are Maltese. The same recipe is trained once drawing
languages as often as they occur (temperature 1) and then more evenly. There is no peer: open_clip has no such option.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
import yaml
from rich.console import Console
from rich.table import Table

from leam_mm.checkpoint import load_module
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.data.shard_index import ShardWriter, read_samples
from leam_mm.errors import UserError, run
from leam_mm.evaluators.evaluator import EvaluationContext
from leam_mm.evaluators.zero_shot import ZeroShot

ROOT = Path(__file__).parent.parent.parent
# From large to small; the order stands for what a crawl of Europe finds, no statistics are claimed.
LANGUAGES = "en de fr es it nl pl pt sv cs ro hu el da fi bg sk hr lt sl lv et ga mt".split()  # noqa: SIM905
TEMPERATURES = (1.0, 3.0, float("inf"))


def split_by_language(shards: Path, folder: Path) -> dict[str, int]:
    """Write a shard folder for each language; a picture goes to one of those that it has captions in.

    Returns:
        Samples of each language.
    """
    generator = np.random.Generator(np.random.Philox(key=1))
    shares = 1 / np.arange(1, len(LANGUAGES) + 1)
    counts = dict.fromkeys(LANGUAGES, 0)
    with ExitStack() as stack:
        writers = {code: stack.enter_context(ShardWriter(folder / code, 1000)) for code in LANGUAGES}
        for key, members in read_samples(shards):
            record = json.loads(members["json"])
            there = {caption["language"] for caption in record["captions"]}
            chances = shares * [code in there for code in LANGUAGES]
            code = LANGUAGES[int(generator.choice(len(LANGUAGES), p=chances / chances.sum()))]
            record["captions"] = [caption for caption in record["captions"] if caption["language"] == code]
            writers[code].write(key, {**members, "json": json.dumps(record, ensure_ascii=False).encode()})
            counts[code] += 1
    return counts


def train(recipe: dict[str, Any], folder: Path, temperature: float, settings: Any) -> Path:
    """One training; its run folder."""
    run_folder = folder / f"temperature_{temperature}"
    run_folder.mkdir()
    recipe = yaml.safe_load(yaml.safe_dump(recipe))
    sources = [{"path": str(folder / code), "language": code} for code in LANGUAGES if (folder / code).is_dir()]
    recipe["max_samples"] = settings.samples
    recipe["trainer"] |= {"default_root_dir": str(run_folder), "enable_progress_bar": False, "limit_val_batches": 0}
    captions = recipe["data"]["init_args"]["captions"] | {"language_balance": {"temperature": temperature}}
    captions = {name: value for name, value in captions.items() if name not in ("languages", "language_weights")}
    recipe["data"]["init_args"] |= {"train": sources, "captions": captions, "validation": None}
    file = run_folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    with open(run_folder / "log", "wb") as log:
        command = [sys.executable, str(ROOT / "train.py"), "fit", "--config", str(file)]
        ended = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=False, env={**os.environ})
    if ended.returncode:
        raise UserError(f"the training failed: {(run_folder / 'log').read_text()[-800:]}")
    return run_folder


def accuracies(run_folder: Path, corpus: Path, classes: Path) -> dict[str, Any]:
    """Top-1 by language, and the least over the mean with its interval."""
    module = load_module(run_folder, ContrastiveModule)
    found = ZeroShot(corpus / "shards/test", classes, LANGUAGES).run(
        EvaluationContext(module, None, run_folder, torch.device("cpu"))
    )
    return {
        metric.name.removeprefix("zero_shot/"): {"value": metric.value, "low": metric.low, "high": metric.high}
        for metric in found
        if metric.name.startswith("zero_shot/top1")
    }


@measure.benchmark(
    repeats=1,
    corpus=(Path("runs/quickstart"), "folder of a finished pipeline"),
    recipe=(Path("configs/scenes_clip.yaml"), "recipe that is trained"),
    samples=(122_880, "images seen in a run"),
)
def main(settings: measure.Settings) -> list[Path]:
    """Split the corpus, train at each temperature, compare."""
    corpus = settings.corpus.resolve()
    if not (corpus / "shards/train/manifest.jsonl").is_file():
        Console().print(f"language_balance: {settings.corpus} is not there, not measured; make quickstart writes it")
        return []
    text = settings.recipe.read_text()
    named = next(line.split(": ")[1].strip() for line in text.splitlines() if "default_root_dir" in line)
    recipe = yaml.safe_load(text.replace(str(Path(named).parent), str(corpus)))
    classes = next(corpus.glob("*/classes.json"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        counts = split_by_language(corpus / "shards/train", folder)
        found = {
            str(temperature): accuracies(train(recipe, folder, temperature, settings), corpus, classes)
            for temperature in TEMPERATURES
        }
    return [report(found, counts, settings, corpus)]


def report(found: dict[str, dict[str, Any]], counts: dict[str, int], settings: Any, corpus: Path) -> Path:
    """Print the table and write the JSON."""
    small = LANGUAGES[len(LANGUAGES) // 2 :]
    table = Table("", *(f"temperature {name}" for name in found), title=f"language_balance, {settings.recipe.stem}")
    rows: dict[str, dict[str, float]] = {}
    for name, metrics in found.items():
        top = {code: float(metrics[f"top1/{code}"]["value"]) for code in LANGUAGES}
        rows[name] = {
            "en": top["en"],
            "mean of 24": statistics.mean(top.values()),
            "mean of the 12 smaller": statistics.mean(top[code] for code in small),
            "worst": min(top.values()),
            "min/mean": min(top.values()) / statistics.mean(top.values()),
        }
    for row in next(iter(rows.values())):
        table.add_row(row, *(f"{values[row]:.3f}" for values in rows.values()))
    same = [measure.require_same("runs compared, beside those asked for", abs(len(found) - len(TEMPERATURES)), 0)]
    content = {
        "pictures_by_language": counts,
        "metrics": found,
        "summary": rows,
        "same_work": same,
        "corpus": corpus.name,
        "samples": settings.samples,
        "notes": "one run for each temperature, one seed, equally many pictures seen; intervals are over test pictures",
    }
    return measure.write_result(content, settings, table)


if __name__ == "__main__":
    run(main)
