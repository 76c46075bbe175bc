"""What was measured for a recipe on one machine, and the time of a whole run that follows from it.

``python -m leam_mm.planning calibrate RECIPE --output FILE`` writes the file; ``plan --calibration FILE`` and
``compare`` read it. A value that was not measured is None.
"""

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leam_mm.errors import UserError
from leam_mm.files import write_json
from leam_mm.json_text import parse_object

VERSION = 1


@dataclass(frozen=True)
class Cost:
    """Time of one occurrence.

    Args:
        seconds: Wall time, in seconds; at least 0.
        cpu_seconds: CPU time of the process and its loader workers, in seconds; at least 0.
    """

    seconds: float
    cpu_seconds: float

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("seconds", "cpu_seconds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}, give a number of at least 0")

    def times(self, count: float) -> "Cost":
        """Return the time of several occurrences."""
        return Cost(self.seconds * count, self.cpu_seconds * count)


@dataclass(frozen=True)
class Calibration:
    """Measured on one machine with one recipe.

    Args:
        recipe: Files of the recipe.
        model_class: Its module.
        device: Name of the device, or ``cpu``.
        precision: trainer.precision.
        threads: Threads of torch.
        cores: Cores that the process could use.
        measured_at: UTC, ISO 8601.
        load_average: Load of the machine in the last minute when the measurement began; above the number of cores,
            wall times are too long.
        batch_size: Samples of one batch of one device.
        batches: Batches behind ``batch``.
        batch: One batch: forward, backward, its share of the optimizer step, waiting for data.
        first: Once in a run: compilation and first allocations.
        validation: One validation; None if the recipe has none.
        callbacks: One call of each callback that runs every so many steps, by class name.
        save: One checkpoint.
        checkpoint_bytes: Its size.
        model_flops_per_sample: Operations of forward and backward pass of one sample, without recomputation; None if
            they could not be counted.
        gemm_tflops: Sustained TFLOP/s of a large matrix product in the precision of the recipe.
        load_samples_per_core_second: Samples that the loader decodes in a second of one core.
        allreduce_bytes_per_second: Bus bandwidth of an all-reduce over all ranks, 2 (n - 1) / n of the data over its
            time; None with one rank.
        ranks: Ranks of the all-reduce.
        backend: gloo, nccl or none.
    """

    recipe: tuple[str, ...]
    model_class: str
    device: str
    precision: str
    threads: int
    cores: int
    measured_at: str
    load_average: float
    batch_size: int
    batches: int
    batch: Cost
    first: Cost
    validation: Cost | None
    callbacks: Mapping[str, Cost]
    save: Cost
    checkpoint_bytes: int
    model_flops_per_sample: float | None
    gemm_tflops: float | None
    load_samples_per_core_second: float | None
    allreduce_bytes_per_second: float | None
    ranks: int
    backend: str

    @property
    def samples_per_second(self) -> float:
        """Samples per second of one device between validations and saves."""
        return self.batch_size / self.batch.seconds

    @property
    def sustained_tflops(self) -> float | None:
        """Model TFLOP/s of one device, by wall time; None if the operations were not counted."""
        flops = self.model_flops_per_sample
        return None if flops is None else flops * self.samples_per_second / 1e12

    @property
    def save_bytes_per_second(self) -> float | None:
        """Bandwidth with which a checkpoint is written and flushed; None if it took no measurable time."""
        return self.checkpoint_bytes / self.save.seconds if self.save.seconds else None

    def write(self, path: Path) -> None:
        """Write the JSON file."""
        derived = {
            "samples_per_second": self.samples_per_second,
            "sustained_tflops": self.sustained_tflops,
            "save_bytes_per_second": self.save_bytes_per_second,
        }
        write_json(path, {"version": VERSION, **dataclasses.asdict(self), "derived": derived})


def load_calibration(path: Path) -> Calibration:
    """Read and check a file of ``calibrate``.

    Raises:
        UserError: It cannot be read, or a value is missing, of another type or out of range.
    """
    advice = "write it again with: python -m leam_mm.planning calibrate RECIPE --output FILE"
    try:
        content = parse_object(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {advice}") from None
    except ValueError as error:
        raise UserError(f"{path} is no calibration ({error}): {advice}") from None
    if content.get("version") != VERSION:
        raise UserError(f"{path}: version is {content.get('version')!r}, not {VERSION}: {advice}")
    try:
        return _build(content)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: {error}: {advice}") from None


def _build(content: Mapping[str, Any]) -> Calibration:
    hints = typing.get_type_hints(Calibration)
    values = {}
    for name, kind in hints.items():
        if name not in content:
            raise ValueError(f"{name} is missing")
        values[name] = _value(name, kind, content[name])
    for name in ("batch_size", "batches", "cores", "threads"):
        if values[name] < 1:
            raise ValueError(f"{name} is {values[name]}, give at least 1")
    if values["batch"].seconds == 0:
        raise ValueError("batch.seconds is 0, give more than 0")
    return Calibration(**values)


def _value(name: str, kind: Any, value: Any) -> Any:
    parts = typing.get_args(kind)
    if type(None) in parts:
        return None if value is None else _value(name, parts[0], value)
    if kind == tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise ValueError(f"{name} is {value!r:.60}, give a list of texts")
        return tuple(value)
    if kind == Mapping[str, Cost]:
        if not isinstance(value, dict):
            raise ValueError(f"{name} is {value!r:.60}, give an object")
        return {key: _value(f"{name}.{key}", Cost, one) for key, one in value.items()}
    if kind is Cost:
        if not isinstance(value, dict):
            raise ValueError(f"{name} is {value!r:.60}, give an object with seconds and cpu_seconds")
        try:
            return Cost(*(_value(key, float, value.get(key)) for key in ("seconds", "cpu_seconds")))
        except ValueError as error:
            raise ValueError(f"{name}.{error}") from None
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            raise ValueError(f"{name} is {value!r:.60}, give a finite number of at least 0")
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{name} is {value!r:.60}, give a value of type {kind.__name__}")
    return value


@dataclass(frozen=True)
class RunEstimate:
    """Predicted time of a run, as EnergyRecord counts it: from the first step to the last save.

    Args:
        samples: Samples seen.
        parts: Time of each part: batches, first, validation, saves, and callbacks by class name.
        missing: What is not included because it was not measured.
    """

    samples: int
    parts: Mapping[str, Cost]
    missing: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Wall seconds of the whole run."""
        return sum(part.seconds for part in self.parts.values())

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of all ranks together."""
        return sum(part.cpu_seconds for part in self.parts.values())


def estimate_run(calibration: Calibration, recipe: Mapping[str, Any], samples: int | None = None) -> RunEstimate:
    """Predict a run of the recipe on the calibrated machine with as many devices as the recipe asks for.

    With several devices, communication is not included: see scaling_simulator.py for it.

    Args:
        calibration: Of this recipe on this machine.
        recipe: The recipe, as ``read_recipe`` gives it, or the config of a run.
        samples: Samples seen; None takes the recipe's ``max_samples``.

    Raises:
        UserError: The calibration is of another module, or the recipe has no length or batch size.
    """
    if calibration.model_class != recipe["model"].get("class_path"):
        raise UserError(
            f"the calibration is of {calibration.model_class}, the recipe trains {recipe['model'].get('class_path')}: "
            "calibrate with this recipe"
        )
    total, batch = samples or recipe.get("max_samples"), (recipe["data"].get("init_args") or {}).get("batch_size")
    if not total or not batch:
        raise UserError("the recipe has no max_samples or no data.init_args.batch_size: give both")
    trainer = recipe.get("trainer") or {}
    steps, devices = math.ceil(total / batch), device_count(trainer)
    parts = {
        "batches": Cost(
            calibration.batch.seconds * total / devices / calibration.batch_size,
            calibration.batch.cpu_seconds * total / calibration.batch_size,
        ),
        "first": Cost(calibration.first.seconds, calibration.first.cpu_seconds * devices),
    }
    missing = []
    interval = trainer.get("val_check_interval")
    if isinstance(interval, int) and not isinstance(interval, bool) and trainer.get("limit_val_batches") != 0:
        if calibration.validation is not None:
            parts["validation"] = calibration.validation.times(steps // interval)
        elif (recipe["data"].get("init_args") or {}).get("validation"):
            missing.append("validation")
    saves = math.ceil(steps / int((recipe.get("checkpoint") or {}).get("every_n_train_steps") or 1000))
    parts["saves"] = calibration.save.times(saves)
    for name, every in periodic_callbacks(recipe).items():
        if name in calibration.callbacks:
            parts[name] = calibration.callbacks[name].times(steps // every)
        elif steps // every:
            missing.append(name)
    return RunEstimate(int(total), parts, tuple(missing))


def device_count(trainer: Mapping[str, Any]) -> int:
    """Return the devices that a recipe's ``trainer:`` section asks for: 1 for ``auto``."""
    counts = [trainer.get("devices"), trainer.get("num_nodes")]
    devices, nodes = (
        len(one) if isinstance(one, list) else one if isinstance(one, int) and one > 0 else 1 for one in counts
    )
    return devices * nodes


def periodic_callbacks(recipe: Mapping[str, Any]) -> dict[str, int]:
    """Return the interval in optimizer steps of each callback of a recipe that runs every so many, by class name."""
    found = {}
    for one in (recipe.get("trainer") or {}).get("callbacks") or []:
        every = (one.get("init_args") or {}).get("every_n_steps")
        if isinstance(every, int) and every > 0:
            found[str(one.get("class_path", "")).rpartition(".")[2]] = every
    return found
