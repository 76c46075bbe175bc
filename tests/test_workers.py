"""data_tools.work.workers: results in order, one process or several, and no worker outlives its parent."""

import json
import multiprocessing
import multiprocessing.queues
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data_tools.work import workers
from data_tools.work.workers import WorkerDied, WorkerPool, begin_sample, runs_alone, worker_number
from leam_mm.errors import UserError


def prepare(offset):
    return [offset, os.getpid(), worker_number()]


def add(state, job):
    if job < 0:
        raise UserError(f"{job} is negative")
    time.sleep(0.02 if job == 0 else 0)
    return state[0] + job, os.getpid(), worker_number()


def die(state, job):
    os.kill(os.getpid(), signal.SIGKILL)


def add_one(state, job):
    return job + 1


def die_of_two(state, job):
    if job == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return job


def read(state, job):
    """Read samples 0 to 9; each that is listed in the job's file ends this process that many times."""
    rest, fates = Path(job), {}
    for sample in range(10):
        if not begin_sample(sample):
            fates[sample] = "fatal"
            continue
        deaths = json.loads(rest.read_text())
        if deaths.get(str(sample), 0) > 0:
            deaths[str(sample)] -= 1
            rest.write_text(json.dumps(deaths))
            os.kill(os.getpid(), signal.SIGKILL)
        fates[sample] = "alone" if runs_alone() else "read"
    return fates


def hang(state, job):
    Path(job).write_text(str(os.getpid()))
    time.sleep(600)


@pytest.mark.parametrize(("processes", "isolated"), [(1, False), (1, True), (2, False)])
@pytest.mark.parametrize("ahead", [None, 2])
def test_results_come_in_the_order_of_the_jobs(processes, isolated, ahead):
    before = set(multiprocessing.active_children())
    with WorkerPool(processes, prepare, 10, isolated=isolated) as pool:
        found = list(pool.run(add, range(6), ahead))
        found += pool.run(add, iter([6, 7]), ahead)
    assert [(job, result[0]) for job, result in found] == [(job, job + 10) for job in range(8)]
    assert (os.getpid() in {result[1] for _, result in found}) == (processes == 1 and not isolated)
    assert {result[2] for _, result in found} <= set(range(processes))
    assert set(multiprocessing.active_children()) == before


def test_a_worker_that_is_still_starting_ends_with_the_pool(tmp_path, monkeypatch):
    monkeypatch.setattr("data_tools.work.workers.LAST_SECONDS", 0.0)
    before = set(multiprocessing.active_children())
    with WorkerPool(3, prepare, 0) as pool:
        next(pool.run(add, [1], 1))
        pool._submit(hang, 1, tmp_path / "number")
        pool._submit(hang, 2, tmp_path / "number")
    assert set(multiprocessing.active_children()) == before


def test_an_error_ends_the_workers_at_once(tmp_path):
    before = set(multiprocessing.active_children())
    with pytest.raises(UserError, match="-1 is negative"), WorkerPool(2, prepare, 0) as pool:
        list(pool.run(add, [1, -1]))
        list(pool.run(hang, [tmp_path / "number"]))
    assert WorkerPool(1, state=[5]).run(add, [2]).__next__()[1][0] == 7
    end = time.monotonic() + 10
    while set(multiprocessing.active_children()) - before and time.monotonic() < end:
        time.sleep(0.05)
    assert set(multiprocessing.active_children()) == before


def test_the_end_of_the_executors_thread_is_reported(monkeypatch):
    def no_thread(queue):
        raise RuntimeError("can't start new thread")

    ended = []
    monkeypatch.setattr(threading, "excepthook", ended.append)
    monkeypatch.setattr("data_tools.work.workers.PATROL_SECONDS", 0.1)
    with WorkerPool(2, cure="buy memory") as pool:
        monkeypatch.setattr(multiprocessing.queues.Queue, "_start_thread", no_thread)
        with pytest.raises(UserError, match=r"thread that serves the worker processes ended .*: buy memory"):
            list(pool.run(add_one, [1, 2]))
    assert len(ended) == 1


def test_a_worker_that_dies_is_reported():
    with (
        pytest.raises(WorkerDied, match=r"a worker process died .*: buy memory"),
        WorkerPool(2, cure="buy memory") as pool,
    ):
        list(pool.run(die, [1, 2]))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_sample_that_ends_two_processes_is_left_out_and_all_others_are_read(tmp_path, processes):
    before = set(multiprocessing.active_children())
    jobs = []
    for number, deaths in enumerate(({}, {"3": 1}, {"4": 9, "8": 9}, {})):
        jobs.append(tmp_path / str(number))
        jobs[-1].write_text(json.dumps(deaths))
    with WorkerPool(processes, isolated=True) as pool:
        found = dict(pool.run(read, jobs, ahead=3))
        assert [result for _, result in pool.run(add_one, [1, 2])] == [2, 3]
    assert list(found) == jobs
    fatal = [[sample for sample, fate in found[job].items() if fate == "fatal"] for job in jobs]
    assert fatal == [[], [], [4, 8], []] and all(list(found[job]) == list(range(10)) for job in jobs)
    assert set(found[jobs[1]].values()) == {"alone"}
    # One death of sample 3 in the pool; of 4 in the pool and alone; of 8 alone, twice.
    assert json.loads(jobs[2].read_text()) == {"4": 7, "8": 7}
    assert set(multiprocessing.active_children()) <= before


def test_a_job_that_dies_outside_of_samples_gets_the_given_result():
    with WorkerPool(2) as pool:
        assert list(pool.run(die_of_two, [1, 2, 3], died=lambda job: -job)) == [(1, 1), (2, -2), (3, 3)]


def test_too_many_fatal_samples_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "FATAL_SAMPLES", 1)
    (tmp_path / "job").write_text(json.dumps({str(sample): 9 for sample in range(10)}))
    with pytest.raises(WorkerDied, match="the same command continues"), WorkerPool(1, isolated=True) as pool:
        list(pool.run(read, [tmp_path / "job"]))


def test_workers_end_with_a_parent_that_was_killed(tmp_path):
    program = (
        "from test_workers import *\n"
        "if __name__ == '__main__':\n"
        f"    with WorkerPool(2) as pool: list(pool.run(hang, [{str(tmp_path / 'a')!r}, {str(tmp_path / 'b')!r}]))\n"
    )
    (tmp_path / "program.py").write_text(program)
    paths = f"{Path(__file__).parent}{os.pathsep}{Path(__file__).parent.parent}"
    parent = subprocess.Popen([sys.executable, tmp_path / "program.py"], env=os.environ | {"PYTHONPATH": paths})
    end = time.monotonic() + 60
    while not all((tmp_path / name).is_file() and (tmp_path / name).read_text() for name in "ab"):
        assert time.monotonic() < end and parent.poll() is None
        time.sleep(0.1)
    numbers = [int((tmp_path / name).read_text()) for name in "ab"]
    parent.kill()
    parent.wait()
    while any(Path(f"/proc/{number}").exists() for number in numbers):
        assert time.monotonic() < end
        time.sleep(0.1)
