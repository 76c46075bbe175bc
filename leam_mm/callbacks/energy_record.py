"""Energy and time of a training run, summed over its nodes and restarts, in every checkpoint.

``train.py`` adds it to every run; the section ``energy`` of the recipe gives what is needed for emissions:

    energy: {grams_per_kwh: 79.2, market_grams_per_kwh: 0, pue: 1.04, source: "codecarbon 2023, Finland"}
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import lightning.pytorch as pl
import torch

from leam_mm.callbacks.carbon import JOULES_PER_KWH, KINDS, CarbonFactors, add
from leam_mm.callbacks.energy_meter import COUNTERS, NOT_MEASURED, EnergyMeter
from leam_mm.callbacks.hardware_name import hardware_name
from leam_mm.callbacks.throughput import batch_size
from leam_mm.data.batch import samples_seen


def gpu_address(device: torch.device) -> tuple[int, int, int] | None:
    """Return PCI domain, bus and device of a CUDA or ROCm device; None for others and where torch does not tell."""
    if device.type != "cuda":
        return None
    found = torch.cuda.get_device_properties(device)
    numbers = [getattr(found, f"pci_{name}_id", None) for name in ("domain", "bus", "device")]
    return None if None in numbers else (int(numbers[0]), int(numbers[1]), int(numbers[2]))  # type: ignore[arg-type]


def used_gpus(trainer: pl.Trainer) -> list[str]:
    """Return the PCI addresses of the GPUs of all ranks on this node. A collective on GPUs: all ranks must call it."""
    device = trainer.strategy.root_device
    own = gpu_address(device)
    if device.type != "cuda":
        return []
    row = torch.tensor([trainer.node_rank, *(own or (-1, -1, -1))], dtype=torch.int64, device=device)
    rows = trainer.strategy.all_gather(row).reshape(-1, 4).tolist()
    return node_addresses(rows, trainer.node_rank)


def node_addresses(rows: Sequence[Sequence[int]], node: int) -> list[str]:
    """Return the PCI addresses of a node's GPUs; none if one of them is not known.

    Args:
        rows: Node, PCI domain, bus and device of each rank; -1 where torch does not tell.
        node: Number of the node.
    """
    found = [numbers for place, *numbers in rows if place == node]
    if any(min(numbers) < 0 for numbers in found):
        return []
    return sorted({f"{domain:04x}:{bus:02x}:{slot:02x}" for domain, bus, slot in found})


class EnergyRecord(pl.Callback):
    """Record joules, emissions, seconds and samples of a run, over all nodes and restarts, in the checkpoint.

    Local rank 0 of each node reads the counter; every process adds its CPU seconds. The record in the checkpoint
    (``callbacks -> EnergyRecord``) holds joules (None if nothing was measured), estimated_joules (None without
    ``watts_per_core``), seconds, node_seconds, measured_node_seconds (less than node_seconds if part of the run was
    not measured), cpu_seconds, samples, source, coverage, and what ``CarbonFactors.emitted`` returns. Emissions are of
    measured energy only. began_at and ended_at are times of first start and latest save (UTC); hardware names the
    devices of the latest start.

    Args:
        watts_per_core: Power of a busy core in watts, for an estimate in addition to the measurement; None disables it.
        grams_per_kwh: CO2 equivalents of the grid in g/kWh, location-based; None is "not given".
        market_grams_per_kwh: CO2 equivalents of the site's contract in g/kWh, market-based; None is "not given".
        pue: Power usage effectiveness of the site, at least 1; None leaves cooling and losses out.
        source: Where these numbers come from, with a date.
    """

    def __init__(
        self,
        watts_per_core: float | None = None,
        grams_per_kwh: float | None = None,
        market_grams_per_kwh: float | None = None,
        pue: float | None = None,
        source: str | None = None,
    ) -> None:
        """See the class for the arguments."""
        self.watts_per_core = watts_per_core
        self.factors = CarbonFactors(grams_per_kwh, market_grams_per_kwh, pue, source)
        self.meter: EnergyMeter | None = None
        self.record = _empty_record()
        self._before, self._samples, self._logged = self.record, 0, -1
        self._began_at: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the meter; a record loaded from a checkpoint is kept and added to."""
        self.meter = EnergyMeter(counters=COUNTERS if trainer.local_rank == 0 else (), gpus=used_gpus(trainer)).start()
        self._before, self._samples, self._logged = self.record, 0, trainer.global_step
        self._began_at = samples_seen(trainer)
        devices = hardware_name(trainer.strategy.root_device, trainer.world_size)
        self.record |= {"began_at": self.record["began_at"] or _now(), "hardware": devices}
        self._before = self.record

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the samples; log ``energy/kwh`` and ``energy/KIND_co2_kg`` at every logging step where measured."""
        self._samples += batch_size(batch) * trainer.world_size
        step = trainer.global_step
        if step != self._logged and step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._logged = step
            self._sum(trainer)
            if self.record["joules"] is not None:
                kwh = self.record["joules"] / JOULES_PER_KWH
                pl_module.log("energy/kwh", kwh, rank_zero_only=True, batch_size=1)
            for kind in KINDS:
                if (grams := self.record[f"{kind}_grams"]) is not None:
                    pl_module.log(f"energy/{kind}_co2_kg", grams / 1000, rank_zero_only=True, batch_size=1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Update the record a last time and stop the meter."""
        self._sum(trainer)
        self._end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Stop the meter without a reduction over ranks: other ranks may have exited."""
        self._end()

    def _end(self) -> None:
        if self.meter:
            self.meter.stop()
        self.meter = None

    def _sum(self, trainer: pl.Trainer) -> None:
        """Add the reading, summed over all ranks, to the loaded record. A collective: all ranks must call it."""
        if self.meter is None:
            return
        now = self.meter.read()
        node = now.seconds if trainer.local_rank == 0 else 0.0
        measured = now.measured_seconds if trainer.local_rank == 0 else 0.0
        parts = torch.tensor([now.joules or 0.0, node, measured, now.cpu_seconds], dtype=torch.float64)
        if trainer.world_size > 1:
            parts = trainer.strategy.reduce(parts.to(trainer.strategy.root_device), reduce_op="sum")
        joules, node, measured, cpu = parts.tolist()
        record = self._before | {"ended_at": _now()}
        record["seconds"] += now.seconds
        record["node_seconds"] += node
        record["measured_node_seconds"] += measured
        record["cpu_seconds"] += cpu
        position = samples_seen(trainer)
        # A preempted run saves within the batch, when the position is already ahead of ``self._samples``.
        has_position = position is not None and self._began_at is not None
        record["samples"] += (position or 0) - (self._began_at or 0) if has_position else self._samples
        if measured:
            record["joules"] = (record["joules"] or 0.0) + joules
            if now.joules is not None:  # the counter of this node may be lost while those of others go on
                record["source"], record["coverage"] = now.source, now.coverage
            record |= add(self._before, self.factors.emitted(joules))
        elif record["joules"] is None:
            record |= self.factors.emitted(None)
        if self.watts_per_core is not None:
            record["estimated_joules"] = record["cpu_seconds"] * self.watts_per_core
        self.record = record

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Update the record to this step; Lightning calls this hook on all ranks, so the collective cannot hang."""
        self._sum(trainer)
        checkpoint.setdefault("callbacks", {})[self.state_key] = self.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """Return the record."""
        return dict(self.record)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the record of the checkpoint; later updates add to it."""
        self.record = {**_empty_record(), **state_dict}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _empty_record() -> dict[str, Any]:
    zero = {"seconds": 0.0, "node_seconds": 0.0, "measured_node_seconds": 0.0, "cpu_seconds": 0.0, "samples": 0}
    carbon = CarbonFactors().emitted(None)
    return {
        "joules": None,
        "estimated_joules": None,
        "source": NOT_MEASURED,
        "coverage": NOT_MEASURED,
        **dict.fromkeys(("began_at", "ended_at", "hardware")),
        **zero,
        **carbon,
    }
