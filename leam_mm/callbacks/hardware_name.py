"""Name of the hardware that a process of a run uses."""

import platform
from pathlib import Path

import psutil
import torch

CPU_INFO = Path("/proc/cpuinfo")


def hardware_name(device: torch.device, processes: int) -> str:
    """Return number and model of the devices, such as ``8 x NVIDIA H100`` or ``AMD EPYC 9B45, 2 cores``.

    Args:
        device: Device of this process; all processes are taken to have the same model.
        processes: Number of processes, each with one device.
    """
    if device.type == "cuda":
        return f"{processes} x {torch.cuda.get_device_name(device)}"
    several = f", {processes} processes" if processes > 1 else ""
    return f"{_processor()}, {psutil.cpu_count()} cores{several}"


def _processor() -> str:
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
