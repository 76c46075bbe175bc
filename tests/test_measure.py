import json
import math
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from leam_mm.errors import UserError

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import measure


def test_pairs_take_turns_and_change_who_goes_first() -> None:
    calls: list[str] = []
    found = measure.time_pairs(lambda: calls.append("ours"), lambda: calls.append("peer"), repeats=4, warmup=1)
    assert calls == ["ours", "peer"] + ["ours", "peer", "peer", "ours"] * 2
    assert [len(side) for side in (found.ours.wall, found.ours.cpu, found.peer.wall, found.peer.cpu)] == [4] * 4
    assert 0 <= found.others_share <= 1


def test_clocks_tell_sleep_from_work() -> None:
    def work() -> None:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass

    found = measure.time_pairs(work, lambda: time.sleep(0.05), repeats=3, warmup=0)
    # The two clocks of a machine differ by their granularity.
    assert min(found.ours.wall) >= 0.045 and min(found.peer.wall) >= 0.045
    assert min(found.ours.cpu) >= 0.045 and max(found.peer.cpu) < 0.04


def test_interval_covers_the_median_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    for count in (3, 9, 20):
        *_, confidence = measure.median_interval(list(range(count)))
        hits = 0
        for values in generator.lognormal(size=(1000, count)):  # median 1, far from normal
            low, high, _ = measure.median_interval(values.tolist())
            hits += low <= 1 <= high
        assert abs(hits / 1000 - confidence) < 4 * math.sqrt(confidence * (1 - confidence) / 1000) + 1e-9
        assert confidence >= 0.95 or count < 6


def test_interval_of_few_values_is_their_range() -> None:
    assert measure.median_interval([3.0]) == (3.0, 3.0, 0.0)
    assert measure.median_interval([5.0, 1.0, 2.0]) == (1.0, 5.0, 0.75)
    assert measure.median_interval([float(n) for n in range(9)])[:2] == (1.0, 7.0)  # 2 / 2^9 (1 + 9) = 3.9 % outside


def test_different_work_is_not_timed() -> None:
    assert measure.require_same("loss", 1e-6, 1e-5)["difference"] == 1e-6
    for difference in (1e-4, math.nan):
        with pytest.raises(UserError, match=r"loss: .*nothing is timed"):
            measure.require_same("loss", difference, 1e-5)


def test_result_holds_all_that_a_reader_needs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    settings = measure.parse_arguments("toy", "", ["--output", str(tmp_path), "--repeats", "3"], repeats=9)
    found = measure.Comparison(
        measure.Timing([1.0, 2.0, 4.0], [0.5, 1.0, 1.0]), measure.Timing([2.0, 2.0, 12.0], [1.0, 1.0, 1.0]), 0.4
    )
    same = [measure.require_same("sum", 0.0, 1e-9)]
    path = measure.write_comparison("toy", ("ours", "theirs"), found, (10, "picture"), same, settings, "a note")
    result = json.loads(path.read_text())
    assert [entry.name for entry in tmp_path.iterdir()] == ["toy.json"]
    assert result["ratios"] == [2.0, 1.0, 3.0] and result["ratio"] == 2.0 and result["cpu_ratio"] == 1.0
    assert result["ours"]["per_second"] == 10 / statistics.median(found.ours.wall)
    assert result["peer"]["seconds"] == found.peer.wall and result["repeats"] == 3 and not result["quiet"]
    assert result["command"].endswith(f"toy.py --output {tmp_path} --repeats 3") and result["versions"]["torch"]
    assert result["same_work"] == same and result["hardware"]["others_share"] == 0.4
    assert "2.00 x by the wall" in capsys.readouterr().out


def test_options_of_a_benchmark_are_read_by_their_defaults(tmp_path: Path) -> None:
    options = {"links": (400, "links"), "no_screen": (False, "flag"), "rules": (Path, "file"), "stages": (["a"], "all")}
    options["size"] = (str, "several", {"choices": ["s", "m"], "action": "append"})
    settings = measure.parse_arguments("toy", "", [], 9, options)
    assert (settings.links, settings.no_screen, settings.rules) == (400, False, None)
    assert (settings.stages, settings.size, settings.repeats) == (["a"], None, 9)
    words = ["--links", "3", "--no-screen", "--rules", "x.yaml", "--stages", "b", "c", "--size", "s", "--size", "m"]
    settings = measure.parse_arguments("toy", "", words, 9, options)
    assert (settings.links, settings.no_screen, settings.rules) == (3, True, Path("x.yaml"))
    assert (settings.stages, settings.size) == (["b", "c"], ["s", "m"])


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 1"):
        measure.parse_arguments("toy", "", ["--repeats", "0"], repeats=9)
    if not measure.torch.cuda.is_available():
        with pytest.raises(UserError, match="choose --device cpu"):
            measure.parse_arguments("toy", "", ["--device", "cuda"], repeats=9)
