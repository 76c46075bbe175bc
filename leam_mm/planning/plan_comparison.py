"""Prediction beside measurement of a finished run: time, rate, device hours, energy, carbon and money.

The measurement is the record of EnergyRecord in the run's last checkpoint. Energy is compared over the boundary that
was measured (node, module, gpu or cpu); carbon and money follow from either energy by the same factors of the site.
What was not measured stays empty.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from leam_mm.errors import UserError
from leam_mm.planning.calibration import Calibration, device_count, estimate_run
from leam_mm.planning.cluster_profile import ClusterProfile
from leam_mm.planning.cost_plan import GPU_LOAD

JOULES_PER_KWH = 3.6e6
NOT_MEASURED, NOT_KNOWN = "not measured", "not known"
CORES = "core hours"
GPU_BOUNDARIES = ("gpu", "gpu share", "module")


@dataclass(frozen=True)
class Measured:
    """What a run used, summed over its restarts.

    Args:
        seconds: Wall seconds from the first step to the last save, without the time between restarts.
        samples: Samples seen.
        cpu_seconds: CPU seconds of all ranks and loader workers.
        devices: Ranks.
        nodes: Nodes.
        on_gpus: Whether the ranks used GPUs.
        kwh: Energy over ``coverage``; None if it was not measured.
        coverage: Boundary of the energy: node, module, gpu, gpu share, cpu, or "not measured".
        measured_share: Share of the node seconds in which energy was measured, in [0, 1].
        source: The counter.
    """

    seconds: float
    samples: int
    cpu_seconds: float
    devices: int
    nodes: int
    on_gpus: bool
    kwh: float | None
    coverage: str
    measured_share: float
    source: str


@dataclass(frozen=True)
class Predicted:
    """What was expected of the run; None where nothing was predicted.

    Args:
        seconds: As in `Measured`.
        cpu_seconds: As in `Measured`.
        watts: Mean power of one node over the measured boundary.
        source: What the prediction rests on, one sentence.
        missing: Parts of the run that it leaves out.
    """

    seconds: float | None
    cpu_seconds: float | None
    watts: float | None
    source: str
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class ComparedValue:
    """One line of the comparison.

    Args:
        name: Quantity.
        unit: Its unit.
        predicted: Predicted value, None if not known.
        measured: Measured value, None if not measured.
        note: Boundary and source.
    """

    name: str
    unit: str
    predicted: float | None
    measured: float | None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Measured over predicted; None where one is missing or the prediction is 0."""
        return self.measured / self.predicted if self.predicted and self.measured is not None else None


def read_measured(checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> Measured:
    """Return what a run used.

    Args:
        checkpoint: The last checkpoint, as ``read_checkpoint`` gives it.
        config: The run's resolved config.

    Raises:
        UserError: The checkpoint holds no record.
    """
    record = checkpoint.get("callbacks", {}).get("EnergyRecord")
    if not record or not record.get("seconds"):
        raise UserError(
            "the checkpoint holds no record of time and energy (callbacks.EnergyRecord): nothing to compare"
        )
    trainer = config.get("trainer") or {}
    nodes = trainer.get("num_nodes")
    node_seconds, measured = float(record.get("node_seconds", 0)), float(record.get("measured_node_seconds", 0))
    joules = record.get("joules")
    return Measured(
        seconds=float(record["seconds"]),
        samples=int(record.get("samples", 0)),
        cpu_seconds=float(record.get("cpu_seconds", 0)),
        devices=device_count(trainer),
        nodes=nodes if isinstance(nodes, int) and nodes > 0 else 1,
        on_gpus=_on_gpus(trainer, record),
        kwh=None if joules is None else joules / JOULES_PER_KWH,
        coverage=str(record.get("coverage", NOT_MEASURED)),
        measured_share=measured / node_seconds if node_seconds else 0.0,
        source=str(record.get("source", NOT_MEASURED)),
    )


def _on_gpus(trainer: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    """Return whether a run used GPUs: it asked for them, or its energy counter is one of theirs."""
    return trainer.get("accelerator") in ("gpu", "cuda") or record.get("coverage") in GPU_BOUNDARIES


def predict(
    calibration: Calibration, config: Mapping[str, Any], samples: int, profile: ClusterProfile | None, coverage: str
) -> Predicted:
    """Predict a run from a calibration.

    Args:
        calibration: Of the recipe on the machine.
        config: The run's config.
        samples: Samples of the run.
        profile: The machine, for its power; None if there is no profile.
        coverage: Boundary of the power.

    Raises:
        UserError: The calibration does not fit the recipe.
    """
    estimate = estimate_run(calibration, config, samples)
    source = f"calibration of {calibration.measured_at}: {calibration.batches} batches on {calibration.device}"
    return Predicted(
        estimate.seconds, estimate.cpu_seconds, node_watts(profile, coverage), source, estimate.missing
    )  # fmt: skip


def node_watts(profile: ClusterProfile | None, coverage: str) -> float | None:
    """Return the expected power of a busy node over a boundary, in watts; None if the profile does not know it.

    Args:
        profile: The machine.
        coverage: ``node``; ``gpu`` or ``module``, a share of the limits of all devices; others are not known. Without
            a measurement the node counts.
    """
    if profile is None:
        return None
    if coverage in ("node", NOT_MEASURED):
        return profile.node.watts.value
    watts, count = profile.gpu.watts.value, profile.gpu.per_node.value
    return GPU_LOAD * watts * count if coverage in GPU_BOUNDARIES and watts and count else None


def compare(predicted: Predicted, measured: Measured, profile: ClusterProfile | None) -> list[ComparedValue]:
    """Set a prediction beside a measurement.

    Args:
        predicted: What was expected.
        measured: What the run used.
        profile: The machine, for PUE, carbon and prices; None if there is no profile.

    Returns:
        Seconds, samples per second, device hours, core hours, kWh, CO2e of grid and market, cost of electricity and
        devices.
    """
    seconds, hours = predicted.seconds, None if predicted.seconds is None else predicted.seconds / 3600
    device_hours = None if hours is None else hours * measured.devices
    values = [
        ComparedValue("time", "s", seconds, measured.seconds, "first step to last save"),
        ComparedValue(
            "rate", "samples/s", measured.samples / seconds if seconds else None, measured.samples / measured.seconds,
            f"{measured.samples:,} samples, all included",
        ),
    ]  # fmt: skip
    used = measured.devices * measured.seconds / 3600 if measured.on_gpus else None
    if measured.on_gpus:
        values.append(ComparedValue("GPU hours", "h", device_hours, used, f"{measured.devices} devices"))
    cores = None if predicted.cpu_seconds is None else predicted.cpu_seconds / 3600
    values.append(ComparedValue(CORES, "h", cores, measured.cpu_seconds / 3600, "CPU time of all processes"))
    share = measured.measured_share if measured.kwh is not None else 1.0
    kwh = None
    if predicted.watts is not None and hours is not None:
        kwh = predicted.watts * measured.nodes * hours * share / 1000
    boundary = measured.coverage if measured.kwh is not None else "node"
    note = f"boundary: {boundary}" + (f", {share:.0%} of the run" if share < 0.995 else "")
    values.append(ComparedValue("energy", "kWh", kwh, measured.kwh, note))
    pue = profile.site.pue.value if profile is not None else None
    for name, unit, factor in _factors(profile):
        scale = None if pue is None or factor is None else pue * factor
        values.append(
            ComparedValue(
                name,
                unit,
                None if kwh is None or scale is None else kwh * scale,
                None if measured.kwh is None or scale is None else measured.kwh * scale,
                f"boundary: {boundary}, x PUE x factor of the site" if scale is not None else "factor not known",
            )
        )
    price = profile.site.euro_per_gpu_hour.value if profile is not None else None
    if measured.on_gpus and used is not None:
        bought = None if device_hours is None or price is None else device_hours * price
        values.append(ComparedValue("GPU cost", "euro", bought, None if price is None else used * price))
    return values


def _factors(profile: ClusterProfile | None) -> list[tuple[str, str, float | None]]:
    site = profile.site if profile is not None else None
    grams = [one.value if one is not None else None for one in (
        (site.grid_grams_per_kwh, site.market_grams_per_kwh, site.euro_per_kwh) if site is not None else (None,) * 3
    )]  # fmt: skip
    grid, market, euro = grams
    return [
        ("carbon, grid", "kg CO2e", None if grid is None else grid / 1000),
        ("carbon, market", "kg CO2e", None if market is None else market / 1000),
        ("electricity", "euro", euro),
    ]


def comparison_json(values: list[ComparedValue], predicted: Predicted, measured: Measured) -> dict[str, Any]:
    """Return the comparison as plain values; what is missing is null."""
    return {
        "predicted_from": predicted.source,
        "not_predicted": list(predicted.missing),
        "measured": asdict(measured),
        "values": [{**asdict(value), "ratio": value.ratio} for value in values],
    }
