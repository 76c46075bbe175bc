"""Energy counters of nodes, modules and CPUs: HPE Cray, Grace Hopper and RAPL. ``gpu_energy.py`` has those of GPUs.

No vendor package is needed. Every counter takes a root folder or a library handle, so that tests can pass a simulated
one. The constructor raises ``CounterUnavailable`` with the reason if the machine lacks the counter. Each counter states
its boundary (node, module, gpu, gpu share or cpu) as ``coverage``. Do not compare numbers of different boundaries.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

log = logging.getLogger(__name__)
MOST_WATTS = 1000.0  # of a part whose counter wraps around: more than any CPU package draws
Clock = Callable[[], float]


class CounterUnavailable(Exception):
    """The machine lacks the counter or the user may not read it; the message gives the reason."""


class EnergyCounter:
    """Base class of counters of the energy used since construction.

    Attributes:
        source: Name of the counter.
        coverage: Boundary of the measurement: node, module, gpu, gpu share or cpu.
        interval: Longest time between two calls of ``joules`` that loses no energy, in seconds.
        gap_seconds: Seconds since construction without a measurement, as of the last call of ``joules``. If some of
            the parts were not measured, their mean: 10 s of one part of four are 2.5 s.
    """

    source: str
    coverage: str
    interval: float = 30.0
    gap_seconds: float = 0.0

    def joules(self) -> float:
        """Return the energy since construction without the gaps, in joules.

        Raises:
            OSError: Nothing has been measured since construction.
        """
        raise NotImplementedError

    def count_only(self, gpus: Sequence[str]) -> None:
        """Leave out GPUs that the run does not use; counters with a wider boundary than a GPU ignore it.

        Args:
            gpus: PCI addresses of the GPUs that the run uses on this node, such as ``0000:c1:00``.
        """


class PartsCounter(EnergyCounter):
    """Base class of counters that read one number for each part of the machine.

    A part that cannot be read, or whose counter was reset, is not measured for that time: its energy is left out and
    the time adds to ``gap_seconds``. Subclasses define ``read`` and ``grown``.

    Args:
        parts: Names of the parts.
        clock: Seconds, monotonic.
        silent: Parts that exist but give no reading; they are not measured at any time.
    """

    def __init__(self, parts: Iterable[str], clock: Clock, silent: Iterable[str] = ()) -> None:
        """Take the first reading; raises CounterUnavailable where there is none."""
        self.clock, self._total, self._failure = clock, 0.0, ""
        self._last: dict[str, tuple[float, float]] = {}
        try:
            for part in parts:
                self._last[part] = (clock(), self.read(part))
        except (OSError, ValueError) as error:
            raise CounterUnavailable(f"{self.source}: {error}") from None
        # The share of each part that counts, the time since when it is not measured, and the sum of earlier gaps.
        self.weights = dict.fromkeys([*self._last, *silent], 1.0)
        self._broken = dict.fromkeys(silent, clock())
        self._gaps = dict.fromkeys(self.weights, 0.0)
        self._measured = False

    def read(self, part: str) -> float:
        """Return the number of a part in its unit (joules or watts)."""
        raise NotImplementedError

    def grown(self, part: str, before: tuple[float, float], now: tuple[float, float]) -> float | None:
        """Return the joules between two readings (seconds, number) of a part, or None if they are not known."""
        raise NotImplementedError

    def joules(self) -> float:
        """Return the energy since construction in joules, summed over the parts."""
        counted = [part for part, weight in self.weights.items() if weight]
        for part in counted:
            if part in self._last:
                self._update(part)
        now = self.clock()
        gaps = [self._gaps[part] + (now - self._broken[part] if part in self._broken else 0.0) for part in counted]
        self.gap_seconds = sum(gaps) / max(1, len(gaps))
        if not self._measured:
            raise OSError(self._failure or f"{self.source} gave no reading")
        return self._total

    def _update(self, part: str) -> None:
        before = self._last[part]
        try:
            now = (self.clock(), self.read(part))
        except (OSError, ValueError) as error:
            self._fail(part, f"cannot be read ({error})")
            return
        grown = self.grown(part, before, now)
        self._last[part] = now
        if grown is None:
            if part not in self._broken:
                self._fail(part, "gave no usable difference: the counter was reset or read too rarely", since=before[0])
            self._gaps[part] += now[0] - self._broken.pop(part)
            return
        self._broken.pop(part, None)
        self._measured = True
        self._total += grown * self.weights[part]

    def _fail(self, part: str, reason: str, since: float | None = None) -> None:
        if part not in self._broken:
            self._broken[part] = self._last[part][0] if since is None else since
            self._failure = f"{self.source}: {part} {reason}"
            log.warning("energy: %s; this time of this part is not measured", self._failure)


class CumulativeCounter(PartsCounter):
    """Base class of hardware counters of joules; a missed reading loses nothing, unless the counter wraps."""

    def wrap(self, part: str) -> float:
        """Return the value in joules at which the counter of this part wraps around to 0, or 0 if it never wraps."""
        return 0.0

    def grown(self, part: str, before: tuple[float, float], now: tuple[float, float]) -> float | None:
        """Return the difference, corrected for one wraparound; None after a reset or possibly several wraparounds."""
        difference, wrap = now[1] - before[1], self.wrap(part)
        if wrap and now[0] - before[0] > wrap / MOST_WATTS:
            return None
        if difference < 0 and wrap:
            # A reset counter starts at 0, so it looks like a wraparound with more power than the part can draw.
            difference += wrap
            if difference > MOST_WATTS * max(now[0] - before[0], 1.0):
                return None
        return difference if difference >= 0 else None


class PowerCounter(PartsCounter):
    """Base class of power meters: energy is the trapezoidal integral of power, read about once per second."""

    interval = 1.0

    def grown(self, part: str, before: tuple[float, float], now: tuple[float, float]) -> float | None:
        """Return the area below the straight line between the readings; None if one was missed between them."""
        return None if part in self._broken else (now[0] - before[0]) * (now[1] + before[1]) / 2


class CrayCounter(CumulativeCounter):
    """Energy of a whole HPE Cray EX node (LUMI, Frontier), including accelerators and memory.

    ``cpu_energy``, ``memory_energy`` and ``accel[0-3]_energy`` beside it are parts of it and are not added.

    Args:
        root: Folder of the counters.
        clock: Seconds, monotonic.
    """

    source, coverage = "Cray pm_counters energy", "node"

    def __init__(self, root: Path = Path("/sys/cray/pm_counters"), clock: Clock = time.monotonic) -> None:
        """Open the counter; see the class for the arguments."""
        self.file = root / "energy"
        super().__init__(["node"], clock)

    def read(self, part: str) -> float:
        """Return the joules in the file, which holds ``<joules> J <microseconds> us``."""
        words = self.file.read_text().split()
        return float(words[0] if words else "")


class GraceHopperCounter(PowerCounter):
    """Module power of GH200 and GB200 (JUPITER) from ACPI power meters: CPU, GPU, both memories and regulators.

    The meters called grace, cpu and sysio are parts of the module and are not added.

    Args:
        root: The hwmon folder.
        clock: Seconds, monotonic.
    """

    source, coverage = "Grace Hopper module power meters, integrated", "module"

    def __init__(self, root: Path = Path("/sys/class/hwmon"), clock: Clock = time.monotonic) -> None:
        """Find the module meters; see the class for the arguments."""
        names = sorted(root.glob("hwmon*/device/power1_oem_info"))
        self.files = {
            text(name).strip(): name.with_name("power1_average")
            for name in names
            if "module power" in text(name).lower()
        }
        if not self.files:
            raise CounterUnavailable(f"no module power meter under {root}")
        super().__init__(self.files, clock)

    def read(self, part: str) -> float:
        """Return watts; the driver reports microwatts."""
        return float(self.files[part].read_text()) / 1e6


class RaplCounter(CumulativeCounter):
    """Energy of CPU packages and their memory from RAPL (Intel and AMD); often readable by root only.

    Args:
        root: The powercap folder.
        clock: Seconds, monotonic.
    """

    source, coverage = "RAPL packages and memory", "cpu"

    def __init__(self, root: Path = Path("/sys/class/powercap"), clock: Clock = time.monotonic) -> None:
        """Find the zones; see the class for the arguments."""
        zones = sorted(root.glob("intel-rapl:*"))
        # A package includes its cores but not its memory; psys would count all of them twice.
        found = [zone for zone in zones if text(zone / "name").strip().split("-")[0] in ("package", "dram")]
        if not found:
            raise CounterUnavailable(f"no RAPL package under {root}")
        self.zones = {zone.name: zone for zone in found}
        self.ranges = {name: float(text(zone / "max_energy_range_uj") or 0) / 1e6 for name, zone in self.zones.items()}
        super().__init__(self.zones, clock)

    def read(self, part: str) -> float:
        """Return joules; RAPL reports microjoules."""
        return float((self.zones[part] / "energy_uj").read_text()) / 1e6

    def wrap(self, part: str) -> float:
        """Return the declared range of the zone in joules: 262 kJ on Intel, 65.5 kJ on AMD are usual."""
        return self.ranges[part]


def text(file: Path) -> str:
    """Return the contents of a small file, or "" if it cannot be read."""
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
