"""The scaling simulator, against published throughput and against formulas."""

import math
from dataclasses import replace

import numpy as np
import pytest

from leam_mm.errors import UserError
from leam_mm.planning.published_scaling import SERIES, PublishedSeries, fit_straggler_sigma
from leam_mm.planning.scaling_simulator import (
    STRAGGLER_SIGMA,
    Machine,
    Workload,
    allreduce_seconds,
    gather_seconds,
    scaling_table,
    simulate_step,
    slowest_of,
)

WORK = Workload(1e12, gradient_bytes=4e9, gathered_bytes_per_sample=4096, checkpoint_bytes=12e9)
MACHINE = Machine(4, 4e14, 150e9, 100e9, write_bytes_per_second=10e9, node_mtbf_hours=50_000)
NODES = [2**n for n in range(11)]


@pytest.mark.parametrize("series", SERIES, ids=lambda one: one.name)
def test_published_points_that_were_not_fitted(series: PublishedSeries) -> None:
    ratios = series.ratios()
    tested = {nodes: ratio for nodes, ratio in ratios.items() if nodes not in series.fitted}
    assert len(tested) >= 3 and series.source
    assert all(abs(ratio - 1) < 0.15 for ratio in tested.values()), tested
    assert ratios[series.points[0][0]] == pytest.approx(1, abs=1e-6)


def test_spread_is_the_fitted_one() -> None:
    assert fit_straggler_sigma() == pytest.approx(STRAGGLER_SIGMA, rel=0.01)


def test_without_stragglers_and_network_the_largest_machines_are_missed() -> None:
    ideal = [
        replace(series, machine=replace(series.machine, intra_bytes_per_second=None, inter_bytes_per_second=None))
        for series in SERIES
    ]
    worst = max(abs(ratio - 1) for series in ideal for ratio in series.ratios(sigma=0.0).values())
    assert worst > 0.15  # so the published points do test the simulator


@pytest.mark.parametrize("devices", [1, 8, 512])
def test_slowest_device(devices: int) -> None:
    drawn = np.random.default_rng(5).lognormal(-(0.05**2) / 2, 0.05, (20_000, devices)).max(1)
    assert slowest_of(devices, 0.05) == pytest.approx(drawn.mean(), abs=4 * drawn.std() / math.sqrt(20_000))
    assert slowest_of(devices, 0.0) == pytest.approx(1.0)


def test_all_reduce() -> None:
    plain = replace(MACHINE, network_efficiency=1.0, latency_seconds=0.0)
    assert allreduce_seconds(1e9, 1, replace(plain, devices_per_node=1)) == 0.0
    assert allreduce_seconds(1e9, 1, plain) == pytest.approx(2 * 0.75 / 150)
    ring, hierarchy = 2 * (1 - 1 / 32) / 100, 2 * 0.75 / 150 + 2 * (1 - 1 / 8) / 100
    assert allreduce_seconds(1e9, 8, plain) == pytest.approx(min(ring, hierarchy)) == pytest.approx(ring)
    slow = replace(plain, latency_seconds=1e-3)  # a ring of 4,096 devices passes 8,190 messages
    assert allreduce_seconds(1e6, 1024, slow) < 0.03
    assert gather_seconds(1e9, 8, plain) == pytest.approx(2 * (1 - 1 / 32) / 100)
    unknown = replace(MACHINE, inter_bytes_per_second=None, latency_seconds=0.0)
    assert gather_seconds(1e9, 8, unknown) == 0.0


def test_parts_add_up_and_overlap_hides() -> None:
    point = simulate_step(WORK, MACHINE, 16, 4096)
    parts = (point.compute_seconds, point.straggler_seconds, point.allreduce_seconds, point.gather_seconds)
    assert point.seconds == pytest.approx(sum(parts) + point.loading_seconds)
    assert point.compute_seconds == pytest.approx(64 * 1e12 / 4e14)
    bare = simulate_step(WORK, replace(MACHINE, overlap=0.0), 16, 4096)
    assert bare.allreduce_seconds == pytest.approx(allreduce_seconds(4e9, 16, MACHINE))
    assert point.allreduce_seconds < bare.allreduce_seconds / 10
    sharded = simulate_step(replace(WORK, sharded=True), replace(MACHINE, overlap=0.0), 16, 4096)
    assert sharded.allreduce_seconds == pytest.approx(1.5 * bare.allreduce_seconds)


def test_reading_is_a_roof() -> None:
    reading = replace(WORK, read_bytes_per_sample=1e5)
    slow = replace(MACHINE, read_bytes_per_second=1e8)
    assert simulate_step(reading, slow, 16, 4096).samples_per_second == pytest.approx(1000)
    decoding = replace(MACHINE, load_samples_per_second=50.0)
    points = scaling_table(WORK, decoding, 4096, [1, 16])
    assert [point.samples_per_second for point in points] == pytest.approx([50, 800])


def test_strong_and_weak_scaling() -> None:
    strong, weak = (scaling_table(WORK, MACHINE, 4096, NODES, weak) for weak in (False, True))
    assert [point.nodes for point in strong] == NODES and len(weak) == 11
    assert strong[0].efficiency == weak[0].efficiency == 1.0
    assert [point.efficiency for point in strong] == sorted((point.efficiency for point in strong), reverse=True)
    assert strong[-1].efficiency < weak[-1].efficiency < 1
    assert [point.goodput for point in weak] == sorted((point.goodput for point in weak), reverse=True)
    assert [point.nodes for point in scaling_table(WORK, MACHINE, 64, NODES)] == [1, 2, 4, 8, 16]
    with pytest.raises(UserError, match="use fewer nodes"):
        simulate_step(WORK, MACHINE, 32, 64)


def test_deterministic_by_seed() -> None:
    one, again, other = (simulate_step(WORK, MACHINE, 64, 4096, seed) for seed in (1, 1, 2))
    assert one == again and one.seconds != other.seconds
    assert one.seconds == pytest.approx(other.seconds, rel=1e-4)


def test_unknown_failures_are_not_zero_failures() -> None:
    unknown = simulate_step(WORK, replace(MACHINE, node_mtbf_hours=None), 64, 4096)
    assert not unknown.goodput_known and math.isinf(unknown.checkpoint_seconds)
    known = simulate_step(WORK, MACHINE, 64, 4096)
    assert known.goodput_known and 0.9 < known.goodput < 1 and known.checkpoint_seconds < 36_000
