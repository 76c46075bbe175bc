"""Energy and time of a run: joules if the machine has an energy counter, and always CPU seconds and wall seconds.

Without a counter, ``joules`` is None, not 0, and ``source`` is "not measured". YAML:

    trainer:
      callbacks:
        - class_path: leam_mm.callbacks.energy_meter.EnergyRecord
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import lightning.pytorch as pl
import psutil
import torch

from leam_mm.callbacks.energy_counter import (
    AmdGpuCounter,
    CounterUnavailable,
    CrayCounter,
    EnergyCounter,
    GraceHopperCounter,
    NvmlCounter,
    RaplCounter,
)
from leam_mm.callbacks.throughput import batch_size
from leam_mm.data.batch import samples_seen

log = logging.getLogger(__name__)
JOULES_PER_KWH = 3.6e6
NOT_MEASURED = "not measured"
# Ordered from the widest boundary to the narrowest; the first available counter is used.
COUNTERS: tuple[Callable[[], EnergyCounter], ...] = (
    CrayCounter,
    GraceHopperCounter,
    NvmlCounter,
    AmdGpuCounter,
    RaplCounter,
)


@dataclass(frozen=True)
class EnergyReading:
    """Energy and time of one interval on one node.

    Args:
        joules: Energy in joules, or None if it was not measured.
        source: Name of the counter, "estimated ..." or "not measured".
        coverage: Boundary of the measurement: node, module, gpu, cpu, or "not measured".
        seconds: Wall time in seconds.
        cpu_seconds: CPU time of this process and its children, in seconds.
        estimated: True if joules were computed from CPU seconds and ``watts_per_core``.
    """

    joules: float | None
    source: str
    coverage: str
    seconds: float
    cpu_seconds: float
    estimated: bool = False


class EnergyMeter:
    """Measure the energy of one node between ``start`` and ``stop``. As a context manager, set ``reading`` on exit.

    Args:
        watts_per_core: Power of a busy core in watts, for an estimate if no counter gives joules; None disables it.
        counters: Constructors of counters, tried in order; an empty sequence measures only time.
    """

    def __init__(
        self, watts_per_core: float | None = None, counters: Sequence[Callable[[], EnergyCounter]] = COUNTERS
    ) -> None:
        """Store the settings; ``start`` opens the counter."""
        self.watts_per_core, self.counters = watts_per_core, counters
        self.counter: EnergyCounter | None = None
        self.reading: EnergyReading | None = None
        self._lock, self._done, self._failure = threading.Lock(), threading.Event(), ""

    def start(self) -> "EnergyMeter":
        """Open the first available counter, start polling it and return this meter."""
        self.counter, self._failure = None, ""
        refused = []
        for build in self.counters:
            try:
                self.counter = build()
                break
            except CounterUnavailable as reason:
                refused.append(str(reason))
        if self.counter:
            log.info("energy: %s (%s)", self.counter.source, self.counter.coverage)
            self._done = threading.Event()
            threading.Thread(target=self._poll, args=(self.counter, self._done), daemon=True).start()
        elif self.counters:
            log.info("energy: not measured, no counter is available (%s)", "; ".join(refused))
        self._began = (time.monotonic(), cpu_seconds())
        return self

    def _poll(self, counter: EnergyCounter, done: threading.Event) -> None:
        """Poll regularly: counters wrap around, and power readings must be integrated."""
        while not done.wait(counter.interval) and not self._failure:
            self._joules(counter)

    def _joules(self, counter: EnergyCounter) -> float | None:
        with self._lock:
            if not self._failure:
                try:
                    return counter.joules()
                except OSError as error:
                    self._failure = str(error)
                    log.warning("energy: cannot read the counter, this interval is not measured: %s", error)
            return None

    def read(self) -> EnergyReading:
        """Return the reading since ``start`` without stopping the meter."""
        seconds, cpu = time.monotonic() - self._began[0], cpu_seconds() - self._began[1]
        joules = self._joules(self.counter) if self.counter else None
        if joules is not None and self.counter:
            return EnergyReading(joules, self.counter.source, self.counter.coverage, seconds, cpu)
        if self.watts_per_core is not None:
            source = f"estimated: CPU seconds x {self.watts_per_core:g} W per core"
            return EnergyReading(cpu * self.watts_per_core, source, "cpu", seconds, cpu, estimated=True)
        return EnergyReading(None, NOT_MEASURED, NOT_MEASURED, seconds, cpu)

    def stop(self) -> EnergyReading:
        """Stop polling and return the final reading."""
        self.reading = self.read()
        self._done.set()
        return self.reading

    def __enter__(self) -> "EnergyMeter":
        """Call ``start``."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Call ``stop``; the result is in ``reading``."""
        self.stop()


def cpu_seconds() -> float:
    """Return user plus system seconds of this process and its finished and running children, without other ranks."""
    own = os.times()
    total = time.process_time() + own.children_user + own.children_system
    queue = psutil.Process().children()
    while queue:
        child = queue.pop()
        try:
            # Lightning starts the other ranks of a node as children of rank 0; each rank counts its own CPU time.
            if child.environ().get("LOCAL_RANK", "0") != os.environ.get("LOCAL_RANK", "0"):
                continue
            times = child.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
            queue += child.children()
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return total


class EnergyRecord(pl.Callback):
    """Record joules, seconds and samples of a run, over all nodes and restarts, in the checkpoint.

    Local rank 0 of each node reads the counter; every process adds its CPU seconds. The record in the checkpoint
    (``callbacks -> EnergyRecord``) holds joules (None if nothing was measured), estimated_joules (None without
    ``watts_per_core``), seconds, node_seconds, measured_node_seconds (less than node_seconds if part of the run was
    not measured), cpu_seconds, samples, source and coverage.

    Args:
        watts_per_core: Power of a busy core in watts, for an estimate in addition to the measurement; None disables it.
    """

    def __init__(self, watts_per_core: float | None = None) -> None:
        """See the class for the arguments."""
        self.watts_per_core = watts_per_core
        self.meter: EnergyMeter | None = None
        self.record = _empty_record()
        self._before, self._samples, self._logged = self.record, 0, -1
        self._began_at: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the meter; a record loaded from a checkpoint is kept and added to."""
        self.meter = EnergyMeter(counters=COUNTERS if trainer.local_rank == 0 else ()).start()
        self._before, self._samples, self._logged = self.record, 0, trainer.global_step
        self._began_at = samples_seen(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the samples; log ``energy/kwh`` at every logging step if energy is measured."""
        self._samples += batch_size(batch) * trainer.world_size
        step = trainer.global_step
        if step != self._logged and step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._logged = step
            self._sum(trainer)
            if self.record["joules"] is not None:
                kwh = self.record["joules"] / JOULES_PER_KWH
                pl_module.log("energy/kwh", kwh, rank_zero_only=True, batch_size=1)

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
        measured = node if now.joules is not None else 0.0
        parts = torch.tensor([now.joules or 0.0, node, measured, now.cpu_seconds], dtype=torch.float64)
        if trainer.world_size > 1:
            parts = trainer.strategy.reduce(parts.to(trainer.strategy.root_device), reduce_op="sum")
        joules, node, measured, cpu = parts.tolist()
        record = dict(self._before)
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
            record["source"], record["coverage"] = now.source, now.coverage
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


def _empty_record() -> dict[str, Any]:
    zero = {"seconds": 0.0, "node_seconds": 0.0, "measured_node_seconds": 0.0, "cpu_seconds": 0.0, "samples": 0}
    return {"joules": None, "estimated_joules": None, "source": NOT_MEASURED, "coverage": NOT_MEASURED, **zero}
