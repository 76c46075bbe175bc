"""Energy counters of Cray, Grace Hopper, NVIDIA, AMD and RAPL; no vendor package is needed.

Every counter takes a root folder or a library handle, so that tests can pass a fake one. The constructor raises
``CounterUnavailable`` with the reason if the machine lacks the counter. Each counter states its boundary (node, module,
gpu or cpu) as ``coverage``. Do not compare numbers of different boundaries.
"""

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class CounterUnavailable(Exception):
    """The machine lacks the counter or the user may not read it; the message gives the reason."""


class EnergyCounter:
    """Base class of counters of the energy used since construction.

    Attributes:
        source: Name of the counter.
        coverage: Boundary of the measurement: node, module, gpu or cpu.
        interval: Longest time between two calls of ``joules`` that loses no energy, in seconds.
    """

    source: str
    coverage: str
    interval: float = 30.0

    def joules(self) -> float:
        """Return the energy since construction, in joules.

        Raises:
            OSError: The counter can no longer be read.
        """
        raise NotImplementedError


class CumulativeCounter(EnergyCounter):
    """Base class of cumulative hardware counters; subclasses define ``read`` and, if the counter wraps, ``wrap``."""

    def __init__(self) -> None:
        """Take the first reading; raises CounterUnavailable where there is none."""
        self._total = 0.0
        try:
            self._last = self.read()
        except (OSError, ValueError) as error:
            raise CounterUnavailable(f"{self.source}: {error}") from None

    def read(self) -> dict[str, float]:
        """Return the counter value of each part of the machine, in joules."""
        raise NotImplementedError

    def wrap(self, part: str) -> float:
        """Return the value in joules at which the counter of this part wraps around to 0, or 0 if it never wraps."""
        return 0.0

    def joules(self) -> float:
        """Return the energy since construction in joules, summed over the parts and corrected for wraparounds."""
        try:
            now = self.read()
        except ValueError as error:
            raise OSError(f"{self.source} gave no number: {error}") from None
        for part, value in now.items():
            grown = value - self._last[part]
            if grown < 0:
                if not self.wrap(part):
                    raise OSError(f"{self.source} decreased for {part}: the counter was probably reset")
                grown += self.wrap(part)
            self._total += grown
        self._last = now
        return self._total


class PowerCounter(EnergyCounter):
    """Base class of power meters: energy is the trapezoidal integral of power, read about once per second."""

    interval = 1.0

    def __init__(self, clock: Callable[[], float]) -> None:
        """Take the first reading; raises CounterUnavailable where there is none."""
        self.clock, self._total = clock, 0.0
        try:
            self._last = (clock(), self.watts())
        except (OSError, ValueError) as error:
            raise CounterUnavailable(f"{self.source}: {error}") from None

    def watts(self) -> float:
        """Return the current power in watts, summed over the parts."""
        raise NotImplementedError

    def joules(self) -> float:
        """Return the energy since construction, in joules."""
        try:
            now = (self.clock(), self.watts())
        except ValueError as error:
            raise OSError(f"{self.source} gave no number: {error}") from None
        self._total += (now[0] - self._last[0]) * (now[1] + self._last[1]) / 2
        self._last = now
        return self._total


class CrayCounter(CumulativeCounter):
    """Energy of a whole HPE Cray EX node (LUMI, Frontier), including accelerators and memory.

    Args:
        root: Folder of the counters.
    """

    source, coverage = "Cray pm_counters energy", "node"

    def __init__(self, root: Path = Path("/sys/cray/pm_counters")) -> None:
        """Open the counter; see the class for the arguments."""
        self.file = root / "energy"
        super().__init__()

    def read(self) -> dict[str, float]:
        """Return the joules in the file, which holds ``<joules> J <microseconds> us``."""
        words = self.file.read_text().split()
        return {"node": float(words[0] if words else "")}


class GraceHopperCounter(PowerCounter):
    """Module power of GH200 and GB200 (JUPITER) from ACPI power meters: CPU, GPU, both memories and regulators.

    Args:
        root: The hwmon folder.
        clock: Seconds, monotonic.
    """

    source, coverage = "Grace Hopper module power meters, integrated", "module"

    def __init__(self, root: Path = Path("/sys/class/hwmon"), clock: Callable[[], float] = time.monotonic) -> None:
        """Find the module meters; see the class for the arguments."""
        names = sorted(root.glob("hwmon*/device/power1_oem_info"))
        self.files = [name.with_name("power1_average") for name in names if "module power" in _text(name).lower()]
        if not self.files:
            raise CounterUnavailable(f"no module power meter under {root}")
        super().__init__(clock)

    def watts(self) -> float:
        """Return the sum of the meters in watts; the driver reports microwatts."""
        return sum(float(file.read_text()) for file in self.files) / 1e6


class AmdGpuCounter(PowerCounter):
    """Socket power of AMD Instinct GPUs from the amdgpu kernel driver; no ROCm library is needed.

    On MI250X, one of the two dies of a module reports the power of both; the other die is skipped.

    Args:
        root: The hwmon folder.
        clock: Seconds, monotonic.
    """

    coverage = "gpu"

    def __init__(self, root: Path = Path("/sys/class/hwmon"), clock: Callable[[], float] = time.monotonic) -> None:
        """Find the cards; see the class for the arguments."""
        self.files = []
        for name in sorted(root.glob("hwmon*/name")):
            # power1_average is a mean over at least a millisecond; newer cards provide only power1_input.
            power = [name.with_name(kind) for kind in ("power1_average", "power1_input")]
            if _text(name).strip() == "amdgpu":
                self.files += [file for file in power if _text(file).strip().isdigit()][:1]
        if not self.files:
            raise CounterUnavailable(f"no readable amdgpu power under {root}")
        self.source = f"amdgpu power of {len(self.files)} sensors, integrated"
        super().__init__(clock)

    def watts(self) -> float:
        """Return the sum of the sensors in watts; the driver reports microwatts."""
        return sum(float(file.read_text()) for file in self.files) / 1e6


class NvmlCounter(CumulativeCounter):
    """Total energy counter of all NVIDIA GPUs of this node (Volta and later).

    Power is not polled, because power readings cover a quarter of the time on A100 and H100 (arXiv 2312.02741).

    Args:
        library: Handle of the loaded NVML library; None loads libnvidia-ml.so.1.
    """

    coverage = "gpu"

    def __init__(self, library: Any = None) -> None:
        """Initialize NVML and open every GPU; see the class for the arguments."""
        self.source = "NVML total energy counter"
        try:
            self.library = ctypes.CDLL("libnvidia-ml.so.1") if library is None else library
            self._check("init", self.library.nvmlInit_v2())
            count = ctypes.c_uint()
            self._check("count", self.library.nvmlDeviceGetCount_v2(ctypes.byref(count)))
            self.handles = [ctypes.c_void_p() for _ in range(count.value)]
            for number, handle in enumerate(self.handles):
                self._check("open", self.library.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(handle)))
        except (OSError, AttributeError) as error:
            raise CounterUnavailable(f"{self.source}: {error}") from None
        if not self.handles:
            raise CounterUnavailable(f"{self.source}: no GPU found")
        self.source = f"NVML total energy counter of {len(self.handles)} GPUs"
        super().__init__()

    def _check(self, call: str, code: int) -> None:
        if code:
            raise OSError(f"NVML {call} failed with code {code}")

    def read(self) -> dict[str, float]:
        """Return the counter of each GPU in joules; NVML reports millijoules."""
        values = {}
        for number, handle in enumerate(self.handles):
            value = ctypes.c_ulonglong()
            self._check("energy", self.library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value)))
            values[f"gpu{number}"] = value.value / 1e3
        return values


class RaplCounter(CumulativeCounter):
    """Energy of CPU packages and their memory from RAPL (Intel and AMD); often readable by root only.

    Args:
        root: The powercap folder.
    """

    source, coverage = "RAPL packages and memory", "cpu"

    def __init__(self, root: Path = Path("/sys/class/powercap")) -> None:
        """Find the zones; see the class for the arguments."""
        zones = sorted(root.glob("intel-rapl:*"))
        # A package includes its cores but not its memory; psys would count all of them twice.
        self.zones = [zone for zone in zones if _text(zone / "name").strip().split("-")[0] in ("package", "dram")]
        if not self.zones:
            raise CounterUnavailable(f"no RAPL package under {root}")
        self.ranges = {zone.name: float(_text(zone / "max_energy_range_uj") or 0) / 1e6 for zone in self.zones}
        super().__init__()

    def read(self) -> dict[str, float]:
        """Return the counter of each zone in joules; RAPL reports microjoules."""
        return {zone.name: float((zone / "energy_uj").read_text()) / 1e6 for zone in self.zones}

    def wrap(self, part: str) -> float:
        """Return the declared range of the zone in joules, typically 250 kJ (20 minutes of a busy package)."""
        return self.ranges[part]


def _text(file: Path) -> str:
    """Return the contents of a small file, or "" if it cannot be read."""
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
