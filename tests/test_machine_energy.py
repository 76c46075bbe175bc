"""Energy of each kind of machine, on a simulated tree of its counters: power times time, and gaps are named."""

import logging
from pathlib import Path

import pytest
from toys.machines import AmdNode, JupiterNode, LumiNode, Node, RaplZones, break_file, mend_file

from leam_mm.callbacks.energy_counter import CounterUnavailable, CrayCounter, GraceHopperCounter, RaplCounter
from leam_mm.callbacks.energy_meter import EnergyMeter
from leam_mm.callbacks.gpu_energy import AmdGpuCounter, NvmlCounter


def test_jupiter_node_integrates_the_modules_alone(tmp_path: Path) -> None:
    node = JupiterNode(tmp_path)
    counter = GraceHopperCounter(**node.arguments(GraceHopperCounter))
    node.advance(10)
    assert counter.joules() == pytest.approx(4 * 600 * 10, rel=1e-12)
    node.watts["Module Power Socket 3"] = 200.0
    node.watts["Grace Power Socket 3"] = 999.0  # within the module: not added
    node.advance(2)
    assert counter.joules() == pytest.approx(4 * 600 * 10 + (3 * 600 + 400) * 2, rel=1e-12)
    assert counter.gap_seconds == 0 and counter.coverage == "module"


def test_lumi_node_counts_the_node_once(tmp_path: Path) -> None:
    node = LumiNode(tmp_path)
    counter = CrayCounter(**node.arguments(CrayCounter))
    node.advance(3600)
    assert counter.joules() == 2400 * 3600  # accelerators, CPU and memory are part of it
    assert counter.gap_seconds == 0 and counter.coverage == "node"


def test_two_dies_share_the_sensor_of_their_module(tmp_path: Path) -> None:
    node = LumiNode(tmp_path)
    counter = AmdGpuCounter(**node.arguments(AmdGpuCounter))
    assert list(counter.modules) == list(LumiNode.FIRST)
    assert [len(found) for found in counter.modules.values()] == [2, 2, 2, 2]
    node.advance(10)
    assert counter.joules() == pytest.approx(4 * 500 * 10)
    assert counter.gap_seconds == 0 and "4 sensors (8 devices)" in counter.source


FIRST, SECOND = LumiNode.FIRST, LumiNode.SECOND


@pytest.mark.parametrize(
    ("used", "modules", "coverage", "words"),
    [
        ([FIRST[0]], 0.5, "gpu share", "1 of 8 devices; a module of which it uses one die counts half"),
        ([SECOND[0]], 0.5, "gpu share", "1 of 8 devices"),  # this die reports 0 W, but is not free
        ([SECOND[1]], 0.5, "gpu share", "1 of 8 devices"),  # this one has no power file
        ([FIRST[0], SECOND[0]], 1.0, "gpu", "2 of 8 devices"),
        ([*FIRST], 2.0, "gpu share", "4 of 8 devices"),
        ([*SECOND], 2.0, "gpu share", "4 of 8 devices"),
        ([*FIRST, *SECOND], 4.0, "gpu", "8 devices"),
        ([], 4.0, "gpu", "which of them the run uses is not known, all are counted"),
    ],
)
def test_a_run_on_some_dies_counts_their_share(
    tmp_path: Path, used: list[str], modules: float, coverage: str, words: str
) -> None:
    node = LumiNode(tmp_path)
    counter = AmdGpuCounter(**node.arguments(AmdGpuCounter))
    counter.count_only(used)
    node.advance(10)
    assert counter.joules() == pytest.approx(modules * 500 * 10)
    assert counter.coverage == coverage and words in counter.source and counter.gap_seconds == 0


@pytest.mark.parametrize("file", ["power1_average", "power1_input"])
def test_mi300_node_has_a_sensor_for_each_gpu(tmp_path: Path, file: str) -> None:
    addresses = [f"0000:{bus:02x}:00" for bus in (0x05, 0x26, 0x46, 0x65, 0x85, 0xA6, 0xC6, 0xE5)]
    node = AmdNode(tmp_path, "0x74a1", dict.fromkeys(addresses, 700.0), file)
    counter = AmdGpuCounter(**node.arguments(AmdGpuCounter))
    counter.count_only(addresses[:3])
    node.advance(10)
    assert counter.joules() == pytest.approx(3 * 700 * 10)
    assert counter.coverage == "gpu" and "3 of 8 devices" in counter.source


def test_silent_gpu_of_another_kind_is_a_gap_and_no_second_die(tmp_path: Path) -> None:
    node = AmdNode(tmp_path, "0x74a1", {"0000:05:00": 700.0, "0000:26:00": 0.0})
    counter = AmdGpuCounter(**node.arguments(AmdGpuCounter))
    node.advance(10)
    assert counter.joules() == pytest.approx(700 * 10)
    assert counter.gap_seconds == pytest.approx(5.0) and "1 devices give no reading" in counter.source


def test_leonardo_node_counts_the_gpus_of_the_run(tmp_path: Path) -> None:
    node = RaplZones(tmp_path, gpus=4)
    counter, part = (NvmlCounter(**node.arguments(NvmlCounter)) for _ in range(2))
    counter.count_only([f"0000:{16 * number:02x}:00" for number in (1, 2, 3, 4)])
    part.count_only(["0000:10:00", "0000:40:00"])
    node.advance(90)
    assert counter.joules() == pytest.approx(4 * 400 * 90, rel=1e-12)  # RAPL's joules are not added
    assert part.joules() == pytest.approx(2 * 400 * 90, rel=1e-12)
    assert "of 4 GPUs" in counter.source and "2 of 4 GPUs, those of the run" in part.source
    unknown = NvmlCounter(**node.arguments(NvmlCounter))
    unknown.count_only([])
    assert "all 4 GPUs; which of them the run uses is not known" in unknown.source


def test_workstation_wraps_around_often(tmp_path: Path) -> None:
    node = RaplZones(tmp_path, range_joules=65_532.0)  # AMD's range
    counter = RaplCounter(**node.arguments(RaplCounter))
    for _ in range(60):
        node.advance(30)
        counter.joules()
    assert counter.joules() == pytest.approx((150 + 20 + 120) * 30 * 60, rel=1e-9)  # cores and psys are not added
    assert counter.gap_seconds == 0


def test_looks_too_rare_for_a_wrapping_counter_are_a_gap(tmp_path: Path) -> None:
    node = RaplZones(tmp_path, range_joules=65_532.0)
    counter = RaplCounter(**node.arguments(RaplCounter))
    node.advance(3000)  # the packages wrap six times, which one look cannot tell
    with pytest.raises(OSError):
        counter.joules()
    node.advance(30)
    assert counter.joules() == pytest.approx(290 * 30, rel=1e-9)
    assert counter.gap_seconds == pytest.approx(3000)


def test_reset_counter_loses_its_interval_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    node = LumiNode(tmp_path)
    counter = CrayCounter(**node.arguments(CrayCounter))
    node.advance(100)
    counter.joules()
    node.node_joules["energy"] = 0.0
    node.advance(10)
    assert counter.joules() == 2400 * 100 and counter.gap_seconds == pytest.approx(10)
    node.advance(50)
    assert counter.joules() == 2400 * 150 and counter.gap_seconds == pytest.approx(10)
    assert "the counter was reset or read too rarely; this time of this part is not measured" in caplog.text


def test_reset_of_a_wrapping_counter_is_no_wraparound(tmp_path: Path) -> None:
    node = RaplZones(tmp_path)
    counter = RaplCounter(**node.arguments(RaplCounter))
    node.advance(30)
    counter.joules()
    node.joules["package-0"] = 0.0
    node.advance(30)
    assert counter.joules() == pytest.approx(290 * 30 + 140 * 30, rel=1e-9)
    assert counter.gap_seconds == pytest.approx(30 / 3)


def test_unreadable_meter_is_a_gap_of_its_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    node = JupiterNode(tmp_path)
    counter = GraceHopperCounter(**node.arguments(GraceHopperCounter))
    node.advance(10)
    counter.joules()
    broken = node.power("Module Power Socket 2")
    break_file(broken)
    for _ in range(3):
        node.advance(10)
        counter.joules()
    assert counter.joules() == pytest.approx(4 * 600 * 10 + 3 * 600 * 30)
    assert counter.gap_seconds == pytest.approx(30 / 4)
    mend_file(broken)
    node.write()
    counter.joules()
    node.advance(10)
    assert counter.joules() == pytest.approx(4 * 600 * 20 + 3 * 600 * 30)  # no line is drawn over the gap
    assert counter.gap_seconds == pytest.approx(30 / 4)
    assert caplog.text.count("Module Power Socket 2 cannot be read") == 1


def test_counter_of_joules_bridges_a_missed_look(tmp_path: Path) -> None:
    node = RaplZones(tmp_path, gpus=2)
    counter = NvmlCounter(**node.arguments(NvmlCounter))
    node.library.broken = {1}
    node.advance(10)
    assert counter.joules() == pytest.approx(400 * 10) and counter.gap_seconds == pytest.approx(5)
    node.library.broken = set()
    node.advance(10)
    assert counter.joules() == pytest.approx(2 * 400 * 20) and counter.gap_seconds == 0


def winner(node: Node, caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    with caplog.at_level(logging.INFO):
        meter = EnergyMeter(counters=node.counters(), clock=node.clock).start()
    node.advance(10)
    reading = meter.stop()
    assert reading.seconds == 10 and (reading.joules is None or reading.joules > 0)
    assert reading.measured_seconds == (0 if reading.joules is None else 10)
    return reading.coverage if meter.counter is None else f"{type(meter.counter).__name__} {reading.coverage}"


def test_widest_boundary_wins_and_the_log_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert winner(LumiNode(tmp_path / "lumi"), caplog) == "CrayCounter node"
    assert "boundary node: the whole node" in caplog.text
    assert winner(JupiterNode(tmp_path / "jupiter"), caplog) == "GraceHopperCounter module"
    assert "boundary module: CPU, GPU and memory" in caplog.text and "pm_counters" in caplog.text
    assert winner(RaplZones(tmp_path / "leonardo", gpus=4), caplog) == "NvmlCounter gpu"
    assert "without CPU" in caplog.text and "no module power meter" in caplog.text
    assert winner(LumiNode(tmp_path / "no pm", pm_counters=False), caplog) == "AmdGpuCounter gpu"
    assert winner(RaplZones(tmp_path / "workstation"), caplog) == "RaplCounter cpu"
    assert "without GPUs" in caplog.text
    assert winner(Node(tmp_path / "nothing"), caplog) == "not measured"
    assert "not measured, no counter is available" in caplog.text


def test_part_of_a_run_without_counter_is_named(tmp_path: Path) -> None:
    node = LumiNode(tmp_path)
    meter = EnergyMeter(counters=node.counters(), clock=node.clock).start()
    node.advance(30)
    meter.read()
    break_file(node.cray / "energy")
    node.advance(90)
    reading = meter.stop()
    assert reading.joules == 2400 * 30 and reading.seconds == 120  # a lower bound, never an extrapolation
    assert reading.measured_seconds == pytest.approx(30)


def test_counter_that_breaks_at_once_measured_nothing(tmp_path: Path) -> None:
    node = LumiNode(tmp_path)
    meter = EnergyMeter(counters=node.counters(), clock=node.clock).start()
    break_file(node.cray / "energy")
    node.advance(90)
    reading = meter.stop()
    assert reading.joules is None and reading.measured_seconds == 0 and reading.source == "not measured"


def test_unreadable_part_at_the_start_leaves_the_counter_out(tmp_path: Path) -> None:
    node = JupiterNode(tmp_path)
    break_file(node.power("Module Power Socket 1"))
    with pytest.raises(CounterUnavailable, match="module power meters"):
        GraceHopperCounter(**node.arguments(GraceHopperCounter))
