"""Rank, world size, host and meeting address of this process, as srun or torchrun sets them."""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from leam_mm.errors import UserError


@dataclass(frozen=True)
class RankEnvironment:
    """Where this process stands in its job.

    Args:
        rank: Rank in [0, world).
        world: Number of processes.
        local_rank: Rank among the processes of the host.
        local_world: Number of processes of the host, at least 1.
        host: Name of the host; under Slurm the name of the node.
        address: Host at which the ranks meet, or "" for one process.
        port: Port at which the ranks meet.
        launcher: ``srun``, ``torchrun``, ``environment`` (RANK and WORLD_SIZE alone) or ``none``.
        agent_store: The launcher keeps the store at the address, so that rank 0 must not.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int
    host: str
    address: str
    port: int
    launcher: str
    agent_store: bool = False

    def connect(self, seconds: float, serve: bool = False) -> Any:
        """Return a TCPStore client; it does not wait for other ranks than the one that keeps the store.

        Args:
            seconds: Limit of the connection and of each later request.
            serve: Keep the store in this process; only rank 0, once.
        """
        from torch.distributed import TCPStore

        keep = serve and self.rank == 0 and not self.agent_store
        limit = timedelta(seconds=seconds)
        return TCPStore(self.address, self.port, None, keep, limit, wait_for_workers=False)


def rank_environment(env: Mapping[str, str] = os.environ) -> RankEnvironment:
    """Read the variables of srun or torchrun; without them the process is alone.

    Raises:
        UserError: A variable is missing or is not a number.
    """
    host = env.get("SLURMD_NODENAME") or socket.gethostname()
    if "RANK" in env and "WORLD_SIZE" in env:
        rank, world = _number(env, "RANK"), _number(env, "WORLD_SIZE")
        local = _number(env, "LOCAL_RANK") if "LOCAL_RANK" in env else _number(env, "SLURM_LOCALID", 0)
        local_world = _number(env, "LOCAL_WORLD_SIZE", 1)
        launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in env else "environment"
    elif "SLURM_STEP_NUM_TASKS" in env:  # set by srun, not in the batch script itself
        rank, world = _number(env, "SLURM_PROCID"), _number(env, "SLURM_STEP_NUM_TASKS")
        local, launcher = _number(env, "SLURM_LOCALID"), "srun"
        counts = re.findall(r"\d+", env.get("SLURM_STEP_TASKS_PER_NODE", ""))
        local_world = int(counts[0]) if counts else 1
    else:
        return RankEnvironment(0, 1, 0, 1, host, "", 0, "none")
    if not 0 <= rank < world:
        raise UserError(f"rank {rank} of {world} processes: RANK must be at least 0 and less than WORLD_SIZE")
    address, port = env.get("MASTER_ADDR", ""), _number(env, "MASTER_PORT", 0)
    if world > 1 and not address:
        nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or ""
        address = first_host(nodes)
        if not address:
            raise UserError("MASTER_ADDR is not set: export the name of the first host in the job script")
    if world > 1 and not port:
        port = 15000 + _number(env, "SLURM_JOB_ID", 0) % 10000  # the port that Lightning chooses, too
    agent = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return RankEnvironment(rank, world, local, max(1, local_world), host, address, port, launcher, agent)


def first_host(nodes: str) -> str:
    """Return the first host of a Slurm node list such as ``n[001-003,7],m2``, or "" if it is empty."""
    match = re.match(r"([^,\[]+)(?:\[(\d+))?([^,\[\]]*)", nodes.strip())
    if not match:
        return ""
    name, number, _ = match.groups()
    after = re.match(r"[^\[]+\[[^\]]*\]([^,\[]*)", nodes.strip())
    return name + (number or "") + (after.group(1) if number and after else "")


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = env.get(name, "")
    if not text and default is not None:
        return default
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f"{name} is {text!r}: srun or torchrun sets it to a number; start the doctor by one of them"
        ) from None
