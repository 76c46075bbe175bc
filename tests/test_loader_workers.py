"""leam_mm.data.loader_workers: a killed worker changes nothing, and no worker outlives its trainer."""

import csv
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from torch.utils.data._utils import signal_handling
from toys.recipes import ROOT, clip_recipe
from toys.runs import assert_same_run

from leam_mm import cli
from leam_mm.data.loader_workers import DEATHS, FromPosition, RestartingLoader, begin_worker
from leam_mm.errors import UserError

LARGE = """
import sys, time, torch
from leam_mm.data.loader_workers import FromPosition, RestartingLoader, begin_worker

class Large:
    def __getitem__(self, number):
        return "x" * 1_000_000  # more than a pipe holds: the worker waits to hand it over

batches = iter(RestartingLoader(
    Large(), batch_size=None, sampler=FromPosition(0, 1000), num_workers=2, worker_init_fn=begin_worker
))
next(batches)
print("reading", flush=True)
time.sleep(60)
"""


class Numbers:
    """Batch n is the number n; a worker that loads ``fatal`` kills itself, once or always."""

    def __init__(self, fatal: int | None = None, marker: Path | None = None) -> None:
        self.fatal, self.marker = fatal, marker

    def __getitem__(self, number: int) -> torch.Tensor:
        if number == self.fatal and not (self.marker and self.marker.exists()):
            if self.marker:
                self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor(number)


def loader(numbers: Numbers) -> RestartingLoader:
    settings = {"batch_size": None, "num_workers": 2, "prefetch_factor": 2, "worker_init_fn": begin_worker}
    return RestartingLoader(numbers, sampler=FromPosition(3, 20), **settings)  # type: ignore[arg-type]


def test_batches_go_on_after_a_death(tmp_path: Path) -> None:
    made = loader(Numbers(9, tmp_path / "marker"))
    torch.manual_seed(1)
    assert [int(batch) for batch in made] == list(range(3, 20))
    after = torch.rand(1)
    torch.manual_seed(1)
    assert [int(batch) for batch in made] == list(range(3, 20))  # from the same position
    assert torch.equal(after, torch.rand(1))  # a restart draws nothing from the generator of the run


def test_a_worker_may_die_before_the_first_batch_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)  # as in a process without workers until now
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        batches = iter(loader(Numbers()))
        multiprocessing.active_children()[0].kill()
        time.sleep(0.3)  # the signal arrives outside of next()
        assert [int(batch) for batch in batches] == list(range(3, 20))
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_pass_that_is_left_open_does_not_move_the_next_one(tmp_path: Path) -> None:
    made = loader(Numbers(5, tmp_path / "marker"))
    left = iter(made)  # as Lightning leaves that of a validation, until the next one has begun
    assert [int(next(left)) for _ in range(4)] == [3, 4, 5, 6]  # with a restart at 5
    assert [int(batch) for batch in made] == list(range(3, 20))
    assert int(next(left)) == 7


def test_each_validation_sees_all_samples(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    found = []
    for workers in (0, 1):
        run = tmp_path / str(workers)
        recipe = clip_recipe(run, toy_shards, toy_tokenizer)
        recipe["trainer"] |= {"val_check_interval": 2, "check_val_every_n_epoch": None, "num_sanity_val_steps": 1}
        recipe["trainer"]["limit_val_batches"] = 1.0
        recipe["data"]["init_args"] |= {"validation": str(toy_shards), "loading": {"workers": workers}}
        path = tmp_path / f"{workers}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        cli.main(["fit", "--config", str(path)])
        with open(run / "metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        found.append({row["step"]: row["val/loss"] for row in rows if row["val/loss"]})
    assert found[0] == found[1] and len(found[0]) >= 3


def test_deaths_at_the_same_batch_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"were killed {DEATHS} times at the same batch .*loading.workers"):
        list(loader(Numbers(9)))


def test_death_in_a_step_is_not_raised_there() -> None:
    seen = []
    for batch in loader(Numbers()):
        seen.append(int(batch))
        if int(batch) == 7:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)  # type: ignore[arg-type]
            time.sleep(0.3)  # the signal of their death arrives here
    assert seen == list(range(3, 20))


def test_training_goes_on_bit_for_bit(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill_workers(self: object, *_: object) -> None:
        for worker in multiprocessing.active_children():
            worker.kill()

    from leam_mm.callbacks.preemption import Preemption

    for name, workers in (("whole", 1), ("killed", 1)):
        recipe = clip_recipe(tmp_path / name, toy_shards, toy_tokenizer, workers=workers)
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        if name == "killed":
            monkeypatch.setattr(Preemption, "on_before_optimizer_step", kill_workers, raising=False)
        cli.main(["fit", "--config", str(tmp_path / "recipe.yaml")])
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_workers_end_with_a_killed_trainer() -> None:
    process = subprocess.Popen([sys.executable, "-c", LARGE], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "reading\n"
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    time.sleep(0.5)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=3)
    for worker in alive:
        worker.kill()
    assert not alive
