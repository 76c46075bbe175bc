"""Single checks of the doctor, and its comparisons between ranks."""

import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from leam_mm.errors import UserError
from leam_mm.launch import device_checks, network_checks, node_checks, storage_checks
from leam_mm.launch.check_process import Check, Target, run_check
from leam_mm.launch.check_result import CheckResult
from leam_mm.launch.group_checks import bus_bandwidth
from leam_mm.launch.rank_comparison import RankReport, different_versions, shared_cores, slow_devices
from leam_mm.launch.rank_environment import RankEnvironment, first_host, rank_environment
from leam_mm.planning.cluster_profile import ClusterProfile
from leam_mm.planning.cluster_sections import Gpu, Network, Slurm, Software, Storage
from leam_mm.planning.fact import Fact

ALONE = RankEnvironment(0, 1, 0, 1, "here", "", 0, "none")
ROOT = Path(__file__).resolve().parents[1]
several_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")


def fact(value: Any) -> Fact:
    return Fact(value, "a test", "2026-11", "read")


def only(results: list[CheckResult]) -> CheckResult:
    assert len(results) == 1
    return results[0]


def test_ranks_without_address() -> None:
    with pytest.raises(UserError, match="MASTER_ADDR"):
        rank_environment({"RANK": "0", "WORLD_SIZE": "2"})
    with pytest.raises(UserError, match="RANK is 'x'"):
        rank_environment({"RANK": "x", "WORLD_SIZE": "2"})


def test_slurm_step() -> None:
    env = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURMD_NODENAME": "n2"}
    env |= {"SLURM_STEP_NODELIST": "n[001-002]", "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_JOB_ID": "1234567"}
    assert rank_environment(env) == RankEnvironment(5, 8, 1, 4, "n2", "n001", 19567, "srun")
    del env["SLURM_STEP_NUM_TASKS"]  # the batch script itself
    assert rank_environment(env).world == 1


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n[001-003,7],m2", "n001"),
        ("a,b", "a"),
        ("jwb[0021]i", "jwb0021i"),
        ("x1-[2,4]", "x1-2"),
        ("", ""),
    ],
)
def test_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_few_cores_against_the_profile() -> None:
    many = Target(ALONE, ClusterProfile("x", "X", slurm=Slurm(cpus_per_task=fact(10_000))))
    result = only(node_checks.check_affinity(many))
    assert result.verdict == "fail" and "10000" in result.expected and "a test" in result.expected


@pytest.mark.parametrize(
    ("own", "file", "limit"),
    [
        ("0::/job/step\n", "job/memory.max", 3_000_000_000),
        ("0::/job\n", "unified/job/memory.max", 5_000_000_000),
        ("4:memory:/job\n", "memory/job/memory.limit_in_bytes", 2_000_000_000),
        ("4:memory:/job\n", "memory/job/memory.limit_in_bytes", 9223372036854771712),
    ],
)
def test_memory_limit(tmp_path: Path, own: str, file: str, limit: int) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(f"{limit}\n")
    result = only(node_checks.check_memory_limit(Target(ALONE), tmp_path, own))
    small = limit < 1 << 60
    assert (result.data["limit_bytes"] == limit) == small
    assert result.verdict == "warn" or not small


def test_wrong_interface_names() -> None:
    target = Target(ALONE, ClusterProfile("x", "X", network=Network(socket_interface=fact("lo"))))
    env = {"NCCL_SOCKET_IFNAME": "nosuch0", "GLOO_SOCKET_IFNAME": "nosuch1"}
    results = {one.name: one for one in network_checks.check_interfaces(target, env)}
    assert results["NCCL_SOCKET_IFNAME"].verdict == results["GLOO_SOCKET_IFNAME"].verdict == "fail"
    assert results["NCCL_SOCKET_IFNAME"].fix == "export NCCL_SOCKET_IFNAME=lo"
    assert "lo" in results["GLOO_SOCKET_IFNAME"].fix
    results = {one.name: one for one in network_checks.check_interfaces(target, {"GLOO_SOCKET_IFNAME": "lo"})}
    assert results["NCCL_SOCKET_IFNAME"].verdict == "warn" and results["GLOO_SOCKET_IFNAME"].verdict == "pass"


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("ib", ["ib0", "ib1"]),
        ("=ib0", ["ib0"]),
        ("^ib", ["eth0"]),
        ("ib1,eth", ["ib1", "eth0"]),
        ("^=ib0", ["ib1", "eth0"]),
    ],
)
def test_nccl_names(wanted: str, chosen: list[str]) -> None:
    assert network_checks.nccl_matches(wanted, ["ib0", "ib1", "eth0"]) == chosen


def test_ipv6_of_a_cluster_without_it() -> None:
    target = Target(ALONE, ClusterProfile("x", "X", network=Network(ipv6=fact(False))))
    result = only(network_checks.check_ipv6(target, {"GLOO_USE_IPV6": "0"}))
    assert result.verdict == "warn" and result.fix == "export NCCL_SOCKET_FAMILY=AF_INET"
    assert result.expected == "no (a test, 2026-11)"
    env = {"GLOO_USE_IPV6": "0", "NCCL_SOCKET_FAMILY": "AF_INET"}
    assert only(network_checks.check_ipv6(target, env)).verdict == "pass"


@pytest.mark.parametrize(
    ("address", "local_world", "rank", "verdict"),
    [
        ("127.0.0.1", 2, 1, "pass"),
        ("127.0.1.1", 1, 1, "fail"),  # several hosts would each meet themselves
        ("no-such-host.invalid", 1, 1, "fail"),
        ("203.0.113.9", 1, 0, "fail"),  # no address of rank 0's host
        ("203.0.113.9", 1, 1, "warn"),
    ],
)
def test_master_address(address: str, local_world: int, rank: int, verdict: str) -> None:
    ranks = RankEnvironment(rank, 2, 0, local_world, "here", address, 15000, "srun")
    assert only(network_checks.check_master_address(Target(ranks))).verdict == verdict


def test_file_system_of_a_folder(tmp_path: Path) -> None:
    mounts = f"a / ext4 rw 0 0\nb {tmp_path} lustre rw 0 0\nc {tmp_path} beegfs rw 0 0\nd {tmp_path}x nfs4 rw 0 0\n"
    folder = tmp_path / "deep"
    folder.mkdir()
    system = storage_checks.file_system(folder, mounts)
    assert (system.mount, system.kind) == (str(tmp_path), "beegfs") and system.free_gb > 0


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_small_tmpfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=50", "none", str(folder)]).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        result = run_check(Check("tmp", storage_checks.check_tmp, 10), Target(ALONE))[0]
        assert result.verdict == "fail" and "tmpfs" in result.reason and "inodes free" in result.reason
        assert "TMPDIR" in result.fix
        run = Target(ALONE, run=folder / "run")
        result = only(storage_checks.check_run_folder(run))
        assert result.verdict == "fail"
        failed = only(run_check(Check("writing", storage_checks.check_writing, 10, "the fix"), run))
        assert failed.verdict == "fail" and "No space left" in failed.reason
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_folder_that_compute_nodes_do_not_see(tmp_path: Path) -> None:
    profile = ClusterProfile("x", "X", storage=Storage(login_only_paths=fact((str(tmp_path),))))
    result = only(storage_checks.check_run_folder(Target(ALONE, profile, tmp_path / "run")))
    assert result.verdict == "fail" and not (tmp_path / "run").exists()


def test_torn_reads_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage_checks.torn_reads(tmp_path / "one") == 0
    real = os.replace

    def copy(source: Any, target: Any) -> None:  # a rename that is no single step
        Path(target).unlink()
        time.sleep(0.001)
        real(source, target)

    monkeypatch.setattr(os, "replace", copy)
    assert storage_checks.torn_reads(tmp_path / "two") > 0


def test_lock_that_does_not_exclude(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage_checks.flock_excludes(tmp_path / "lock")
    monkeypatch.setattr(storage_checks.fcntl, "flock", lambda *_: None)
    assert not storage_checks.flock_excludes(tmp_path / "lock")


def test_devices_on_this_machine() -> None:
    """The matrix product and the attention kernels run in processes of their own, on this machine's device."""
    product = only(run_check(Check("matmul", device_checks.check_matmul, 60), Target(ALONE)))
    assert product.verdict != "fail" and isinstance(product.value, float) and product.value > 0
    assert "CPU" in product.reason or product.data["device"] == "cuda"
    import torch

    errors = device_checks.attention_errors(torch.device("cpu"), torch.float32)
    assert float(errors["default"]) < 1e-4


def test_wrong_gradients_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    import torch.nn.functional as F

    real, calls = F.scaled_dot_product_attention, []

    def wrong(query: Any, key: Any, value: Any) -> Any:
        calls.append(1)  # the first call is the reference
        extra = 0.0 if len(calls) == 1 else 0.5 * (value - value.detach())
        return real(query, key, value) + extra

    monkeypatch.setattr(F, "scaled_dot_product_attention", wrong)
    errors = device_checks.attention_errors(torch.device("cpu"), torch.float32)
    assert float(errors["default"]) > device_checks.LARGEST_ERROR


def test_images_are_like_photographs() -> None:
    images = node_checks.encoded_images()
    assert list(images) == ["JPEG", "PNG", "WEBP"] and 30_000 < len(images["JPEG"]) < 200_000
    result = only(node_checks.check_decoding(Target(ALONE), seconds=0.05))
    rates = result.data["images_per_second_per_core"]
    assert all(rate > 0 for rate in rates.values()) and "estimate" in result.reason


def test_energy_is_never_zero() -> None:
    result = only(node_checks.check_energy(Target(ALONE), seconds=0.2))
    if result.value is None:
        assert result.verdict == "warn" and "not measured" in result.fix and result.data["refused"]
    else:
        assert "boundary" in result.reason


def test_bus_bandwidth() -> None:
    assert bus_bandwidth(10**9, 0.5, 4) == pytest.approx(2 * 2 * 3 / 4)


def matmul(rank: int, host: str, speed: float, device: str = "cuda") -> RankReport:
    return RankReport(rank, host, [CheckResult("matrix product", speed, "TFLOP/s", data={"device": device})])


def test_slow_devices_are_excluded() -> None:
    speeds = [700, 690, 710, 500, 705, 600, 590, 700]
    slow, exclude = slow_devices([matmul(rank, f"n{rank}", speed) for rank, speed in enumerate(speeds)])
    assert [one.rank for one in slow] == [3, 6] and exclude == "--exclude=n3,n6"  # 600 > 0.85 * 700
    assert slow[0].results[0].verdict == "fail"
    slow, exclude = slow_devices([matmul(0, "n0", 1.0, "cpu"), matmul(1, "n0", 0.2, "cpu")])
    assert slow[0].results[0].verdict == "warn" and exclude == ""


def affinity(rank: int, host: str, cores: list[int]) -> RankReport:
    return RankReport(rank, host, [CheckResult("cpu affinity", len(cores), data={"cores": cores})])


@pytest.mark.parametrize(
    ("cores", "verdict"),
    [
        ([[0, 1], [2, 3]], "pass"),
        ([[0, 1, 2, 3], [0, 1, 2, 3]], "pass"),  # not bound, but enough for both
        ([[0, 1], [0, 1]], "warn"),
        ([[0], [0]], "fail"),
        ([[0, 1], [1]], "fail"),
    ],
)
def test_shared_cores(cores: list[list[int]], verdict: str) -> None:
    reports = [affinity(rank, "n1", own) for rank, own in enumerate(cores)]
    (found,) = shared_cores(reports)
    assert found.results[0].verdict == verdict
    assert list(shared_cores([affinity(0, "n1", [0]), affinity(1, "n2", [0])])) == []


def test_different_versions_are_named() -> None:
    reports = [
        RankReport(rank, "n", [CheckResult("versions", "torch", data={"versions": {"torch": version, "python": "3"}})])
        for rank, version in enumerate(["2.14", "2.15", "2.15"])
    ]
    found = different_versions(reports)
    assert found is not None and found.reason == "torch: 2.14 on ranks 0, 2.15 on ranks 1, 2"
    assert different_versions(reports[1:]) is None


def test_cpu_wheel_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_checks, "_built_for", lambda: "CPUs only")
    target = Target(ALONE, ClusterProfile("x", "X", gpu=Gpu(vendor=fact("nvidia"))))
    result = only(node_checks.check_versions(target))
    assert result.verdict == "fail" and "index" in result.fix


def test_environment_against_the_profile() -> None:
    software = Software(exports=fact({"A": "1", "B": "$HOME/x", "C": "3"}))
    target = Target(ALONE, ClusterProfile("x", "X", gpu=Gpu(vendor=fact("amd")), software=software))
    result = only(node_checks.check_environment(target, {"A": "2", "B": "any", "NCCL_NET_GDR_LEVEL": "3"}))
    assert result.verdict == "warn" and result.fix == "export A=1 C=3; unset NCCL_NET_GDR_LEVEL"
    assert only(node_checks.check_environment(target, {"A": "1", "B": "y", "C": "3"})).verdict == "pass"
    assert only(node_checks.check_environment(Target(ALONE), {})).verdict == "not run"
