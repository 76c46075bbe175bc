"""Lifelines between real processes without torch: the ways in which a rank can end are distinguished."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from toys.recipes import ROOT

from leam_mm.lifelines import Clock, process_start

LIMIT = 2.0
RANK = """
    import json, os, sys, time
    from leam_mm.lifeline_server import LifelineServer
    from leam_mm.lifelines import Lifeline, Rank, Status

    number, limit, folder = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    ranks = [Rank(n, f"n{n}", pid, 1) for n, pid in enumerate([11, 12, 13])]
    passed = 0

    def end(verdict):
        print(json.dumps([verdict.kind, verdict.ranks, verdict.line]), flush=True)
        os._exit(76)

    def status():
        return Status(passed, passed, f"trains step {passed}", limit)

    if number == 0:
        server = LifelineServer(limit, "secret")
        print(server.port, flush=True)
        port = server.port
        sys.stdin.readline()  # until all processes have started
        server.watch(ranks)
    else:
        port = int(sys.argv[4])
        print("started", flush=True)
    line = Lifeline(("127.0.0.1", port), "secret", ranks, number, limit, status, end)
    line.start()
    for word in iter(sys.stdin.readline, ""):
        if word == "close\\n":
            line.close()
            if number == 0:
                server.close()
            os._exit(0)
        elif word == "step\\n":
            passed += 1
        elif word == "fail\\n":
            if number == 0:
                server.announce("rank 0 on host n0 failed: its own error")
            line.report_failure("failed", "its own error")
    time.sleep(60)  # the test reads what this one says
"""


@dataclass
class Trio:
    """Three ranks; only the processes that a test tells so make steps."""

    processes: list["subprocess.Popen[str]"]

    def tell(self, word: str, *numbers: int) -> None:
        for number in numbers:
            stdin = self.processes[number].stdin
            assert stdin is not None
            stdin.write(f"{word}\n")
            stdin.flush()

    def verdicts(self, *numbers: int, seconds: float = 50) -> list[list]:
        """What the ranks say when they end with code 76."""
        found = []
        for number in numbers:
            output, _ = self.processes[number].communicate(timeout=seconds)
            assert self.processes[number].returncode == 76, output
            found.append(json.loads(output))
        return found


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[Trio]:
    processes: list[subprocess.Popen[str]] = []
    port: list[str] = []
    for number in range(3):
        command = [sys.executable, "-c", textwrap.dedent(RANK), str(number), str(LIMIT), str(tmp_path), *port]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, cwd=ROOT, **pipes))  # type: ignore[call-overload]
        if number == 0:
            assert processes[0].stdout is not None
            port = [processes[0].stdout.readline().strip()]
    for process in processes[1:]:
        assert process.stdout is not None and process.stdout.readline() == "started\n"
    made = Trio(processes)
    made.tell("watch", 0)
    made.tell("step", 0, 1, 2)
    time.sleep(LIMIT / 4)
    yield made
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [0, 1])
def test_a_killed_rank_is_named_at_once(trio: Trio, number: int) -> None:
    began = time.monotonic()
    trio.processes[number].send_signal(signal.SIGKILL)
    others = [0, 1, 2]
    others.remove(number)
    for kind, ranks, line in trio.verdicts(*others):
        assert (kind, ranks) == ("died", [number])
        assert line.startswith(f"rank {number} on host n{number} (process 1{number + 1}) died")
    assert time.monotonic() - began < LIMIT


@pytest.mark.parametrize("number", [0, 2])
def test_a_stopped_rank_is_named_after_the_limit(trio: Trio, number: int) -> None:
    began = time.monotonic()
    trio.processes[number].send_signal(signal.SIGSTOP)
    others = [0, 1, 2]
    others.remove(number)
    for kind, ranks, line in trio.verdicts(*others):
        assert (kind, ranks) == ("silent", [number])
        assert re.match(rf"rank {number} on host n{number} gave no sign of life for [12](\.\d+)? s", line)
    assert LIMIT / 2 < time.monotonic() - began < 6 * LIMIT


def test_the_rank_that_the_others_wait_for_is_named(trio: Trio) -> None:
    for _ in range(4):
        time.sleep(LIMIT / 2)
        trio.tell("step", 0, 1, 2)
    trio.tell("step", 0, 2)  # these wait for rank 1 in a collective of this step
    for kind, ranks, line in trio.verdicts(0, 1, 2):
        assert (kind, ranks) == ("stuck", [1])
        wanted = "rank 1 on host n1 made no step for 2 s: the last it said is that it trains step 5; if it is only slow"
        assert line.startswith(wanted) and "raise watchdog.limit" in line


def test_an_error_is_told_to_the_others(trio: Trio) -> None:
    trio.tell("fail", 0)
    time.sleep(LIMIT / 2)
    trio.tell("close", 1)  # it has the same error and ends by itself
    trio.processes[0].kill()
    assert trio.verdicts(2) == [["failed", [0], "rank 0 on host n0 failed: its own error"]]
    assert trio.processes[1].wait(5) == 0


def test_ranks_that_wait_for_one_that_ended_early_do_not_wait_for_ever(trio: Trio) -> None:
    trio.tell("close", 1)
    for kind, ranks, line in trio.verdicts(0, 2):
        assert (kind, ranks) == ("stuck", [0, 2])
        assert "made no step for 2 s after rank 1 on host n1 ended" in line


def test_planned_ends_are_no_deaths(trio: Trio) -> None:
    trio.tell("close", 1)
    time.sleep(LIMIT / 2)
    assert [process.poll() for process in trio.processes] == [None, 0, None]
    trio.tell("close", 0)
    time.sleep(2 * LIMIT)
    assert [process.poll() for process in trio.processes] == [0, 0, None]


def test_a_clock_stands_still_while_the_process_is_stopped() -> None:
    clock = Clock(0.2)
    first = clock.tick()
    time.sleep(0.5)
    assert clock.tick() - first < 0.01
    time.sleep(0.1)
    assert 0.09 < clock.tick() - first < 0.3


def test_processes_are_told_apart_by_their_start() -> None:
    assert process_start(os.getpid()) > 0
    assert process_start(2**22 + 1) == 0
    child = subprocess.Popen(["true"])
    time.sleep(0.2)
    assert process_start(child.pid) == 0  # a zombie
    child.wait()
