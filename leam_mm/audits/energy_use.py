"""Energy of one item of work at steady state: measured by the machine's counter, or estimated."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy
import torch
from scipy.stats import t

from leam_mm.callbacks.energy_counter import EnergyCounter
from leam_mm.callbacks.energy_meter import COUNTERS, EnergyMeter, EnergyReading
from leam_mm.callbacks.energy_record import gpu_address
from leam_mm.errors import UserError
from leam_mm.planning.counted_flops import count

log = logging.getLogger(__name__)
# Assumed for an estimate where nothing is measured. A server processor: 280 W at a quarter of 5.0e12 FLOP/s in fp32
# (64 cores at 2.45 GHz, 32 FLOP a cycle). A GPU: 700 W at 30 % of 989e12 FLOP/s in bf16.
JOULES_PER_FLOP = {"cpu": 2.2e-10, "cuda": 2.4e-12}


@dataclass(frozen=True)
class EnergyRuns:
    """How energy is measured.

    Args:
        seconds: Steady state of each repeat, at least.
        warm_up: Seconds of the same work before the first repeat.
        repeats: Number of repeats, at least 3.
        watts_per_core: Power of a busy core in watts, for an estimate from CPU seconds where no counter is available.
        joules_per_flop: For an estimate from FLOP where neither is given; None takes an assumed number of the device.
    """

    seconds: float = 30.0
    warm_up: float = 5.0
    repeats: int = 3
    watts_per_core: float | None = None
    joules_per_flop: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.repeats < 3 or not self.seconds > 0 or self.warm_up < 0:
            raise UserError(
                f"Energy: runs has repeats {self.repeats}, seconds {self.seconds}, warm_up {self.warm_up}: give at "
                "least 3 repeats of more than 0 seconds"
            )


@dataclass(frozen=True)
class EnergyUse:
    """Energy of one item (an image or an embedding).

    Args:
        joules: Of each repeat; a single number for an estimate from FLOP.
        items: Items of all repeats.
        source: The counter, or how it was estimated.
        coverage: Boundary of the measurement.
        estimated: Whether it is no measurement.
        measured: Share of the time that the counter measured.
    """

    joules: tuple[float, ...]
    items: int
    source: str
    coverage: str
    estimated: bool
    measured: float = 1.0

    def interval(self) -> tuple[float, float, float]:
        """Return the mean of the repeats in joules with its t interval; NaN ends for a single number."""
        mean, repeats = float(numpy.mean(self.joules)), len(self.joules)
        if repeats < 2:
            return mean, float("nan"), float("nan")
        half = float(t.ppf(0.975, repeats - 1)) * float(numpy.std(self.joules, ddof=1)) / repeats**0.5
        return mean, max(0.0, mean - half), mean + half


def energy_use(
    work: Callable[[int], None],
    items: int,
    runs: EnergyRuns,
    device: torch.device,
    counters: Sequence[Callable[[], EnergyCounter]] = COUNTERS,
    clock: Callable[[], float] = time.monotonic,
) -> EnergyUse:
    """Measure the energy of work at steady state; without a counter, estimate it.

    Args:
        work: Processes a number of items.
        items: Items of one call.
        runs: Length and number of the repeats.
        device: Where it runs.
        counters: Constructors of energy counters, tried in order.
        clock: Seconds, monotonic.
    """
    address = gpu_address(device)
    gpus = [] if address is None else [f"{address[0]:04x}:{address[1]:02x}:{address[2]:02x}"]

    def meter() -> EnergyMeter:
        return EnergyMeter(runs.watts_per_core, counters, gpus, clock)

    probe = meter().start()
    available = probe.counter is not None or runs.watts_per_core is not None
    probe.stop()
    if not available:
        return _from_flops(work, runs, device)
    _repeat(work, items, runs.warm_up, device, clock)
    found: list[tuple[float, int, EnergyReading]] = []
    for _ in range(runs.repeats):
        with meter() as reading:
            done = _repeat(work, items, runs.seconds, device, clock)
        last = reading.reading
        if last is None or last.joules is None:
            return _from_flops(work, runs, device)
        found.append((last.joules / done, done, last))
    last = found[-1][2]
    measured = min(reading.measured_seconds / reading.seconds for _, _, reading in found)
    joules, done = tuple(entry[0] for entry in found), sum(entry[1] for entry in found)
    return EnergyUse(joules, done, last.source, last.coverage, last.estimated, measured)


def _repeat(
    work: Callable[[int], None], items: int, seconds: float, device: torch.device, clock: Callable[[], float]
) -> int:
    """Work until the time is over, at least once, and return the number of items."""
    begin, done = clock(), 0
    while not done or clock() - begin < seconds:
        work(items)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        done += items
    return done


def _from_flops(work: Callable[[int], None], runs: EnergyRuns, device: torch.device) -> EnergyUse:
    """Estimate from the FLOP of one item, counted while it is processed."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused attention is not counted
    try:
        flops = count(lambda: work(1))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    given = runs.joules_per_flop
    rate = given if given is not None else JOULES_PER_FLOP.get(device.type, JOULES_PER_FLOP["cpu"])
    kind = "given" if given is not None else f"assumed for {device.type}"
    source = f"estimated: {flops:.3g} FLOP x {rate:g} J/FLOP ({kind})"
    log.info("energy: no counter is available here; %s", source)
    return EnergyUse((flops * rate,), 1, source, "not measured", True)
