"""Energy counters of GPUs: NVIDIA's by NVML, AMD's by the amdgpu kernel driver; no vendor package is needed.

A run that uses some of the GPUs of a node counts only those (``count_only``). On MI250X one sensor reports the power
of a module of two dies, each of which is a device for torch: a run on one of them counts half of the module.
"""

import ctypes
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leam_mm.callbacks.energy_counter import Clock, CounterUnavailable, CumulativeCounter, PowerCounter, text

# PCI device numbers of MI250X and MI250 in the PCI ID database: two dies, and the second one always reports 0 W
# (Linux, aldebaran_ppt.c: valid power data is available only from the primary die; read 2026-11, status: read).
TWO_DIES = ("0x7408", "0x740c")


class NvmlCounter(CumulativeCounter):
    """Total energy counter of the NVIDIA GPUs of this node (Volta and later).

    Power is not polled, because power readings cover a quarter of the time on A100 and H100 (arXiv 2312.02741).

    Args:
        library: Handle of the loaded NVML library; None loads libnvidia-ml.so.1.
        clock: Seconds, monotonic.
    """

    coverage = "gpu"

    def __init__(self, library: Any = None, clock: Clock = time.monotonic) -> None:
        """Initialize NVML and open every GPU; see the class for the arguments."""
        self.source = "NVML total energy counter"
        self.handles: dict[str, ctypes.c_void_p] = {}
        try:
            self.library = ctypes.CDLL("libnvidia-ml.so.1") if library is None else library
            self._check("init", self.library.nvmlInit_v2())
            count = ctypes.c_uint()
            self._check("count", self.library.nvmlDeviceGetCount_v2(ctypes.byref(count)))
            for number in range(count.value):
                handle = ctypes.c_void_p()
                self._check("open", self.library.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(handle)))
                self.handles[f"gpu{number}"] = handle
        except (OSError, AttributeError) as error:
            raise CounterUnavailable(f"{self.source}: {error}") from None
        if not self.handles:
            raise CounterUnavailable(f"{self.source}: no GPU found")
        self.source = f"NVML total energy counter of {len(self.handles)} GPUs"
        super().__init__(self.handles, clock)

    def _check(self, call: str, code: int) -> None:
        if code:
            raise OSError(f"NVML {call} failed with code {code}")

    def read(self, part: str) -> float:
        """Return the counter of a GPU in joules; NVML reports millijoules."""
        value = ctypes.c_ulonglong()
        self._check("energy", self.library.nvmlDeviceGetTotalEnergyConsumption(self.handles[part], ctypes.byref(value)))
        return value.value / 1e3

    def count_only(self, gpus: Sequence[str]) -> None:
        """Count the GPUs with these PCI addresses, where the library tells the addresses."""
        try:
            used = {part for part in self.handles if self._address(part) in gpus}
        except (OSError, AttributeError):
            used = set()
        count = len(self.handles)
        if not used:
            self.source = f"NVML total energy counter of all {count} GPUs; which of them the run uses is not known"
            return
        self.weights = {part: float(part in used) for part in self.handles}
        if len(used) < count:
            self.source = f"NVML total energy counter of {len(used)} of {count} GPUs, those of the run"

    def _address(self, part: str) -> str:
        info = _PciInfo()
        self._check("address", self.library.nvmlDeviceGetPciInfo_v3(self.handles[part], ctypes.byref(info)))
        return f"{info.domain:04x}:{info.bus:02x}:{info.device:02x}"


class _PciInfo(ctypes.Structure):
    """nvmlPciInfo_t of nvml.h."""

    _fields_ = (
        ("busIdLegacy", ctypes.c_char * 16),
        *((name, ctypes.c_uint) for name in ("domain", "bus", "device", "pciDeviceId", "pciSubSystemId")),
        ("busId", ctypes.c_char * 32),
    )


@dataclass(frozen=True)
class Die:
    """One amdgpu device, which torch shows as a GPU.

    Args:
        address: PCI address without the function, such as ``0000:c1:00``; the name of the hwmon folder if unknown.
        power: File of the power in microwatts, or None if the die reports none.
        paired: Whether its kind has two dies in a module with one sensor.
    """

    address: str
    power: Path | None
    paired: bool


class AmdGpuCounter(PowerCounter):
    """Socket power of AMD Instinct GPUs from the amdgpu kernel driver; no ROCm library is needed.

    On MI250X, one of the two dies of a module reports the power of both. On an APU (MI300A) the socket includes
    the CPU.

    Args:
        root: The hwmon folder.
        clock: Seconds, monotonic.
    """

    coverage = "gpu"

    def __init__(self, root: Path = Path("/sys/class/hwmon"), clock: Clock = time.monotonic) -> None:
        """Find the cards; see the class for the arguments."""
        self.modules = modules(dies(root))
        self.files = {name: file for name, found in self.modules.items() for die in found if (file := die.power)}
        if not self.files:
            raise CounterUnavailable(f"no readable amdgpu power under {root}")
        count = sum(map(len, self.modules.values()))
        silent = [name for name in self.modules if name not in self.files]
        self.source = f"amdgpu power of {len(self.files)} sensors ({count} devices), integrated"
        if silent:
            self.source += f"; {len(silent)} devices give no reading"
        super().__init__(self.files, clock, silent)

    def read(self, part: str) -> float:
        """Return watts; the driver reports microwatts."""
        return float(self.files[part].read_text()) / 1e6

    def count_only(self, gpus: Sequence[str]) -> None:
        """Count the share of each module that its used dies are: both dies all of it, one of them half."""
        used = {name: sum(die.address in gpus for die in found) for name, found in self.modules.items()}
        count, total = sum(used.values()), sum(map(len, self.modules.values()))
        if not count:
            self.source += "; which of them the run uses is not known, all are counted"
            return
        self.weights = {name: used[name] / len(found) for name, found in self.modules.items()}
        if count < total:
            self.source += f"; the run uses {count} of {total} devices"
        if any(0 < used[name] < len(found) for name, found in self.modules.items()):
            self.coverage = "gpu share"
            self.source += "; a module of which it uses one die counts half"


def dies(root: Path) -> list[Die]:
    """Return the amdgpu devices by PCI address."""
    found = []
    for name in root.glob("hwmon*/name"):
        if text(name).strip() != "amdgpu":
            continue
        device = name.with_name("device")
        address = device.resolve().name.partition(".")[0] if device.is_symlink() else name.parent.name
        # power1_average is a mean over at least a millisecond; newer cards provide only power1_input.
        power = [name.with_name(kind) for kind in ("power1_average", "power1_input")]
        reporting = [file for file in power if text(file).strip().isdigit() and int(text(file)) > 0]
        paired = text(device / "device").strip().lower() in TWO_DIES
        found.append(Die(address, reporting[0] if reporting else None, paired))
    return sorted(found, key=lambda die: (len(die.address), die.address))


def modules(found: Sequence[Die]) -> dict[str, list[Die]]:
    """Return the dies of each module by the address of its first die.

    Two dies are one module if both are of a paired kind, they follow each other in PCI order, and one of them reports.
    """
    groups: list[list[Die]] = []
    for die in found:
        last = groups[-1] if groups else []
        if len(last) == 1 and die.paired and last[0].paired and (die.power is None) != (last[0].power is None):
            last.append(die)
        else:
            groups.append([die])
    return {group[0].address: group for group in groups}
