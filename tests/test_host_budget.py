import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from toys.recipes import ROOT

from data_tools.network.host_budget import Connection, HostBudget, HostQueue

HOLDER = """
import sys, time
from pathlib import Path
from data_tools.network.host_budget import HostBudget
held = HostBudget(Path(sys.argv[1]), 2, 0.0, {}, frozenset()).acquire("a.example")
print("in", flush=True)
time.sleep(60)
"""


def budget(folder: Path, connections: int = 2, delay: float = 0.0, free: tuple[str, ...] = ()) -> HostBudget:
    return HostBudget(folder, connections, delay, {"slow.example": 30.0}, frozenset(free))


def test_connections_are_counted_over_processes_and_freed_by_a_kill(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert other.stdout is not None and other.stdout.readline() == b"in\n"
    mine = budget(tmp_path)
    connection = mine.acquire("a.example")
    assert isinstance(connection, Connection) and mine.acquire("a.example") == 0.02
    assert isinstance(mine.acquire("b.example"), Connection)
    other.kill()
    other.wait()
    second = mine.acquire("a.example")
    assert isinstance(second, Connection) and mine.acquire("a.example") == 0.02
    connection.release()
    assert isinstance(mine.acquire("a.example"), Connection)


def test_delays_are_kept_and_the_longer_one_counts(tmp_path: Path) -> None:
    mine = budget(tmp_path, delay=0.3)
    assert isinstance(mine.acquire("a.example"), Connection)
    left = budget(tmp_path, delay=0.3).acquire("a.example")  # another process would read the same file
    assert isinstance(left, float) and 0 < left < 0.31
    time.sleep(left + 0.01)
    assert isinstance(mine.acquire("a.example"), Connection)
    assert isinstance(mine.acquire("slow.example"), Connection)
    assert 25 < mine.acquire("slow.example") < 30.1  # type: ignore[operator]


def test_a_host_is_paused_for_as_long_as_it_asks(tmp_path: Path) -> None:
    mine = budget(tmp_path, free=("own.example",))
    mine.pause("a.example", 5.0, requested=False)
    mine.pause("a.example", 1.0, requested=True)  # a shorter pause does not end a longer one
    assert 3 < mine.acquire("a.example") < 5.1  # type: ignore[operator]
    mine.pause("own.example", 5.0, requested=False)
    assert mine.acquire("own.example") == Connection(-1)
    mine.pause("own.example", 5.0, requested=True)
    assert 3 < mine.acquire("own.example") < 5.1  # type: ignore[operator]


def test_hosts_take_turns_within_their_limits(tmp_path: Path) -> None:
    jobs = [("a.example", number) for number in range(6)] + [("b.example", 10), ("c.example", 20)]
    queue: HostQueue[int] = HostQueue(jobs, budget(tmp_path, 1, 0.1), 60, lambda job, left: None)
    times: dict[str, list[float]] = {}
    order: list[int] = []

    def work() -> None:
        while taken := queue.take():
            host, job, connection = taken
            times.setdefault(host, []).append(time.time())
            order.append(job)
            time.sleep(0.02)
            connection.release()
            queue.done()

    threads = [threading.Thread(target=work) for _ in range(4)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(order) == [0, 1, 2, 3, 4, 5, 10, 20] and {10, 20} <= set(order[:4])
    assert times["a.example"][-1] - times["a.example"][0] > 0.4 and 0.5 <= time.monotonic() - begin < 10


def test_jobs_of_a_host_with_too_long_a_pause_are_given_up(tmp_path: Path) -> None:
    given_up: list[tuple[int, float]] = []
    mine = budget(tmp_path)
    mine.pause("a.example", 1000.0, requested=True)
    jobs = [("a.example", 1), ("b.example", 2), ("a.example", 3)]
    queue: HostQueue[int] = HostQueue(jobs, mine, 10, lambda job, left: given_up.append((job, left)))
    taken = queue.take()
    assert taken is not None and taken[:2] == ("b.example", 2)
    queue.retry("b.example", 2)
    again = queue.take()
    assert again is not None and again[1] == 2
    queue.done()
    assert queue.take() is None and [job for job, _ in given_up] == [1, 3] and given_up[0][1] > 900
