"""Bandwidth of an all-reduce over the ranks that a program was started with, by srun or torchrun."""

import os
import time

import torch
import torch.distributed as dist


def measure_allreduce(size: int = 64 * 2**20, repeats: int = 5) -> tuple[float | None, int, str]:
    """Measure the bus bandwidth of an all-reduce over all ranks that this program was started with.

    Args:
        size: Bytes.
        repeats: The fastest counts.

    Returns:
        Bytes per second (None with one rank), number of ranks, backend.
    """
    world = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)
    if world < 2 or "MASTER_ADDR" not in os.environ:
        return None, 1, "none"
    accelerated = torch.cuda.is_available()
    backend = "nccl" if accelerated else "gloo"
    local = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
    device = torch.device("cuda", local) if accelerated else torch.device("cpu")
    os.environ.setdefault("MASTER_PORT", "29511")
    dist.init_process_group(backend, rank=_rank(), world_size=world)
    try:
        data = torch.zeros(size // 4, device=device)
        best = float("inf")
        for number in range(repeats + 1):
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(data)
            if accelerated:
                torch.cuda.synchronize(device)
            if number:  # the first one opens connections
                best = min(best, time.perf_counter() - began)
    finally:
        dist.destroy_process_group()
    return 2 * (world - 1) / world * size / best, world, backend


def first_rank() -> bool:
    """Return whether this process is the first of those that were started."""
    return _rank() == 0


def _rank() -> int:
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
