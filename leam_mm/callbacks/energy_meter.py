"""Measures what a run costs: joules where the machine has a counter, CPU seconds and wall seconds always.

A machine without a counter gives ``joules=None`` and "not measured", never 0. YAML:

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
# From the widest boundary to the narrowest: the first that answers is used.
COUNTERS: tuple[Callable[[], EnergyCounter], ...] = (
    CrayCounter,
    GraceHopperCounter,
    NvmlCounter,
    AmdGpuCounter,
    RaplCounter,
)


@dataclass(frozen=True)
class EnergyReading:
    """What one stretch of time cost on one node.

    Args:
        joules: Energy, or None where nothing measures it.
        source: The counter in words, "estimated ..." or "not measured".
        coverage: The boundary: node, module, gpu, cpu, or "not measured".
        seconds: Wall time.
        cpu_seconds: Processor time of this process and its children.
        estimated: True when joules come from CPU seconds and a given power per core.
    """

    joules: float | None
    source: str
    coverage: str
    seconds: float
    cpu_seconds: float
    estimated: bool = False


class EnergyMeter:
    """Reads one node's energy between ``start`` and ``stop``; also a context manager that leaves ``reading`` behind.

    Args:
        watts_per_core: Power of a busy core, for an estimate (flagged as such) where the machine has no counter.
        counters: Constructors of counters, tried in order; an empty list measures time alone.
    """

    def __init__(
        self, watts_per_core: float | None = None, counters: Sequence[Callable[[], EnergyCounter]] = COUNTERS
    ) -> None:
        """Keep the settings; nothing is read before ``start``."""
        self.watts_per_core, self.counters = watts_per_core, counters
        self.counter: EnergyCounter | None = None
        self.reading: EnergyReading | None = None
        self._lock, self._done, self._failure = threading.Lock(), threading.Event(), ""

    def start(self) -> "EnergyMeter":
        """Find a counter and begin to count."""
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
            log.info("energy: not measured (%s)", "; ".join(refused))
        self._began = (time.monotonic(), cpu_seconds())
        return self

    def _poll(self, counter: EnergyCounter, done: threading.Event) -> None:
        """Dials wrap around and power must be integrated, so somebody has to look now and then."""
        while not done.wait(counter.interval) and not self._failure:
            self._joules(counter)

    def _joules(self, counter: EnergyCounter) -> float | None:
        with self._lock:
            if not self._failure:
                try:
                    return counter.joules()
                except OSError as error:
                    self._failure = str(error)
                    log.warning("energy: lost the counter, this stretch counts as not measured: %s", error)
            return None

    def read(self) -> EnergyReading:
        """The reading so far; the meter goes on."""
        seconds, cpu = time.monotonic() - self._began[0], cpu_seconds() - self._began[1]
        joules = self._joules(self.counter) if self.counter else None
        if joules is not None and self.counter:
            return EnergyReading(joules, self.counter.source, self.counter.coverage, seconds, cpu)
        if self.watts_per_core is not None:
            source = f"estimated: CPU seconds x {self.watts_per_core:g} W per core"
            return EnergyReading(cpu * self.watts_per_core, source, "cpu", seconds, cpu, estimated=True)
        return EnergyReading(None, NOT_MEASURED, NOT_MEASURED, seconds, cpu)

    def stop(self) -> EnergyReading:
        """The last reading; ends the polling."""
        self.reading = self.read()
        self._done.set()
        return self.reading

    def __enter__(self) -> "EnergyMeter":
        """Start."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; the result is in ``reading``."""
        self.stop()


def cpu_seconds() -> float:
    """User and system seconds of this process, its finished children and its living ones, other ranks left out."""
    own = os.times()
    total = time.process_time() + own.children_user + own.children_system
    queue = psutil.Process().children()
    while queue:
        child = queue.pop()
        try:
            # Lightning starts the node's other ranks as children of the first; each counts itself.
            if child.environ().get("LOCAL_RANK", "0") != os.environ.get("LOCAL_RANK", "0"):
                continue
            times = child.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
            queue += child.children()
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return total


class EnergyRecord(pl.Callback):
    """Keeps joules, seconds and samples of a training run, over all nodes and restarts, in the checkpoint.

    One process per node reads the counter (local rank 0); every process adds its CPU seconds. The record in the
    checkpoint (``callbacks -> EnergyRecord``) holds: joules (None until something was measured), estimated_joules (None
    unless a power per core is given), seconds, node_seconds, measured_node_seconds (less than node_seconds where part
    of the run went unmeasured), cpu_seconds, samples, source, coverage.

    Args:
        watts_per_core: Power of a busy core, for an estimate beside the measurement; None gives no estimate.
    """

    def __init__(self, watts_per_core: float | None = None) -> None:
        """Keep the settings; see the class for the arguments."""
        self.watts_per_core = watts_per_core
        self.meter: EnergyMeter | None = None
        self.record = _empty_record()
        self._before, self._samples, self._logged = self.record, 0, -1
        self._began_at: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count; what a checkpoint brought along stays as the base."""
        self.meter = EnergyMeter(counters=COUNTERS if trainer.local_rank == 0 else ()).start()
        self._before, self._samples, self._logged = self.record, 0, trainer.global_step
        self._began_at = samples_seen(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the samples; with the other metrics, log the energy where it is measured."""
        self._samples += batch_size(batch) * trainer.world_size
        step = trainer.global_step
        if step != self._logged and step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._logged = step
            self._sum(trainer)
            if self.record["joules"] is not None:
                kwh = self.record["joules"] / JOULES_PER_KWH
                pl_module.log("energy/kwh", kwh, rank_zero_only=True, batch_size=1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The last sum."""
        self._sum(trainer)
        self._end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Stop without a sum: the other ranks may be gone."""
        self._end()

    def _end(self) -> None:
        if self.meter:
            self.meter.stop()
        self.meter = None

    def _sum(self, trainer: pl.Trainer) -> None:
        """Add this stretch, summed over all ranks, to what was there before. A collective: all ranks call it."""
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
        # The position is ahead of our own count while a preempted run saves within the batch.
        known = position is not None and self._began_at is not None
        record["samples"] += (position or 0) - (self._began_at or 0) if known else self._samples
        if measured:
            record["joules"] = (record["joules"] or 0.0) + joules
            record["source"], record["coverage"] = now.source, now.coverage
        if self.watts_per_core is not None:
            record["estimated_joules"] = record["cpu_seconds"] * self.watts_per_core
        self.record = record

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Bring the record up to this very step; Lightning saves on all ranks, so the sum is safe here."""
        self._sum(trainer)
        checkpoint.setdefault("callbacks", {})[self.state_key] = self.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """The record, for the checkpoint."""
        return dict(self.record)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the record of the checkpoint."""
        self.record = {**_empty_record(), **state_dict}


def _empty_record() -> dict[str, Any]:
    zero = {"seconds": 0.0, "node_seconds": 0.0, "measured_node_seconds": 0.0, "cpu_seconds": 0.0, "samples": 0}
    return {"joules": None, "estimated_joules": None, "source": NOT_MEASURED, "coverage": NOT_MEASURED, **zero}
