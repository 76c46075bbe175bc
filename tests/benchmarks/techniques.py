"""What each technique gains or loses: learning on scenes or emoji against samples and seconds, over three seeds.

    python tests/benchmarks/techniques.py                       runs/quickstart, seven arms, three seeds
    python tests/benchmarks/techniques.py --runs runs/emoji

The arms train the recipe's generator on the same samples in the same order from the same weights with the same noise:
plain rectified flow with AdamW at the rate that the recipe had for it; the recipe's Muon; plain with representation
alignment, token routing or contrastive flow, as their overlays say; plain with a trained caption tower; and
Muon with contrastive flow. The averaged weights draw the same prompts.

Alignment needs an image encoder with patches. The quickstart's is a small convolutional one, so a vision transformer of
our own is trained on the same pictures and captions first (its cost is stated and counts for no arm); a large
pretrained encoder is not available offline. Needs the folder of `make quickstart` or `make emoji`.
"""

import hashlib
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import measure
import numpy as np
import yaml
from processes import ONE_THREAD, ROOT, call
from rich.console import Console
from rich.table import Table
from scipy import stats

from leam_mm.errors import run
from leam_mm.intervals.intervals import bootstrap_interval

RUN = Path(__file__).with_name("technique_run.py")
OVERLAYS = {"repa": "overlay_repa.yaml", "tread": "overlay_tread.yaml", "contrastive": "overlay_contrastive_flow.yaml"}
ARMS = ("plain", "muon", *OVERLAYS, "tower", "muon_contrastive")
# A projection of 2048 channels would cost three times as much as this generator.
ALIGNED = {"feature_size": 96, "depth": 2, "width": 256}
TOWER = {"image_size": 32, "patch_size": 8, "width": 96, "layers": 4, "head_width": 32, "pool_type": "avg"}
BETTER = {"frechet": -1, "colour": 1, "colour_shape": 1}


def program(words: list[str], log: Path, runs: Path) -> None:
    """Run one of our programs on one core in the folder of the pipeline: checkpoints hold relative paths."""
    environment = {**ONE_THREAD, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    log.write_text(call([sys.executable, *words], runs.parent.parent, **environment))


def recipe_of(kind: str, corpus: str, runs: Path) -> dict[str, Any]:
    """A recipe whose inputs lie in the given folder."""
    usual = "runs/quickstart" if corpus == "scenes" else "runs/emoji"
    return yaml.safe_load((ROOT / f"configs/{corpus}_{kind}.yaml").read_text().replace(usual, str(runs)))


def prepare(corpus: str, runs: Path, folder: Path, samples: int, console: Console) -> dict[str, Any]:
    """Train the image encoder, store its features beside latents, and gather these; each only where it is missing."""
    encoder, latents, data = folder / "encoder", folder / "latents", folder / "latents.pt"
    costs = folder / "preparation.json"
    seconds: dict[str, Any] = json.loads(costs.read_text()) if costs.is_file() else {}
    folder.mkdir(parents=True, exist_ok=True)
    recipe = recipe_of("clip", corpus, runs)
    recipe["trainer"] |= {"default_root_dir": str(encoder), "limit_val_batches": 0, "num_sanity_val_steps": 0}
    recipe["trainer"] |= {"enable_progress_bar": False, "callbacks": []}
    recipe["trainer"].pop("val_check_interval", None)
    batch = recipe["data"]["init_args"]["batch_size"]
    recipe |= {"max_samples": samples // batch * batch, "checkpoint": {"every_n_train_steps": 10**9}}
    recipe["model"]["init_args"]["encoder"]["vision"] = TOWER
    (folder / "encoder.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "collect.json").write_text(json.dumps({"collect": str(latents), "runs": str(runs), "data": str(data)}))
    encode = [f"{ROOT}/data_tools/encode_latents.py", "--shards", f"{runs}/shards/train", "--codec", f"{runs}/codec"]
    encode += ["--clip", f"{runs}/clip", "--features", str(encoder), "--statistics", f"{runs}/latents/train"]
    stages = (
        (
            "encoder",
            encoder / "checkpoints/last.ckpt",
            [str(ROOT / "train.py"), "fit", "--config", f"{folder}/encoder.yaml"],
        ),
        ("latents", latents, [*encode, "--output", str(latents)]),
        ("gathering", data, [str(RUN), str(folder / "collect.json")]),
    )
    for name, result, words in stages:
        if not result.exists():
            console.print(f"{name} ...")
            begun = time.perf_counter()
            program(words, folder / f"{name}.log", runs)
            seconds[name] = time.perf_counter() - begun
            costs.write_text(json.dumps(seconds))
    return seconds


def arm_settings(arm: str, corpus: str, runs: Path, folder: Path, seed: int, settings: Any) -> dict[str, Any]:
    """All settings of one run."""
    recipe = recipe_of("generator", corpus, runs)
    model, batch = recipe["model"], recipe["data"]["init_args"]["batch_size"]
    arguments = model["init_args"]
    arguments["seed"] = seed
    arguments["frozen"]["latents"] = str(folder / "latents")
    parts = arm.split("_")
    if "muon" not in parts:
        adamw = {"lr": settings.rate, "betas": [0.9, 0.99], "weight_decay": 0.01, "fused": True}
        arguments["optimizer"] = {"class_path": "torch.optim.AdamW", "init_args": adamw}
    arguments.pop("caption_tower", None)
    if "tower" in parts:
        arguments["caption_tower"] = {"text": recipe_of("clip", corpus, runs)["model"]["init_args"]["encoder"]["text"]}
    for name in OVERLAYS.keys() & set(parts):
        overlay = yaml.safe_load((ROOT / "configs" / OVERLAYS[name]).read_text())
        arguments["techniques"] = overlay["model"]["init_args"]["techniques+"]
    if "repa" in parts:
        arguments["techniques"][0]["init_args"] |= ALIGNED
    return {
        "model": model,
        "seed": seed,
        "batch_size": batch,
        "steps": settings.samples // batch,
        "looks": settings.looks,
        "pictures": settings.pictures,
        "data": str(folder / "latents.pt"),
        "runs": str(runs),
    }


def train_all(corpus: str, runs: Path, folder: Path, settings: Any, console: Console) -> dict[str, dict[int, Any]]:
    """Train each arm with each seed, one seed after the other; finished runs of an interrupted measurement are kept."""
    seeds = range(1, settings.seeds + 1)
    turns = [(seed, arm) for seed in seeds for arm in settings.arms[seed - 1 :] + settings.arms[: seed - 1]]
    trainings = folder / "trainings"
    trainings.mkdir(exist_ok=True)

    def work(turn: tuple[int, str]) -> Any:
        seed, arm = turn
        content = json.dumps(arm_settings(arm, corpus, runs, folder, seed, settings))
        file = trainings / f"{arm}-{seed}-{hashlib.sha256(content.encode()).hexdigest()[:8]}.json"
        file.write_text(content)
        result = file.with_suffix(".found.json")
        if not result.is_file():
            program([str(RUN), str(file)], file.with_suffix(".log"), runs)
        found = json.loads(result.read_text())
        last = {name: round(found["curve"][-1][name], 3) for name in BETTER if name in found["curve"][-1]}
        console.print(f"seed {seed} {arm}: {last}, {found['curve'][-1]['cpu_seconds']:.0f} CPU s of training")
        return found

    with ThreadPoolExecutor(settings.jobs) as pool:
        done = list(pool.map(work, turns))
    found: dict[str, dict[int, Any]] = {arm: {} for arm in settings.arms}
    for (seed, arm), one in zip(turns, done, strict=True):
        found[arm][seed] = one
    return found


def spread(values: list[float]) -> dict[str, Any]:
    """Mean, and its 95 % interval by Student's t; one value has none."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None, "values": values}
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return {"mean": mean, "low": mean - half, "high": mean + half, "values": values}


def at_seconds(curve: list[dict[str, Any]], name: str, seconds: float) -> float:
    """A number after so many CPU seconds, in a straight line between two looks; beyond the ends the nearest look's."""
    return float(np.interp(seconds, [point["cpu_seconds"] for point in curve], [point[name] for point in curve]))


def compare(found: dict[str, dict[int, Any]], arm: str, name: str) -> dict[str, Any]:
    """An arm against plain: differences of equal seeds, at as many samples and at as many seconds."""
    seeds = sorted(found[arm])
    ends = {side: [found[side][seed]["curve"][-1] for seed in seeds] for side in ("plain", arm)}
    same = [mine[name] - plain[name] for mine, plain in zip(ends[arm], ends["plain"], strict=True)]
    timed = [
        at_seconds(found[arm][seed]["curve"], name, end["cpu_seconds"]) - end[name]
        for seed, end in zip(seeds, ends["plain"], strict=True)
    ]
    result: dict[str, Any] = {"at_equal_samples": spread(same), "at_equal_seconds": spread(timed)}
    if f"{name}_right" in ends[arm][0]:
        right = [np.array([end[f"{name}_right"] for end in ends[side]], float).mean(0) for side in (arm, "plain")]
        low, high = bootstrap_interval(right[0] - right[1], lambda rows: float(rows.mean()))
        result["over_pictures"] = {"low": low, "high": high, "pictures": len(right[0])}
    interval = result["at_equal_samples"]
    result["verdict"] = verdict(interval, BETTER[name])
    return result


def verdict(interval: dict[str, Any], better: int) -> str:
    """Gain, loss, or not shown, by the interval over seeds."""
    if interval["low"] is None:
        return "not shown: one seed has no interval"
    if interval["low"] <= 0 <= interval["high"]:
        return "neither gain nor loss shown"
    return "gain" if interval["mean"] * better > 0 else "loss"


def same_work(found: dict[str, dict[int, Any]]) -> list[dict[str, Any]]:
    """All arms of a seed saw the same samples in the same order and began with the same weights."""
    entries = []
    for what, key in (("samples and captions, in order", "order"), ("first weights of the generator", "beginning")):
        kinds = [len({runs[seed][key] for runs in found.values()}) for seed in next(iter(found.values()))]
        entries.append(measure.require_same(f"{what}: kinds beyond one, of the arms of a seed", max(kinds) - 1, 0))
    return entries


def report(found: dict[str, dict[int, Any]], seconds: dict[str, Any], corpus: str, settings: Any) -> Path:
    """Print the table and write the JSON."""
    checked = same_work(found)
    first = next(iter(next(iter(found.values())).values()))
    names = [name for name in BETTER if name in first["curve"][-1]]
    table = Table("arm", *names, "CPU s", title="techniques")
    arms: dict[str, Any] = {}
    lines: list[str] = []
    for arm, runs in found.items():
        ends = [one["curve"][-1] for one in runs.values()]
        entry: dict[str, Any] = {name: spread([end[name] for end in ends]) for name in names}
        entry["cpu_seconds"] = spread([end["cpu_seconds"] for end in ends])
        entry["curves"] = {str(seed): one["curve"] for seed, one in runs.items()}
        if arm != "plain" and "plain" in found:
            entry["against_plain"] = {name: compare(found, arm, name) for name in names}
        arms[arm] = entry
        lines += [
            f"{arm} against plain, {name}: {gap['at_equal_samples']['mean']:+.3g} at as many samples "
            f"({_ends(gap['at_equal_samples'])}), {gap['at_equal_seconds']['mean']:+.3g} at as many seconds "
            f"({_ends(gap['at_equal_seconds'])}): {gap['verdict']}"
            for name, gap in entry.get("against_plain", {}).items()
        ]
        cells = [f"{entry[name]['mean']:.4g} ({_ends(entry[name])})" for name in names]
        table.add_row(arm, *cells, f"{entry['cpu_seconds']['mean']:.0f}")
    content = {
        "corpus": corpus,
        "samples": settings.samples,
        "seeds": settings.seeds,
        "arms": arms,
        "same_work": checked,
        "preparation_seconds": seconds,
        "generator_weights": first["weights"],
        "features": first["protocol"],
        "notes": (
            f"Averaged weights draw {settings.pictures} English captions of held-out pictures, 20 steps, guidance 3; "
            "Fréchet distance to real held-out pictures, biased upwards alike for all; single objects read by rule. "
            "Intervals over seeds by Student's t on differences of equal seeds; over_pictures by bootstrap; those of "
            "a Fréchet distance by half samples. Seconds are the CPU's, of training alone, on one core, compiled "
            "blocks; at_equal_seconds interpolates between looks, whose rates have not all fallen to zero. "
            f"REPA's encoder is a vision transformer of {settings.encoder_samples} samples, its projection 256 wide"
        ),
    }
    name = "techniques" if corpus == "scenes" else f"techniques_{corpus}"
    return measure.write_result(content, settings, table, name, "\n".join(lines))


def _ends(interval: dict[str, Any]) -> str:
    return "no interval" if interval["low"] is None else f"{interval['low']:.3g} to {interval['high']:.3g}"


@measure.benchmark(
    repeats=3,
    runs=(Path("runs/quickstart"), "folder of a pipeline"),
    samples=(32_000, "samples seen in each run"),
    seeds=(3, "runs of each arm"),
    arms=(list(ARMS), "what is compared", {"choices": ARMS}),
    jobs=(min(2, os.cpu_count() or 1), "runs at a time"),
    looks=(3, "evaluations in a run"),
    pictures=(256, "images drawn in an evaluation"),
    rate=(0.002, "learning rate of AdamW"),
    encoder_samples=(51_200, "samples that REPA's encoder is trained on"),
)
def main(settings: measure.Settings) -> list[Path]:
    """Prepare, train, compare."""
    console = Console()
    settings.repeats, runs = settings.seeds, settings.runs.resolve()
    if not all((runs / name).exists() for name in ("shards/train/manifest.jsonl", "codec", "clip", "latents/train")):
        console.print(
            f"techniques: {settings.runs} is not there, not measured; make quickstart or make emoji writes it"
        )
        return []
    corpus = "scenes" if (runs / "scenes/scenes.json").is_file() else "emoji"
    folder = (settings.output / "techniques" / corpus).resolve()
    seconds = prepare(corpus, runs, folder, settings.encoder_samples, console)
    return [report(train_all(corpus, runs, folder, settings, console), seconds, corpus, settings)]


if __name__ == "__main__":
    run(main)
