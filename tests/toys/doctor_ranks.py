"""Ranks of the doctor on this machine, forked from a server that has imported torch once."""

import json
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from leam_mm.launch.check_process import Check, Target
from leam_mm.launch.check_result import CheckResult
from leam_mm.launch.doctor import CHECKS, DoctorSettings, examine
from leam_mm.launch.group_checks import SECOND_GROUP_FIX, check_clock, check_second_group

RANKS = multiprocessing.get_context("forkserver")
RANKS.set_forkserver_preload(["torch.distributed", "toys.doctor_ranks"])


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def chosen(*names: str) -> list[Check]:
    return [check for check in CHECKS if check.name in names]


def rank_one_sleeps(target: Target) -> list[CheckResult]:
    if target.ranks.rank == 1:
        time.sleep(60)
    return check_second_group(target, seconds=60)


def stuck_second_group(seconds: float) -> Check:
    return Check("second_group", rank_one_sleeps, seconds, SECOND_GROUP_FIX, together=True)


def rank_main(env: dict[str, str], settings: DoctorSettings, checks: list[Check], cores: set[int], log: Path) -> None:
    os.environ.update(env)
    if cores:
        os.sched_setaffinity(0, cores)
    with open(log, "w") as file:
        code = examine(settings, Console(file=file, width=160), checks)
    os._exit(code)


def run_ranks(
    folder: Path,
    settings: DoctorSettings,
    checks: list[Check],
    world: int = 2,
    started: tuple[int, ...] = (0, 1),
    pinned: dict[int, set[int]] | None = None,
    port: int | None = None,
    local: int | None = None,
) -> tuple[dict[str, Any], str, list[int | None]]:
    """Start ranks of one host; return the JSON file, what the first of them printed, and the exit codes."""
    port, processes, logs = port or free_port(), [], [folder / f"rank{rank}.log" for rank in started]
    for rank, log in zip(started, logs, strict=True):
        env = {
            "RANK": rank,
            "WORLD_SIZE": world,
            "LOCAL_RANK": rank if local is None else local,
            "LOCAL_WORLD_SIZE": world,
            "OMP_NUM_THREADS": 1,
        }
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        words = {name: str(value) for name, value in env.items()}
        args = (words, settings, checks, (pinned or {}).get(rank, set()), log)
        processes.append(RANKS.Process(target=rank_main, args=args))
    for process in processes:
        process.start()
    for process in processes:
        process.join(90)
    assert settings.json is not None
    return json.loads(settings.json.read_text()), logs[0].read_text(), [process.exitcode for process in processes]


def rank_one_dies(target: Target) -> list[CheckResult]:
    if target.ranks.rank == 1:
        os.kill(os.getppid(), signal.SIGKILL)
    return []


def rank_one_is_ahead(target: Target) -> list[CheckResult]:
    if target.ranks.rank == 1:
        clock = time.time
        time.time = lambda: clock() + 5
    return check_clock(target)
