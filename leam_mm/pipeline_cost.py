"""What the stages of a pipeline cost, also while several run at the same time."""

import os
import time
from dataclasses import dataclass, field, replace
from typing import Any

import psutil

from leam_mm.callbacks.energy_meter import NOT_MEASURED, EnergyMeter, process_seconds


@dataclass
class Cost:
    """Cost of one stage, of this attempt.

    Args:
        seconds: Wall time.
        wall_seconds: Its part of the pipeline's wall time: while n stages run, each counts 1/n of it.
        cpu_seconds: CPU time of its processes, and its part of that of the pipeline's own.
        stolen_cpu_seconds: CPU time that the host of this virtual machine gave to others; None if it is not reported.
        joules: Energy; None if it was not measured.
        source: Name of the energy counter.
        unmeasured_seconds: Wall time that the counter did not measure.
        beside: Names of the stages that ran at the same time; energy is divided among them by CPU time.
    """

    seconds: float = 0.0
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    stolen_cpu_seconds: float | None = 0.0
    joules: float | None = 0.0
    source: str = NOT_MEASURED
    unmeasured_seconds: float = 0.0
    beside: set[str] = field(default_factory=set)

    def total(self, earlier: dict[str, Any]) -> dict[str, Any]:
        """Return the record of this attempt and the earlier ones; a sum with a part not measured is not measured.

        Args:
            earlier: Record of the earlier attempts, or an empty dict.
        """
        joules, stolen = self.joules, self.stolen_cpu_seconds
        if earlier:
            before = earlier["energy"]["joules"], earlier["stolen_cpu_seconds"]
            joules, stolen = (
                None if one is None or other is None else one + other
                for one, other in zip((joules, stolen), before, strict=True)
            )
        beside = sorted(self.beside.union(earlier.get("beside", [])))
        return {
            "seconds": self.seconds + earlier.get("seconds", 0.0),
            "wall_seconds": self.wall_seconds + earlier.get("wall_seconds", earlier.get("seconds", 0.0)),
            "cpu_seconds": self.cpu_seconds + earlier.get("cpu_seconds", 0.0),
            "stolen_cpu_seconds": stolen,
            "energy": {"joules": joules, "source": self.source if joules is not None else NOT_MEASURED},
            "unmeasured_seconds": self.unmeasured_seconds + earlier.get("unmeasured_seconds", 0.0),
            "attempts": 1 + earlier.get("attempts", 0),
            **({"beside": beside} if beside else {}),
        }


@dataclass
class _Machine:
    """Readings of the whole machine and of the pipeline's own process, all counted from an arbitrary start."""

    seconds: float
    own_cpu: float
    stolen: float | None
    joules: float | None
    gap: float
    source: str


class CostMeter:
    """Measures running stages.

    The CPU time of a stage is that of its processes. Energy and stolen time are known of the machine only: each
    reading is divided among the stages that ran, by their CPU time since the last one.
    """

    def __init__(self) -> None:
        """Start the energy counter."""
        self.meter = EnergyMeter().start()
        self.running: dict[str, tuple[int, Cost]] = {}
        self._seen: dict[str, float] = {}  # CPU seconds of the stages' processes at the last reading
        self._last = self._read()

    def begin(self, name: str, process: int) -> None:
        """Start to measure a stage.

        Args:
            name: Name of the stage.
            process: Number of its process, which has just been started.
        """
        self.update()
        for _, cost in self.running.values():
            cost.beside.add(name)
        measured = None if self._last.joules is None else 0.0
        self.running[name] = process, Cost(joules=measured, beside=set(self.running))
        self._seen[name] = 0.0

    def update(self, ended: dict[str, float] | None = None) -> None:
        """Divide what was used since the last reading among the running stages.

        Args:
            ended: CPU seconds of the stages whose processes have just ended, which can no longer be read.
        """
        now, last = self._read(), self._last
        joules = now.joules if now.joules is not None else last.joules  # one that cannot be read now is added later
        used = {}
        for name, (process, _) in self.running.items():
            seen = (ended or {}).get(name, process_seconds(process))
            used[name] = max(0.0, seen - self._seen[name])
            self._seen[name] = max(seen, self._seen[name])
        total, count = sum(used.values()), len(self.running)
        for name, (_, cost) in self.running.items():
            share = used[name] / total if total else 1 / count
            passed = now.seconds - last.seconds
            cost.seconds += passed
            cost.wall_seconds += passed / count
            cost.cpu_seconds += used[name] + (now.own_cpu - last.own_cpu) / count
            cost.unmeasured_seconds += max(0.0, now.gap - last.gap)
            cost.source = now.source
            cost.stolen_cpu_seconds = _add(cost.stolen_cpu_seconds, last.stolen, now.stolen, share)
            cost.joules = _add(cost.joules, last.joules, joules, share)
            if name in (ended or {}) and now.joules is None:
                cost.joules = None
        self._last = replace(now, joules=joules)

    def end(self, name: str, cpu_seconds: float) -> Cost:
        """Return the cost of a stage that has ended.

        Args:
            name: Name of the stage.
            cpu_seconds: CPU time of its processes, as the system reported it at their end.
        """
        self.update({name: cpu_seconds})
        self._seen.pop(name)
        return self.running.pop(name)[1]

    def cost(self, name: str) -> Cost:
        """Return the cost of a running stage up to the last reading."""
        return self.running[name][1]

    def stop(self) -> None:
        """Stop the energy counter."""
        self.meter.stop()

    def _read(self) -> _Machine:
        reading = self.meter.read()
        return _Machine(
            seconds=time.monotonic(),
            own_cpu=time.process_time(),
            stolen=getattr(psutil.cpu_times(), "steal", None),
            joules=reading.joules,
            gap=reading.gap_seconds,
            source=reading.source,
        )


def _add(total: float | None, before: float | None, now: float | None, share: float) -> float | None:
    """Return a total with the share of a difference; None if a reading is missing."""
    return None if total is None or before is None or now is None else total + share * (now - before)


def ended_seconds() -> float:
    """Return the CPU seconds of all child processes that have ended and been waited for, with their children."""
    times = os.times()
    return times.children_user + times.children_system
