"""Arithmetic mode of the CPU, on which equality to the last bit depends.

MKL chooses its kernels by processor and, without a mode for reproducible results (Conditional Numerical Reproducibility
of Intel's oneMKL developer guide), on some processors by the alignment of memory, too. ``leam_mm`` sets the mode
``AUTO`` on Intel processors, where it costs nothing measurable. On other x86 processors the only such mode,
``COMPATIBLE``, uses SSE2 kernels; it is left to the user: ``MKL_CBWR=COMPATIBLE python train.py ...``.
"""

import os
import platform
from pathlib import Path
from typing import Any

MODE = "MKL_CBWR"  # environment variable that MKL reads at its first use
INTEL = "GenuineIntel"


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """Return vendor and model of the first processor; both are empty where the system does not say."""
    try:
        with open(cpuinfo, encoding="utf-8", errors="replace") as file:
            lines = [file.readline().partition(":") for _ in range(30)]
    except OSError:
        lines = []
    found = {name.strip(): value.strip() for name, _, value in reversed(lines)}
    return {"vendor": found.get("vendor_id", ""), "model": found.get("model name", "")}


def set_mode(environment: Any = os.environ, vendor: str | None = None) -> None:
    """Set the reproducible mode where it is free; a mode that the user has set stays."""
    if (processor()["vendor"] if vendor is None else vendor) == INTEL:
        environment.setdefault(MODE, "AUTO")


def arithmetic_record(threads: int) -> dict[str, Any]:
    """Return what decides the last bits of a run on a CPU, for its checkpoints.

    Args:
        threads: Of torch in each rank.
    """
    model = processor()["model"] or platform.machine()
    return {"processor": model, "mkl_mode": os.environ.get(MODE), "threads": threads}


def changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return the differences of two records in words, empty where there are none or one is missing."""
    names = [name for name in now if name in before and before[name] != now[name]]
    return ", ".join(f"{name} {before[name]} -> {now[name]}" for name in names)


def caution(record: dict[str, Any], vendor: str | None = None) -> str | None:
    """Return why equality to the bit does not hold on this processor and what gives it, or None where it holds."""
    other = (processor()["vendor"] if vendor is None else vendor) not in (INTEL, "")
    if record["mkl_mode"] is None and other and platform.machine() in ("x86_64", "AMD64"):
        return (
            f"on this processor ({record['processor']}) results on the CPU depend on memory alignment in their last "
            f"bits; set {MODE}=COMPATIBLE for runs and resumes that are equal to the bit (slower)"
        )
    return None
