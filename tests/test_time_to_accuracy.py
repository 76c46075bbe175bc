import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import accuracy_clock
import open_clip_peer
import time_to_accuracy
from accuracy_clock import AccuracyClock, cpu_seconds, reached

from leam_mm.evaluators.evaluator import Metric
from leam_mm.intervals.outcomes import write_outcomes


def row(values: list[float]) -> dict[str, Any]:
    keys = [str(number) for number in range(len(values))]
    mean = float(numpy.mean(values))
    return Metric("a", mean, None, None, "fraction", len(values), outcomes=write_outcomes(values, keys)).as_dict()


def test_an_accuracy_is_reached_on_the_line_between_two_measurements() -> None:
    curve = [{"accuracy": 0.2, "cpu_seconds": 10.0}, {"accuracy": 0.6, "cpu_seconds": 30.0}]
    assert reached(curve, 0.1, "cpu_seconds") == pytest.approx(5.0)
    assert reached(curve, 0.3, "cpu_seconds") == pytest.approx(15.0)
    assert reached(curve, 0.7, "cpu_seconds") is None


def test_differences_are_paired_by_image_and_hits_averaged_over_seeds() -> None:
    peer = [row([0.0, 0.0, 1.0, 0.0] * 8), row([0.0, 1.0, 1.0, 0.0] * 8)]
    ours = [row([1.0, 0.0, 1.0, 0.0] * 8), row([1.0, 1.0, 1.0, 0.0] * 8)]
    found = time_to_accuracy.paired(peer, ours)
    assert found["difference"] == pytest.approx(0.25) and found["images"] == 32 and found["seeds"] == 2
    assert 0 < found["low"] < 0.25 < found["high"]
    assert time_to_accuracy.summarise([{"a": row([0.0, 1.0] * 8)}])["a"]["value"] == pytest.approx(0.5)


def test_processes_that_load_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    child = SimpleNamespace(cpu_times=lambda: SimpleNamespace(user=2.0, system=1.0))
    children: list[SimpleNamespace] = []
    process = SimpleNamespace(children=lambda recursive: children)
    monkeypatch.setattr(accuracy_clock, "psutil", SimpleNamespace(Process=lambda: process, Error=OSError))
    before = cpu_seconds()
    children.append(child)
    assert cpu_seconds() - before >= 3.0


def test_a_clock_without_a_measure_only_times() -> None:
    clock = AccuracyClock(None, 5, 8)
    clock.start()
    clock.stop()
    clock.note(object(), 5, last=True)
    assert clock.curve == [] and clock.seconds > 0


def test_the_peer_draws_a_language_before_a_caption(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_clip_peer, "HFTokenizer", lambda folder, context_length: lambda text: text)
    reader = open_clip_peer.OneCaption(Path("tokenizer"), 8)
    random.seed(0)
    captions = json.dumps({"de": ["one"], "en": [str(number) for number in range(99)]})
    drawn = [reader(captions) for _ in range(400)]
    assert 150 < drawn.count("one") < 250
