"""Checks that all ranks run together: clocks, the shared folder, the all-reduce, and a second process group."""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from leam_mm.launch.check_process import Target
from leam_mm.launch.check_result import CheckResult, Verdict, expected, not_run
from leam_mm.launch.device_checks import task_device
from leam_mm.launch.storage_checks import GIVE_RUN, SKEW

PINGS = 5
STORE_SECONDS = 10  # limit of one request
CLOCK_SECONDS = 25  # in which the turn of each host must come
GPU_BYTES, CPU_BYTES = 256 << 20, 8 << 20  # of the all-reduced tensor
ROUNDS = 5
SLOW, BROKEN = 0.5, 0.2  # share of the profile's bandwidth; ours, not a site's
ONE_RANK = "one process; start one a GPU by srun or torchrun"
SECOND_GROUP_FIX = (
    "a second process group hangs: set FI_MR_CACHE_MONITOR=userfaultfd on Slingshot networks (LUMI-AI-Guide #118, "
    "laifs-container-recipes #44, reported by users in 2026); elsewhere check NCCL_SOCKET_IFNAME"
)
ALL_REDUCE_FIX = "ranks do not reach each other: compare NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME and MASTER_ADDR"


def check_clock(target: Target) -> list[CheckResult]:
    """Measure how far the clock of each host is ahead of that of rank 0, corrected by the round trip.

    The offset is that of the fastest round trip; half of its time bounds the error (Cristian's algorithm, 1989).
    """
    ranks = target.ranks
    if ranks.world == 1:
        return [not_run("clock", ONE_RANK)]
    store = ranks.connect(STORE_SECONDS if ranks.rank == 0 else CLOCK_SECONDS)
    if ranks.rank:
        if ranks.local_rank == 0:
            store.set(f"clock/asks/{ranks.rank}", "1")
            for number in range(PINGS):
                store.get(f"clock/{ranks.rank}/{number}/ask")
                store.set(f"clock/{ranks.rank}/{number}/answer", repr(time.time()))
        return []
    results = []
    for rank in range(1, ranks.world):
        if not _leads(target, store, rank):
            continue
        trips = []
        for number in range(PINGS):
            began = time.time()
            store.set(f"clock/{rank}/{number}/ask", "1")
            answer = float(store.get(f"clock/{rank}/{number}/answer"))
            ended = time.time()
            trips.append((ended - began, answer - (began + ended) / 2))
        trip, ahead = min(trips)
        bad = abs(ahead) - trip / 2 > SKEW
        host = store.get(f"doctor/host/{rank}").decode()
        results.append(
            CheckResult(
                "clock",
                round(ahead, 4),
                "s ahead of rank 0",
                f"within {SKEW:g} s",
                "warn" if bad else "pass",
                f"rank {rank} on {host}; error at most {trip / 2:.2g} s",
                f"report it to the site: synchronize the clock of {host}" if bad else "",
                {"rank": rank, "host": host, "ahead": ahead, "round_trip": trip},
            )
        )
    return results or [CheckResult("clock", 0.0, "s ahead of rank 0", reason="all ranks are on one host")]


def _leads(target: Target, store: Any, rank: int) -> bool:
    """Return whether a rank is the first of a host other than that of rank 0."""
    return int(store.get(f"doctor/local_rank/{rank}")) == 0


def check_shared_folder(target: Target) -> list[CheckResult]:
    """Write the run folder on rank 0's host and read it on the others, and try its lock there."""
    ranks, name = target.ranks, "shared folder"
    if ranks.world == 1 or target.run is None:
        return [not_run(name, ONE_RANK, "") if ranks.world == 1 else not_run(name, "no run folder is given", GIVE_RUN)]
    store = ranks.connect(STORE_SECONDS)
    path = target.run / ".doctor-shared"
    if ranks.rank == 0:
        target.run.mkdir(parents=True, exist_ok=True)
        try:
            with open(path, "w") as file:
                file.write("rank 0")
                file.flush()
                with contextlib.suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_EX)
                store.set("shared/written", "1")
                for rank in range(1, ranks.world):
                    store.get(f"shared/read/{rank}")
        finally:
            path.unlink(missing_ok=True)
        return []
    store.get("shared/written")
    try:
        seen, excluded = _look(path)
    finally:
        store.set(f"shared/read/{ranks.rank}", "1")
    if not seen:
        reason = f"{target.run} of rank 0 is not seen on {ranks.host}"
        return [CheckResult(name, "not shared", "", "", "fail", reason, "use a folder on a shared file system")]
    return [
        CheckResult(name, "shared", "", "seen by all, flock holds between hosts", "pass" if excluded else "warn",
                    "" if excluded else "flock does not hold between hosts",
                    "" if excluded else "start no second run in the folder from another host")
    ]  # fmt: skip


def _look(path: Any) -> tuple[bool, bool]:
    for _ in range(30):  # NFS shows a new file of another host after up to some seconds
        try:
            with open(path, "rb+") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return True, True
                except OSError:
                    return True, False
                return True, False
        except FileNotFoundError:
            time.sleep(0.1)
    return False, False


@contextlib.contextmanager
def process_group(target: Target, name: str, seconds: float) -> Iterator[Any]:
    """Join a process group of all ranks, NCCL or RCCL on GPUs and gloo on CPUs, and give the device."""
    import torch.distributed as dist

    device = task_device(target)
    ranks, limit = target.ranks, timedelta(seconds=seconds)
    store = dist.PrefixStore(name, ranks.connect(seconds))
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world, timeout=limit)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def check_all_reduce(target: Target, seconds: float = 30) -> list[CheckResult]:
    """Measure the bus bandwidth of an all-reduce: 2 (n - 1) / n x bytes per second, as nccl-tests define it."""
    import torch
    import torch.distributed as dist

    ranks, name = target.ranks, "all-reduce"
    if ranks.world == 1:
        return [not_run(name, ONE_RANK)]
    with process_group(target, "all_reduce", seconds) as device:
        size = GPU_BYTES if device.type == "cuda" else CPU_BYTES
        tensor = torch.ones(size // 4, device=device)
        for _ in range(2):
            dist.all_reduce(tensor)
        right = bool((tensor == float(ranks.world) ** 2).all())
        tensor.fill_(1.0)
        dist.barrier()
        _wait_for(device)
        began = time.perf_counter()
        for _ in range(ROUNDS):
            dist.all_reduce(tensor)
        _wait_for(device)
        spent = (time.perf_counter() - began) / ROUNDS
        backend = dist.get_backend()
    speed = bus_bandwidth(size, spent, ranks.world)
    node = target.profile.node
    fact = node.inter_gbytes_per_s if ranks.world > ranks.local_world else node.intra_gbytes_per_s
    judged = fact.known and device.type == "cuda"
    verdict: Verdict = "pass"
    if judged and speed < SLOW * fact.needed():
        verdict = "fail" if speed < BROKEN * fact.needed() else "warn"
    reason = f"{backend} on {device.type}, {ranks.world} ranks, {size >> 20} MiB; bus bandwidth"
    if not right:
        verdict, reason = "fail", f"the sum is wrong; {reason}"
    fix = (
        ""
        if verdict == "pass"
        else "look for `NET/OFI Selected Provider` or `NET/IB` in the log of NCCL_DEBUG=INFO:\
 without it, NCCL runs over TCP"
    )
    text = expected(fact, "GB/s", f"at least {SLOW:.0%} of") if judged else ""
    data = {"bytes": size, "seconds": spent, "backend": backend, "bus_gbytes_per_s": speed}
    return [CheckResult(name, round(speed, 2), "GB/s", text, verdict, reason, fix, data)]


def bus_bandwidth(size: int, seconds: float, ranks: int) -> float:
    """Return the bus bandwidth of an all-reduce in GB/s (10**9 bytes).

    Args:
        size: Bytes of the tensor.
        seconds: Time of one all-reduce.
        ranks: Number of ranks.
    """
    return size / seconds * 2 * (ranks - 1) / ranks / 1e9


def _wait_for(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check_second_group(target: Target, seconds: float = 20) -> list[CheckResult]:
    """Create a second process group beside the first and use both; on some networks this hangs."""
    import torch
    import torch.distributed as dist

    ranks, name = target.ranks, "second process group"
    if ranks.world == 1:
        return [not_run(name, ONE_RANK)]
    began = time.perf_counter()
    with process_group(target, "second_group", seconds) as device:
        second: Any = dist.new_group(timeout=timedelta(seconds=seconds))
        total = torch.ones(1 << 16, device=device)
        for group in (None, second, None, second):
            dist.all_reduce(total, op=dist.ReduceOp.MAX, group=group)
        _wait_for(device)
    fact = target.profile.network.second_group_ok
    return [
        CheckResult(name, round(time.perf_counter() - began, 2), "s", expected(fact, "", "works here:"), reason="works")
    ]
