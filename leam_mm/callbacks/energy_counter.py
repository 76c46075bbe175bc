"""Where a machine tells what energy it draws: Cray, Grace Hopper, NVIDIA, AMD, RAPL; no vendor package is needed.

Every counter looks under a root folder (or takes a library handle), so that tests can hand it a fake machine. Building
one that the machine lacks raises ``CounterUnavailable`` with the reason. Boundaries differ (node, module, gpu, cpu):
each counter names its ``coverage``, and numbers of two boundaries must never be compared.
"""

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class CounterUnavailable(Exception):
    """This machine has no such counter, or this user may not read it; the message says which."""


class EnergyCounter:
    """Joules drawn since construction.

    Attributes:
        source: What was read, in words.
        coverage: The boundary of the number: node, module, gpu or cpu.
        interval: Seconds that may pass between two calls of ``joules`` without losing anything.
    """

    source: str
    coverage: str
    interval: float = 30.0

    def joules(self) -> float:
        """Joules since construction.

        Raises:
            OSError: The counter can no longer be read.
        """
        raise NotImplementedError


class CumulativeCounter(EnergyCounter):
    """A counter that grows in hardware; subclasses say how to read it and where it wraps around."""

    def __init__(self) -> None:
        """Take the first reading; raises CounterUnavailable where there is none."""
        self._total = 0.0
        try:
            self._last = self.read()
        except (OSError, ValueError) as error:
            raise CounterUnavailable(f"{self.source}: {error}") from None

    def read(self) -> dict[str, float]:
        """Joules on the dial of each part of the machine."""
        raise NotImplementedError

    def wrap(self, part: str) -> float:
        """Joules after which the dial of this part starts at zero again; 0 if it never does."""
        return 0.0

    def joules(self) -> float:
        """Joules since construction, summed over the parts and across wraparounds."""
        try:
            now = self.read()
        except ValueError as error:
            raise OSError(f"{self.source} gave no number: {error}") from None
        for part, value in now.items():
            grown = value - self._last[part]
            if grown < 0:
                if not self.wrap(part):
                    raise OSError(f"{self.source} went backwards for {part} (was it reset?)")
                grown += self.wrap(part)
            self._total += grown
        self._last = now
        return self._total


class PowerCounter(EnergyCounter):
    """A power meter: the energy is our own integral (trapezoids), so it must be read about every second."""

    interval = 1.0

    def __init__(self, clock: Callable[[], float]) -> None:
        """Take the first reading; raises CounterUnavailable where there is none."""
        self.clock, self._total = clock, 0.0
        try:
            self._last = (clock(), self.watts())
        except (OSError, ValueError) as error:
            raise CounterUnavailable(f"{self.source}: {error}") from None

    def watts(self) -> float:
        """Power now, summed over the parts."""
        raise NotImplementedError

    def joules(self) -> float:
        """Joules since construction."""
        try:
            now = (self.clock(), self.watts())
        except ValueError as error:
            raise OSError(f"{self.source} gave no number: {error}") from None
        self._total += (now[0] - self._last[0]) * (now[1] + self._last[1]) / 2
        self._last = now
        return self._total


class CrayCounter(CumulativeCounter):
    """HPE Cray EX node counter (LUMI, Frontier): the whole node, accelerators and memory included.

    Args:
        root: Folder of the counters.
    """

    source, coverage = "Cray pm_counters energy", "node"

    def __init__(self, root: Path = Path("/sys/cray/pm_counters")) -> None:
        """Find the counter; see the class for the arguments."""
        self.file = root / "energy"
        super().__init__()

    def read(self) -> dict[str, float]:
        """The file holds ``<joules> J <microseconds> us``."""
        words = self.file.read_text().split()
        return {"node": float(words[0] if words else "")}


class GraceHopperCounter(PowerCounter):
    """Module power of GH200 and GB200 (JUPITER): CPU, GPU, both memories and regulators, through ACPI power meters.

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
        """The meters give microwatts."""
        return sum(float(file.read_text()) for file in self.files) / 1e6


class AmdGpuCounter(PowerCounter):
    """Socket power of AMD Instinct through the kernel's amdgpu driver; needs no ROCm library.

    On MI250X only one of a module's two dies reports, for both; the silent die is skipped.

    Args:
        root: The hwmon folder.
        clock: Seconds, monotonic.
    """

    coverage = "gpu"

    def __init__(self, root: Path = Path("/sys/class/hwmon"), clock: Callable[[], float] = time.monotonic) -> None:
        """Find the cards; see the class for the arguments."""
        self.files = []
        for name in sorted(root.glob("hwmon*/name")):
            # power1_average is the driver's mean over a millisecond or more; newer cards offer only power1_input.
            power = [name.with_name(kind) for kind in ("power1_average", "power1_input")]
            if _text(name).strip() == "amdgpu":
                self.files += [file for file in power if _text(file).strip().isdigit()][:1]
        if not self.files:
            raise CounterUnavailable(f"no readable amdgpu power under {root}")
        self.source = f"amdgpu power of {len(self.files)} sensors, integrated"
        super().__init__(clock)

    def watts(self) -> float:
        """The driver gives microwatts."""
        return sum(float(file.read_text()) for file in self.files) / 1e6


class NvmlCounter(CumulativeCounter):
    """NVIDIA's total energy counter (Volta and later) of all cards that this node shows.

    The counter is used, not polled power: power readings cover a quarter of the time on A100 and H100 (2312.02741).

    Args:
        library: The loaded NVML; None loads the driver's own.
    """

    coverage = "gpu"

    def __init__(self, library: Any = None) -> None:
        """Open NVML and every card; see the class for the arguments."""
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
            raise CounterUnavailable(f"{self.source}: no card")
        self.source = f"NVML total energy counter of {len(self.handles)} GPUs"
        super().__init__()

    def _check(self, call: str, code: int) -> None:
        if code:
            raise OSError(f"NVML {call} failed with code {code}")

    def read(self) -> dict[str, float]:
        """NVML counts millijoules."""
        dials = {}
        for number, handle in enumerate(self.handles):
            value = ctypes.c_ulonglong()
            self._check("energy", self.library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value)))
            dials[f"gpu{number}"] = value.value / 1e3
        return dials


class RaplCounter(CumulativeCounter):
    """Processor packages and their memory (running average power limit, Intel and AMD); often for root only.

    Args:
        root: The powercap folder.
    """

    source, coverage = "RAPL packages and memory", "cpu"

    def __init__(self, root: Path = Path("/sys/class/powercap")) -> None:
        """Find the zones; see the class for the arguments."""
        zones = sorted(root.glob("intel-rapl:*"))
        # A package already holds its cores; its memory counts apart, and psys would count everything twice.
        self.zones = [zone for zone in zones if _text(zone / "name").strip().split("-")[0] in ("package", "dram")]
        if not self.zones:
            raise CounterUnavailable(f"no RAPL package under {root}")
        self.ranges = {zone.name: float(_text(zone / "max_energy_range_uj") or 0) / 1e6 for zone in self.zones}
        super().__init__()

    def read(self) -> dict[str, float]:
        """RAPL counts microjoules."""
        return {zone.name: float((zone / "energy_uj").read_text()) / 1e6 for zone in self.zones}

    def wrap(self, part: str) -> float:
        """The range each zone declares (some quarter of a million joules: twenty minutes of a busy package)."""
        return self.ranges[part]


def _text(file: Path) -> str:
    """Contents of a small file, or nothing where there is none."""
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
