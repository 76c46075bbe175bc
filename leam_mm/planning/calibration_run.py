"""Measurements of a recipe on this machine, in a few minutes: a short run, a matrix product, the loader, all-reduce.

The short run is the recipe's own, with train.py: its batches, precision, callbacks, validation and checkpoints, in a
temporary folder, on one device. Nothing of the recipe's run folder is read or changed.
"""

import copy
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from leam_mm.data.plan_datamodule import PlannedModule
from leam_mm.errors import UserError
from leam_mm.files import write_text
from leam_mm.json_text import parse_object
from leam_mm.planning.allreduce_speed import first_rank, measure_allreduce
from leam_mm.planning.calibration import Calibration, Cost, device_count
from leam_mm.planning.recipe_file import read_recipe
from leam_mm.planning.recipe_work import recipe_work
from leam_mm.recorded_classes import build_recorded, class_names, trust_modules

ROOT = Path(__file__).resolve().parents[2]
CLOCK = "leam_mm.callbacks.step_clock.StepClock"
LAUNCHERS = ("SLURM_", "PMI", "OMPI_", "TORCHELASTIC_")
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
ONE_OFF = 4.0  # a batch that takes this many times the median is counted once: compilation for a new shape


@dataclass(frozen=True)
class Budget:
    """Seconds of each part of a calibration; about two thirds of three minutes, for processes take time to start.

    Args:
        training: Steps of the recipe.
        loading: Decoding without training.
        product: Matrix product.
    """

    training: float = 75.0
    loading: float = 10.0
    product: float = 5.0


def calibrate(files: Sequence[Path], budget: Budget = Budget()) -> Calibration | None:
    """Measure a recipe on this machine.

    Started with several ranks (srun or torchrun), all of them measure an all-reduce, and the first one the rest.

    Args:
        files: The recipe, then overlays.
        budget: How long to measure.

    Returns:
        The calibration; None on all ranks but the first.

    Raises:
        UserError: The recipe's run fails here; the message holds its last line.
    """
    recipe = read_recipe(files)
    load = os.getloadavg()[0]
    bandwidth, ranks, backend = measure_allreduce()
    if not first_rank():
        return None
    times, resolved = timed_run(recipe, budget.training)
    batch, first, callbacks = summarize(times, recipe)
    validations = [Cost(*one) for one in times["validations"]]
    try:
        flops = recipe_work(recipe, samples=int(recipe["data"]["init_args"]["batch_size"]))
        per_sample: float | None = flops.model_flops / flops.samples
    except UserError:
        per_sample = None
    trainer = recipe.get("trainer") or {}
    save = float(times["save_seconds"])
    return Calibration(
        recipe=tuple(str(file) for file in files),
        model_class=str(recipe["model"]["class_path"]),
        device=str(times["device"]),
        precision=str(trainer.get("precision") or "32-true"),
        threads=int(recipe.get("threads") or torch.get_num_threads()),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        load_average=round(load, 2),
        batch_size=int(times["samples"]),
        batches=len(times["steps"]),
        batch=batch,
        first=first,
        validation=_mean(validations) if validations else None,
        callbacks=callbacks,
        save=Cost(save, float(times["save_cpu_seconds"])),
        checkpoint_bytes=int(times["checkpoint_bytes"]),
        model_flops_per_sample=per_sample,
        gemm_tflops=measure_product(str(times["device"]) != "cpu", str(trainer.get("precision")), budget.product),
        load_samples_per_core_second=measure_loading(resolved, int(times["samples"]), budget.loading),
        allreduce_bytes_per_second=bandwidth,
        ranks=ranks,
        backend=backend,
    )


def timed_recipe(recipe: Mapping[str, Any], folder: Path, seconds: float) -> dict[str, Any]:
    """Return the recipe of the short run: one device, with the clock, in a folder of its own.

    Callbacks and validation come early, so that each is timed at least once.

    Args:
        recipe: The recipe.
        folder: Run folder.
        seconds: Length of training.
    """
    timed = copy.deepcopy(dict(recipe))
    trainer = timed["trainer"] = dict(timed.get("trainer") or {})
    devices = device_count(trainer)
    data = timed["data"].setdefault("init_args", {})
    accumulated = int(trainer.get("accumulate_grad_batches") or 1)
    data["batch_size"] = max(accumulated, int(data["batch_size"]) // devices)
    timed["max_samples"] = data["batch_size"] * 1_000_000
    trainer |= {"default_root_dir": str(folder), "devices": 1, "num_nodes": 1, "strategy": "auto", "plugins": None}
    trainer |= {"logger": True, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    if isinstance(trainer.get("val_check_interval"), int):
        trainer["val_check_interval"] = 40 * accumulated
    callbacks = [dict(one) for one in trainer.get("callbacks") or []]
    for number, one in enumerate(callbacks):
        if isinstance((one.get("init_args") or {}).get("every_n_steps"), int):
            one["init_args"] = {**one["init_args"], "every_n_steps": 30 + 7 * number}
    clock = {"output": str(folder / "times.json"), "seconds": seconds}
    trainer["callbacks"] = [*callbacks, {"class_path": CLOCK, "init_args": clock}]
    whole = {"every_n_train_steps": 1_000_000, "dirpath": None, "asynchronous": False}
    timed["checkpoint"] = {**(timed.get("checkpoint") or {}), **whole}
    timed["ckpt_path"] = None
    for name in ("extend", "allow_change", "cooldown_samples"):
        timed.pop(name, None)
    return timed


def timed_run(recipe: Mapping[str, Any], seconds: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train for some seconds with train.py; return what the clock has written, and the resolved config.

    Raises:
        UserError: The run fails.
    """
    with tempfile.TemporaryDirectory(prefix="leam_mm-calibrate-") as name:
        folder = Path(name)
        write_text(folder / "recipe.yaml", yaml.safe_dump(timed_recipe(recipe, folder, seconds), sort_keys=False))
        command = [sys.executable, str(ROOT / "train.py"), "fit", "--config", str(folder / "recipe.yaml")]
        kept = {
            key: value
            for key, value in os.environ.items()
            if key not in RANK_VARIABLES and not key.startswith(LAUNCHERS)
        }
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        try:
            done = subprocess.run(
                command, env={**kept, "PYTHONPATH": path}, capture_output=True, text=True, timeout=seconds + 600
            )
        except subprocess.TimeoutExpired:
            raise UserError(
                f"the short run of {seconds:g} s did not end in ten more minutes: start train.py to see why"
            ) from None
        times = folder / "times.json"
        if done.returncode or not times.is_file():
            lines = (done.stderr.strip() or done.stdout.strip() or "it wrote nothing").splitlines()
            reason = lines[-1].removeprefix("error: ")
            raise UserError(f"the recipe's run fails on this machine ({reason}): correct it, then calibrate")
        return parse_object(times.read_bytes()), yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))


def summarize(times: Mapping[str, Any], recipe: Mapping[str, Any]) -> tuple[Cost, Cost, dict[str, Cost]]:
    """Return the cost of a batch, of the start, and of each periodic callback.

    The cost of a callback is what the batches at which it ran took more than others. Batches of many times the median
    are counted once in a run, as those that compile.

    Args:
        times: What the clock has written.
        recipe: The recipe.

    Raises:
        UserError: The run was too short.
    """
    warm, steps = int(times["warm_steps"]), [tuple(one) for one in times["steps"]]
    timed = timed_recipe(recipe, Path("unused"), 1.0)["trainer"]["callbacks"]
    periods = {
        str(one["class_path"]).rpartition(".")[2]: int(one["init_args"]["every_n_steps"])
        for one in timed
        if "every_n_steps" in (one.get("init_args") or {})
    }
    plain, called = [], {name: [] for name in periods}  # type: ignore[var-annotated]
    for number, (step, wall, cpu) in enumerate(steps):
        # The callback runs at the end of the batch that brings the number of optimizer steps to its period.
        after = steps[number + 1][0] if number + 1 < len(steps) else step + 1
        names = [name for name, every in periods.items() if after > step and after % every == 0]
        if names:
            for name in names:
                called[name].append((wall, cpu))
        elif number >= warm:
            plain.append((wall, cpu))
    if len(plain) < 5:
        raise UserError(f"only {len(steps)} batches were timed: give calibrate more time with --seconds")
    limit = ONE_OFF * statistics.median(wall for wall, _ in plain)
    steady = [one for one in plain if one[0] <= limit]
    wall = statistics.fmean(one[0] for one in steady)
    own = statistics.fmean(one[1] for one in steady)  # CPU time of the process, without its loader workers
    callbacks = {
        name: Cost(max(0.0, _average(found, 0) - wall), max(0.0, _average(found, 1) - own))
        for name, found in called.items()
        if found
    }
    counted = sum(Cost(*one).cpu_seconds for one in times["validations"])
    extra = sum(callbacks[name].cpu_seconds * len(found) for name, found in called.items() if found)
    one_off_cpu = sum(one[1] - own for one in plain if one[0] > limit)
    late = len(steps) - warm
    warm_cpu = float(times["warm_cpu_seconds"])
    cpu = (float(times["cpu_seconds"]) - warm_cpu - counted - extra - one_off_cpu) / late
    one_off = sum(one[0] - wall for one in plain if one[0] > limit)
    start = sum(one[1] for one in steps[:warm]) - wall * warm + one_off  # one[1]: wall seconds of (step, wall, CPU)
    first = Cost(max(0.0, start), max(0.0, warm_cpu - cpu * warm + one_off_cpu))
    return Cost(wall, max(cpu, 0.0)), first, callbacks


def _average(found: Sequence[tuple[float, float]], part: int) -> float:
    return statistics.fmean(one[part] for one in found)


def _mean(costs: Sequence[Cost]) -> Cost:
    return Cost(statistics.fmean(one.seconds for one in costs), statistics.fmean(one.cpu_seconds for one in costs))


def measure_product(accelerated: bool, precision: str, seconds: float) -> float:
    """Return the TFLOP/s of a square matrix product: in bfloat16 on a GPU or for a bf16 recipe, else in float32."""
    device = torch.device("cuda" if accelerated and torch.cuda.is_available() else "cpu")
    low = device.type == "cuda" or "bf16" in precision
    side = 8192 if device.type == "cuda" else 1024
    left, right = (
        torch.randn(side, side, device=device).to(torch.bfloat16 if low else torch.float32) for _ in range(2)
    )
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        for _ in range(4):
            left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - began) / 4)
    return 2 * side**3 / best / 1e12


def measure_loading(recipe: Mapping[str, Any], batch_size: int, seconds: float) -> float | None:
    """Return the samples that the loader decodes in a second of one core; None for foreign data modules.

    Args:
        recipe: Resolved config, with the defaults of the data module.
        batch_size: Samples of a batch.
        seconds: How long to measure.
    """
    trust_modules(name for name in class_names(recipe) if "." in name)
    section = copy.deepcopy(dict(recipe["data"]))
    section["init_args"] |= {"batch_size": batch_size}
    section["init_args"]["loading"] = {**(section["init_args"].get("loading") or {}), "workers": 0}
    module = build_recorded(section, PlannedModule, ("leam_mm.data",)) if _planned(section) else None
    if module is None:
        return None
    module.setup("fit")
    samples, began, started = 0, 0.0, 0.0
    for number, _ in enumerate(module.train_dataloader()):
        if number == 1:  # the first batch opens files
            began, started, samples = time.process_time(), time.perf_counter(), 0
        samples += batch_size
        if number > 1 and time.perf_counter() - started > seconds:
            break
    used = time.process_time() - began
    return (samples - batch_size) / used if used > 0 and samples > batch_size else None


def _planned(section: Mapping[str, Any]) -> bool:
    return str(section.get("class_path", "")).startswith("leam_mm.data.")
