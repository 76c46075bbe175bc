"""Work of an evaluator distributed over ranks: whole batches in turn, gathered in order.

A batch consists of the same rows on any rank, so that any number of ranks gives the numbers of one process.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from leam_mm.distributed import any_rank, world_size
from leam_mm.errors import UserError

Result = TypeVar("Result")


def rank() -> int:
    """Return the number of this process among the ranks; 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


def is_mine(row: int, batch_size: int) -> bool:
    """Return whether this rank computes the batch of a row; the first batch is repeated by ranks without work."""
    batch = row // batch_size
    return batch == 0 or batch % world_size() == rank()


def agree(work: Callable[[], Result], device: torch.device) -> Result:
    """Do work that may fail on a single rank, such as reading; a failure stops all ranks, so that none waits forever.

    Raises:
        UserError: Another rank failed; its own message says why.
    """
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:  # of any kind: raised below, after the other ranks are informed
        failure = error
    failed = any_rank(failure is not None, device)
    if failure is not None:
        raise failure
    if failed:
        raise UserError("the evaluation failed on another rank; its own message says why")
    return result


def over_ranks(
    rows: int,
    batch_size: int,
    read: Callable[[slice], Result],
    compute: Callable[[Result], Tensor],
    device: torch.device,
) -> Tensor:
    """Compute batch b on rank b mod W and return the results of all batches on every rank.

    In the last round a rank may have no batch left. It repeats the first one, since a network that is sharded over the
    ranks needs all of them in each forward pass.

    Args:
        rows: Total number of rows, the same on each rank.
        batch_size: Rows of a batch; the last batch may be smaller.
        read: Returns the input of some rows; it may fail, and is only called for rows where `is_mine` is true.
        compute: Returns (n, ...) for the input of n rows.
        device: Device for communication between ranks.

    Returns:
        (rows, ...) on the CPU, the same on each rank and for any number of ranks.

    Raises:
        UserError: Ranks have different data, or reading failed on one.
    """
    world, batches = world_size(), -(-rows // batch_size)
    if world > 1:
        bounds = torch.tensor([rows, -rows], device=device)
        dist.all_reduce(bounds, op=dist.ReduceOp.MAX)
        if bounds.tolist() != [rows, -rows]:
            raise UserError(
                f"rank {rank()} has {rows} rows to evaluate, others have up to {int(bounds[0])}: "
                "give all machines the same shards"
            )
    found: list[Tensor] = []
    for first in range(0, batches, world):
        own = first + rank() if first + rank() < batches else 0
        part = slice(own * batch_size, min(rows, (own + 1) * batch_size))
        result = compute(agree(lambda part=part: read(part), device))  # type: ignore[misc]
        found += _gather(result, first, rows, batch_size, device) if world > 1 else [result.cpu()]
    return torch.cat(found) if found else torch.empty(0)


def _gather(result: Tensor, first: int, rows: int, batch_size: int, device: torch.device) -> list[Tensor]:
    """Return the results of a round in the order of its batches, without repeated ones and without padding."""
    padded = torch.zeros(batch_size, *result.shape[1:], dtype=result.dtype, device=device)
    padded[: len(result)] = result
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    sizes = [min(batch_size, max(0, rows - (first + number) * batch_size)) for number in range(len(parts))]
    return [part[:size].cpu() for part, size in zip(parts, sizes, strict=True)]
