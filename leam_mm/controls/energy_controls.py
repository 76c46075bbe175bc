"""Controls of the audit of energy: a counter of known power on a clock of its own."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from leam_mm.audits.energy import Energy
from leam_mm.audits.energy_use import EnergyRuns, EnergyUse, energy_use
from leam_mm.callbacks.carbon import JOULES_PER_KWH
from leam_mm.callbacks.energy_counter import CumulativeCounter
from leam_mm.controls.control import Control, Outcome

ITEMS, SECONDS = 8, 2.0  # of one call of the work
LIMIT = 0.5  # kWh per 1,000


class ControlClock:
    """Seconds that pass only while work is done."""

    def __init__(self) -> None:
        """Start at 0."""
        self.seconds = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.seconds

    def work(self, items: int) -> None:
        """Let the time of one call pass."""
        self.seconds += SECONDS


class KnownCounter(CumulativeCounter):
    """Counter of a machine with constant power.

    Args:
        watts: The power.
        clock: The time.
    """

    source, coverage = "counter of known power", "node"

    def __init__(self, watts: float, clock: Callable[[], float]) -> None:
        """See the class for the arguments."""
        self.watts = watts
        super().__init__(["machine"], clock)

    def read(self, part: str) -> float:
        """Return the joules so far."""
        return self.watts * self.clock()


def known_use(watts: float) -> EnergyUse:
    """Return what is measured of work of 2 s for 8 items on a machine of constant power."""
    clock = ControlClock()
    runs = EnergyRuns(seconds=30.0, warm_up=4.0)
    return energy_use(clock.work, ITEMS, runs, torch.device("cpu"), [lambda: KnownCounter(watts, clock)], clock)


def _measured(watts: float, estimated: bool, verdict: str, folder: Path) -> Outcome:
    use = replace(known_use(watts), estimated=estimated)
    result = Energy().result("images", use, "control images", LIMIT, f"{LIMIT} kWh", {}, torch.device("cpu"))
    value, found = result.value or 0.0, result.verdict
    expected = 1000 * watts * SECONDS / ITEMS / JOULES_PER_KWH
    exact = abs(value - expected) < 1e-9 * expected
    return Outcome(f"{found}: {value:.4f} kWh per 1,000, expected {expected:.4f}", exact and found == verdict)


def energy_controls() -> list[Control]:
    """Return the controls."""
    return [
        Control("audit/energy", "machine of 20 kW, 1.39 kWh per 1,000", True, "fail",
                partial(_measured, 20e3, False, "fail")),
        Control("audit/energy", "machine of 200 W, 0.0139 kWh per 1,000", False, "pass",
                partial(_measured, 200.0, False, "pass")),
        Control("audit/energy", "machine of 200 W without a counter, so that its use is estimated", False,
                "inconclusive", partial(_measured, 200.0, True, "inconclusive")),
    ]  # fmt: skip
