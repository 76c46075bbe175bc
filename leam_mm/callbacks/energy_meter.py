"""Energy and time of one node: joules if the machine has an energy counter, and always CPU seconds and wall seconds.

Without a counter, ``joules`` is None, not 0, and ``source`` is "not measured". This file imports neither torch nor
Lightning: a pipeline measures its stages without them.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

import psutil

from leam_mm.callbacks.energy_counter import (
    CounterUnavailable,
    CrayCounter,
    EnergyCounter,
    GraceHopperCounter,
    RaplCounter,
)
from leam_mm.callbacks.gpu_energy import AmdGpuCounter, NvmlCounter

log = logging.getLogger(__name__)
NOT_MEASURED = "not measured"
# Ordered from the widest boundary to the narrowest. The first available counter is used alone: energy of a GPU that is
# within a node or module is not added to it.
COUNTERS: tuple[Callable[[], EnergyCounter], ...] = (
    CrayCounter,
    GraceHopperCounter,
    NvmlCounter,
    AmdGpuCounter,
    RaplCounter,
)
BOUNDARIES = {
    "node": "the whole node, used or not, with its memory and network cards",
    "module": "CPU, GPU and memory of every module of the node, used or not; without network cards, fans and disks",
    "gpu": "the GPUs with their memory; without CPU, network cards and fans",
    "gpu share": "the GPUs with their memory; of a module of two dies that share a sensor, half for each die in use",
    "cpu": "the CPU packages and their memory; without GPUs, network cards and fans",
}


@dataclass(frozen=True)
class EnergyReading:
    """Energy and time of one interval on one node.

    Args:
        joules: Energy in joules, or None if it was not measured.
        source: Name of the counter, "estimated ..." or "not measured".
        coverage: Boundary of the measurement: node, module, gpu, gpu share, cpu, or "not measured".
        seconds: Wall time in seconds.
        cpu_seconds: CPU time of this process and its children, in seconds.
        estimated: True if joules were computed from CPU seconds and ``watts_per_core``.
        gap_seconds: Part of ``seconds`` that the counter did not measure, because it could not be read or was reset.
    """

    joules: float | None
    source: str
    coverage: str
    seconds: float
    cpu_seconds: float
    estimated: bool = False
    gap_seconds: float = 0.0

    @property
    def measured_seconds(self) -> float:
        """Seconds for which joules were measured; 0 for an estimate."""
        measured = self.joules is not None and not self.estimated
        return max(0.0, self.seconds - self.gap_seconds) if measured else 0.0


class EnergyMeter:
    """Measure the energy of one node between ``start`` and ``stop``. As a context manager, set ``reading`` on exit.

    Args:
        watts_per_core: Power of a busy core in watts, for an estimate if no counter gives joules; None disables it.
        counters: Constructors of counters, tried in order; an empty sequence measures only time.
        gpus: PCI addresses of the GPUs in use on this node, such as ``0000:c1:00``; empty if not known.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        watts_per_core: float | None = None,
        counters: Sequence[Callable[[], EnergyCounter]] = COUNTERS,
        gpus: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Store the settings; ``start`` opens the counter."""
        self.watts_per_core, self.counters, self.gpus, self.clock = watts_per_core, counters, gpus, clock
        self.counter: EnergyCounter | None = None
        self.reading: EnergyReading | None = None
        self._lock, self._done, self._failure = threading.Lock(), threading.Event(), ""

    def start(self) -> "EnergyMeter":
        """Open the first available counter, start polling it and return this meter."""
        self.counter, self._failure = None, ""
        refused: list[str] = []
        for build in self.counters:
            try:
                self.counter = build()
                break
            except CounterUnavailable as reason:
                refused.append(str(reason))
        if self.counter:
            self.counter.count_only(self.gpus)
            boundary = BOUNDARIES.get(self.counter.coverage, "")
            wider = f"; not here: {'; '.join(refused)}" if refused else ""
            log.info("energy: %s; boundary %s: %s%s", self.counter.source, self.counter.coverage, boundary, wider)
            self._done = threading.Event()
            threading.Thread(target=self._poll, args=(self.counter, self._done), daemon=True).start()
        elif self.counters:
            log.info("energy: not measured, no counter is available (%s)", "; ".join(refused))
        self._began = (self.clock(), cpu_seconds())
        return self

    def _poll(self, counter: EnergyCounter, done: threading.Event) -> None:
        """Poll regularly: counters wrap around, and power readings must be integrated."""
        while not done.wait(counter.interval):
            self._joules(counter)

    def _joules(self, counter: EnergyCounter) -> tuple[float | None, float]:
        """Return the energy so far, or None if there was no measurement, and the seconds without one."""
        with self._lock:
            try:
                return counter.joules(), counter.gap_seconds
            except OSError as error:
                if not self._failure:
                    self._failure = str(error)
                    log.warning("energy: cannot read the counter, nothing is measured yet: %s", error)
                return None, 0.0

    def read(self) -> EnergyReading:
        """Return the reading since ``start`` without stopping the meter."""
        seconds, cpu = self.clock() - self._began[0], cpu_seconds() - self._began[1]
        joules, gap = self._joules(self.counter) if self.counter else (None, 0.0)
        if joules is not None and self.counter:
            return EnergyReading(joules, self.counter.source, self.counter.coverage, seconds, cpu, gap_seconds=gap)
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
    # Lightning starts the other ranks of a node as children of rank 0; each rank counts its own CPU time.
    rank = os.environ.get("LOCAL_RANK", "0")
    children = _tree_seconds(psutil.Process().children(), rank)
    return time.process_time() + own.children_user + own.children_system + children


def process_seconds(number: int) -> float:
    """Return user plus system seconds of a process and all its children; 0 if it has ended.

    Args:
        number: Number of the process.
    """
    try:
        return _tree_seconds([psutil.Process(number)])
    except psutil.NoSuchProcess:
        return 0.0


def _tree_seconds(queue: list[psutil.Process], rank: str | None = None) -> float:
    """Return the CPU seconds of processes with their children, of one local rank or of all."""
    total = 0.0
    while queue:
        child = queue.pop()
        try:
            if rank is not None and child.environ().get("LOCAL_RANK", "0") != rank:
                continue
            times = child.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
            queue += child.children()
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return total
