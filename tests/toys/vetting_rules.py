"""Small vetting rules, in a module of their own because worker processes import them by name."""

import os
import signal
import time
from typing import Any

import numpy as np

from data_tools.vetting.vetting_rule import DatasetRule, Finding, Sample, VettingRule


class Even(VettingRule):
    """Keeps samples with an even number, read from their digest."""

    name = "even"

    def __init__(self, sleep: float = 0.0) -> None:
        self.sleep = sleep

    def judge(self, samples: list[Sample]) -> list[Finding]:
        time.sleep(self.sleep)
        numbers = [int(sample.record["sha256"], 16) for sample in samples]
        return [Finding(str(n), n % 2 == 0, "" if n % 2 == 0 else "odd", {"half": n / 2}) for n in numbers]


class Redden(VettingRule):
    """Makes every third image red and records it."""

    name = "redden"

    def judge(self, samples: list[Sample]) -> list[Finding]:
        findings = []
        for sample in samples:
            pixels = sample.pixels.copy()
            pixels[..., 0] = 255
            red = int(sample.record["sha256"], 16) % 3 == 0
            more: dict[str, Any] = {"pixels": pixels, "transform": "red"} if red else {}
            findings.append(Finding("red" if red else "as it was", record={"red": red}, **more))
        return findings


class SameMean(DatasetRule):
    """Of samples with the same first pixel, keeps only the first, across data sets too."""

    name = "same_mean"
    across = True

    def measure(self, samples: list[Sample]) -> np.ndarray:
        return np.array([sample.pixels[0, 0] for sample in samples])

    def resolve(self, keys: list[str], records: list[dict[str, Any]], measured: np.ndarray) -> list[Finding]:
        seen: dict[bytes, str] = {}
        findings = []
        for key, record, row in zip(keys, records, measured, strict=True):
            first = seen.setdefault(row.tobytes(), f"{key}{' against' if record.get('against') else ''}")
            kept = first.split()[0] == key and not (first.endswith("against") and not record.get("against"))
            findings.append(Finding("", kept, "" if kept else f"as {first}", record={"mean": row.tolist()}))
        return findings


class Fails(VettingRule):
    """Raises on one number, and so fails for its batch."""

    name = "fails"

    def __init__(self, number: int = 3) -> None:
        self.number = number

    def judge(self, samples: list[Sample]) -> list[Finding]:
        if any(int(sample.record["sha256"], 16) == self.number for sample in samples):
            raise ZeroDivisionError("cannot\njudge this")
        return [Finding("fine") for _ in samples]


class Kills(VettingRule):
    """Ends its process, as a broken pointer does, on some numbers."""

    name = "kills"

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers

    def judge(self, samples: list[Sample]) -> list[Finding]:
        if any(int(sample.record["sha256"], 16) in self.numbers for sample in samples):
            os.kill(os.getpid(), signal.SIGSEGV)
        return [Finding("fine") for _ in samples]


class Third(VettingRule):
    """Keeps every third key, and none of the keys from 20 to 39."""

    name = "third"

    def judge(self, samples: list[Sample]) -> list[Finding]:
        numbers = [int(sample.key) for sample in samples]
        return [Finding("", n % 3 == 0 and not 20 <= n < 40, "by its number") for n in numbers]


class Mirror(VettingRule):
    """Mirrors every image; checks that the rules of earlier stages have left their records."""

    name = "mirror"

    def judge(self, samples: list[Sample]) -> list[Finding]:
        # The record is written by a rule of an earlier stage.
        assert all(isinstance(sample.record["mean"], list) for sample in samples)
        pixels = [np.ascontiguousarray(sample.pixels[:, ::-1]) for sample in samples]
        seen = [{"saw_red": bool(sample.record["red"])} for sample in samples]
        return [
            Finding("", pixels=each, transform="mirror", record=red) for each, red in zip(pixels, seen, strict=True)
        ]
