"""Simulated energy counters of nodes: sysfs files and a fake NVML library that advance with a simulated clock.

    node = LumiNode(tmp_path)
    counter = AmdGpuCounter(**node.arguments(AmdGpuCounter))
    node.advance(10)

The files are those of the machines: HPE pm_counters; ACPI power meters of Grace Hopper; amdgpu's hwmon folders with
links to PCI devices; RAPL zones with a range.
"""

import ctypes
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from leam_mm.callbacks.energy_counter import CrayCounter, EnergyCounter, GraceHopperCounter, RaplCounter
from leam_mm.callbacks.energy_meter import COUNTERS
from leam_mm.callbacks.gpu_energy import AmdGpuCounter, NvmlCounter


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeNvml:
    """The calls of the NVML library that the counter uses, with a counter in millijoules for each GPU."""

    def __init__(self, millijoules: list[int], buses: list[int] | None = None) -> None:
        self.millijoules, self.broken = millijoules, set[int]()
        self.buses = buses or [16 * (number + 1) for number in range(len(millijoules))]

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.millijoules)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, number: int, handle: Any) -> int:
        handle._obj.value = number + 1
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: ctypes.c_void_p, value: Any) -> int:
        assert handle.value is not None
        value._obj.value = self.millijoules[handle.value - 1]
        return 15 if handle.value - 1 in self.broken else 0  # 15 is NVML_ERROR_GPU_IS_LOST

    def nvmlDeviceGetPciInfo_v3(self, handle: ctypes.c_void_p, info: Any) -> int:
        assert handle.value is not None
        info._obj.domain, info._obj.bus, info._obj.device = 0, self.buses[handle.value - 1], 0
        return 0


class Node:
    """A node without any counter; the others add theirs.

    Attributes:
        watts: Power of each part; a test may change it, which takes effect at the next ``advance``.
        clock: The simulated clock of all counters.
    """

    def __init__(self, root: Path, watts: dict[str, float] | None = None) -> None:
        self.root, self.watts, self.clock = root, watts or {}, Clock()
        self.joules = dict.fromkeys(self.watts, 1000.0)
        self.library: Any = object()  # no NVML: a call raises AttributeError
        self.write()

    @property
    def cray(self) -> Path:
        return self.root / "sys/cray/pm_counters"

    @property
    def hwmon(self) -> Path:
        return self.root / "sys/class/hwmon"

    @property
    def powercap(self) -> Path:
        return self.root / "sys/class/powercap"

    def write(self) -> None:
        """Write the files for the present time."""

    def advance(self, seconds: float) -> None:
        """Let time pass at the present power."""
        self.clock.now += seconds
        for part, watts in self.watts.items():
            self.joules[part] += watts * seconds
        self.write()

    def arguments(self, kind: Callable[..., EnergyCounter]) -> dict[str, Any]:
        """Return the arguments of a counter on this node."""
        folders = {CrayCounter: self.cray, RaplCounter: self.powercap}
        folders |= dict.fromkeys((GraceHopperCounter, AmdGpuCounter), self.hwmon)
        where = {"library": self.library} if kind is NvmlCounter else {"root": folders[kind]}
        return {**where, "clock": self.clock}

    def counters(self) -> list[Callable[[], EnergyCounter]]:
        """Return the constructors of all counters in the meter's order."""
        return [partial(kind, **self.arguments(kind)) for kind in COUNTERS]


def put(file: Path, content: object) -> None:
    """Write a file of one line, unless it was made unreadable (a folder in its place)."""
    if not file.is_dir():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")


def break_file(file: Path) -> None:
    """Make a file unreadable; also root cannot read a folder as a file."""
    file.unlink()
    file.mkdir()


def mend_file(file: Path) -> None:
    """Make it readable again; the next ``write`` fills it."""
    file.rmdir()


class JupiterNode(Node):
    """Four GH200, each with the meters module, grace, cpu and sysio; NVML shows the same GPUs."""

    METERS = ("Module", "Grace", "CPU", "SysIO")

    def __init__(self, root: Path) -> None:
        usual = {"Module": 600.0, "Grace": 150.0, "CPU": 100.0, "SysIO": 30.0}
        parts = {f"{name} Power Socket {socket}": usual[name] for socket in range(4) for name in self.METERS}
        super().__init__(root, parts)
        self.library = FakeNvml([0, 0, 0, 0])

    def power(self, part: str) -> Path:
        """Return the file of a meter."""
        return self.hwmon / f"hwmon{list(self.watts).index(part)}/device/power1_average"

    def write(self) -> None:
        for part, watts in self.watts.items():
            put(self.power(part).with_name("power1_oem_info"), part)
            put(self.power(part), round(watts * 1e6))


class AmdNode(Node):
    """AMD GPUs of one kind.

    Args:
        root: Folder of the tree.
        device: PCI device number.
        watts: Power by PCI address; 0 where a second die reports 0, None where it has no power file.
        file: Name of the power file.
    """

    def __init__(self, root: Path, device: str, watts: dict[str, float | None], file: str = "power1_average") -> None:
        self.device, self.file, self.silent = device, file, [part for part, value in watts.items() if value is None]
        self.addresses = list(watts)
        super().__init__(root, {part: value or 0.0 for part, value in watts.items()})

    def power(self, address: str) -> Path:
        """Return the power file of a device; the folders are not in PCI order."""
        return self.hwmon / f"hwmon{len(self.addresses) - self.addresses.index(address)}/{self.file}"

    def write(self) -> None:
        put(self.hwmon / "hwmon0/name", "nvme")
        put(self.hwmon / "hwmon0/power1_average", 5_000_000)
        for address in self.addresses:
            folder, pci = self.power(address).parent, self.root / f"sys/devices/{address}.0"
            put(folder / "name", "amdgpu")
            put(pci / "device", self.device)
            if not (folder / "device").exists():
                (folder / "device").symlink_to(pci)
            if address not in self.silent:
                put(self.power(address), round(self.watts[address] * 1e6))


class LumiNode(AmdNode):
    """Four MI250X of two dies, of which the second reports 0 W or has no power file, and the node's pm_counters."""

    FIRST = ("0000:c1:00", "0000:c9:00", "0000:d1:00", "0000:d9:00")
    SECOND = ("0000:c6:00", "0000:ce:00", "0000:d6:00", "0000:de:00")
    PARTS = ("energy", "cpu_energy", "memory_energy", *(f"accel{number}_energy" for number in range(4)))

    def __init__(self, root: Path, pm_counters: bool = True) -> None:
        self.node = dict(zip(self.PARTS, (2400.0, 200.0, 90.0, 500.0, 500.0, 500.0, 500.0), strict=True))
        self.node_joules, self.pm_counters = dict.fromkeys(self.PARTS, 5e6), pm_counters
        dies: dict[str, float | None] = {}
        for number, (first, second) in enumerate(zip(self.FIRST, self.SECOND, strict=True)):
            dies |= {first: 500.0, second: 0.0 if number % 2 == 0 else None}
        super().__init__(root, "0x7408", dies)

    def advance(self, seconds: float) -> None:
        for part, watts in self.node.items():
            self.node_joules[part] += watts * seconds
        super().advance(seconds)

    def write(self) -> None:
        super().write()
        for part, joules in self.node_joules.items() if self.pm_counters else ():
            put(self.cray / part, f"{round(joules)} J {round(1.7e15 + self.clock.now * 1e6)} us")


class RaplZones(Node):
    """Two packages with cores and memory, and psys, which holds all of them.

    Args:
        root: Folder of the tree.
        range_joules: Value at which the counters wrap around.
        gpus: Number of NVIDIA GPUs of 400 W.
    """

    NAMES = ("package-0", "core", "dram", "package-1", "psys")
    ZONES = ("0", "0:0", "0:1", "1", "2")

    def __init__(self, root: Path, range_joules: float = 262_143.0, gpus: int = 0) -> None:
        self.range_joules, self.gpus = range_joules, gpus
        usual = dict(zip(self.NAMES, (150.0, 110.0, 20.0, 120.0, 400.0), strict=True))
        super().__init__(root, usual)
        if gpus:
            self.library = FakeNvml([10_000 * number for number in range(gpus)])

    def zone(self, part: str) -> Path:
        """Return the folder of a zone."""
        return self.powercap / f"intel-rapl:{self.ZONES[self.NAMES.index(part)]}"

    def advance(self, seconds: float) -> None:
        if self.gpus:
            self.library.millijoules = [value + round(400_000 * seconds) for value in self.library.millijoules]
        super().advance(seconds)

    def write(self) -> None:
        for part in self.NAMES:
            put(self.zone(part) / "name", part)
            put(self.zone(part) / "max_energy_range_uj", round(self.range_joules * 1e6))
            put(self.zone(part) / "energy_uj", round(self.joules[part] % self.range_joules * 1e6))
