import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from toys.recipes import ROOT

from data_tools.network.host_budget import HostBudget, HostQueue, Place

HOLDER = """
import sys, time
from pathlib import Path
from data_tools.network.host_budget import HostBudget
place = HostBudget(Path(sys.argv[1]), 2, 0.0, {}, frozenset()).enter("a.example")
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
    place = mine.enter("a.example")
    assert isinstance(place, Place) and mine.enter("a.example") == 0.02
    assert isinstance(mine.enter("b.example"), Place)
    other.kill()
    other.wait()
    second = mine.enter("a.example")
    assert isinstance(second, Place) and mine.enter("a.example") == 0.02
    place.leave()
    assert isinstance(mine.enter("a.example"), Place)


def test_delays_are_kept_and_the_longer_one_counts(tmp_path: Path) -> None:
    mine = budget(tmp_path, delay=0.3)
    assert isinstance(mine.enter("a.example"), Place)
    left = budget(tmp_path, delay=0.3).enter("a.example")  # another process would read the same file
    assert isinstance(left, float) and 0 < left < 0.31
    time.sleep(left + 0.01)
    assert isinstance(mine.enter("a.example"), Place)
    assert isinstance(mine.enter("slow.example"), Place)
    assert 25 < mine.enter("slow.example") < 30.1  # type: ignore[operator]


def test_a_host_that_asks_for_patience_gets_it(tmp_path: Path) -> None:
    mine = budget(tmp_path, free=("own.example",))
    mine.hold("a.example", 5.0, asked=False)
    mine.hold("a.example", 1.0, asked=True)  # a shorter wish does not undo a longer one
    assert 3 < mine.enter("a.example") < 5.1  # type: ignore[operator]
    mine.hold("own.example", 5.0, asked=False)
    assert mine.enter("own.example") == Place(-1)
    mine.hold("own.example", 5.0, asked=True)
    assert 3 < mine.enter("own.example") < 5.1  # type: ignore[operator]


def test_hosts_take_turns_and_nobody_is_hammered(tmp_path: Path) -> None:
    jobs = [("a.example", number) for number in range(6)] + [("b.example", 10), ("c.example", 20)]
    queue: HostQueue[int] = HostQueue(jobs, budget(tmp_path, 1, 0.1), 60, lambda job, left: None)
    moments: dict[str, list[float]] = {}
    order: list[int] = []

    def work() -> None:
        while taken := queue.take():
            host, job, place = taken
            moments.setdefault(host, []).append(time.time())
            order.append(job)
            time.sleep(0.02)
            place.leave()
            queue.done()

    threads = [threading.Thread(target=work) for _ in range(4)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(order) == [0, 1, 2, 3, 4, 5, 10, 20] and {10, 20} <= set(order[:4])
    assert moments["a.example"][-1] - moments["a.example"][0] > 0.4 and 0.5 <= time.monotonic() - begin < 10


def test_jobs_of_a_host_that_wants_too_much_patience_are_given_up(tmp_path: Path) -> None:
    given_up: list[tuple[int, float]] = []
    mine = budget(tmp_path)
    mine.hold("a.example", 1000.0, asked=True)
    jobs = [("a.example", 1), ("b.example", 2), ("a.example", 3)]
    queue: HostQueue[int] = HostQueue(jobs, mine, 10, lambda job, left: given_up.append((job, left)))
    taken = queue.take()
    assert taken is not None and taken[:2] == ("b.example", 2)
    queue.back("b.example", 2)
    again = queue.take()
    assert again is not None and again[1] == 2
    queue.done()
    assert queue.take() is None and [job for job, _ in given_up] == [1, 3] and given_up[0][1] > 900
