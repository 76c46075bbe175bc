"""Controls of the audit of energy: a counter of known power on a clock of its own."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from leam_mm.audits.audit import AuditContext
from leam_mm.audits.energy import Energy
from leam_mm.audits.energy_use import EnergyRuns, EnergyUse, energy_use
from leam_mm.callbacks.carbon import JOULES_PER_KWH
from leam_mm.callbacks.energy_counter import CumulativeCounter
from leam_mm.controls.coded_models import CodedEncoder, CodedGenerator
from leam_mm.controls.control import Control, Outcome
from leam_mm.diffusion.sampler_settings import SamplerSettings

SIDE = 64  # pixels, of images
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


class EnergyOfKnownMachine(Energy):
    """The audit on a machine of constant power; each call of a model takes 2 s of its clock.

    Args:
        watts: The power.
    """

    def __init__(self, watts: float) -> None:
        """See the class for the arguments."""
        super().__init__(
            EnergyRuns(seconds=4.0, warm_up=2.0), batch_size=ITEMS, embeddings=ITEMS, sampling=SamplerSettings(1)
        )
        self.watts = watts

    def use(self, work: Callable[[int], None], items: int, device: torch.device) -> EnergyUse:
        """Measure real calls of the models on the known clock."""
        clock = ControlClock()

        def timed(number: int) -> None:
            work(number)
            clock.work(number)

        return energy_use(timed, items, self.runs, device, [lambda: KnownCounter(self.watts, clock)], clock)


def _run(watts: float, verdict: str, folder: Path) -> Outcome:
    """Run the whole audit on a generator and an encoder of images of 64 pixels."""
    clip = CodedEncoder(lambda image: torch.ones(len(image), 4), lambda text: torch.ones(4), image_size=SIDE)
    generator = CodedGenerator(lambda prompt, number: torch.zeros(3, SIDE, SIDE))
    results = EnergyOfKnownMachine(watts).run(AuditContext(clip, generator, folder))
    expected = 1000 * watts * SECONDS / ITEMS / JOULES_PER_KWH
    exact = all(abs((result.value or 0.0) - expected) < 1e-9 * expected for result in results)
    limits = [result.threshold.most for result in results if result.threshold is not None]
    scaled = limits == [0.5 * (SIDE / 512) ** 2, 0.005 * (SIDE / 224) ** 2]
    found = {result.audit: result.verdict for result in results}
    right = exact and scaled and found == {"energy/images": verdict, "energy/embeddings": verdict}
    values = ", ".join(f"{result.value:.3g} kWh per 1,000" for result in results)
    return Outcome(f"{', '.join(f'{name} {said}' for name, said in found.items())} ({values})", right)


def energy_controls() -> list[Control]:
    """Return the controls."""
    return [
        Control("audit/energy", "machine of 20 kW, 1.39 kWh per 1,000", True, "fail",
                partial(_measured, 20e3, False, "fail")),
        Control("audit/energy", "machine of 200 W, 0.0139 kWh per 1,000", False, "pass",
                partial(_measured, 200.0, False, "pass")),
        Control("audit/energy", "whole audit of two models on a machine of 200 W", True, "fail",
                partial(_run, 200.0, "fail")),
        Control("audit/energy", "whole audit of two models on a machine of 1 W", False, "pass",
                partial(_run, 1.0, "pass")),
        Control("audit/energy", "machine of 200 W without a counter, so that its use is estimated", False,
                "inconclusive", partial(_measured, 200.0, True, "inconclusive")),
    ]  # fmt: skip
