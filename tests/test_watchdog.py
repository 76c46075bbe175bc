"""A rank that is killed, stopped or stuck ends all ranks in a stated time, with code 76, its number and its host."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from toys.recipes import ROOT, clip_recipe
from toys.runs import assert_same_run, last_checkpoint

from leam_mm.callbacks.emergency_exit import EXIT_CODE
from leam_mm.callbacks.watchdog import Watchdog, is_planned_end

LIMIT = 10.0
FAULTY = """
    import os, signal, time
    from lightning.pytorch import Callback

    class Faulty(Callback):
        '''Does something to one rank after a step, and writes down when.'''

        def __init__(self, fault: str, rank: int, step: int = 3) -> None:
            self.fault, self.rank, self.step = fault, rank, step

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step != self.step or trainer.global_rank != self.rank:
                return
            with open(f"{trainer.default_root_dir}/fault", "w") as file:
                file.write(str(time.time()))
            if self.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.fault == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif self.fault == "error":
                raise ValueError("a fault of this rank")
            elif self.fault == "exit":
                raise SystemExit(3)
            else:
                time.sleep(float(self.fault))
"""


def recipe(run: Path, shards: Path, tokenizer: Path, fault: str = "", rank: int = 0) -> Path:
    """A toy run of two ranks and 8 steps with a fault in the fourth; the file of its recipe."""
    made = clip_recipe(run, shards, tokenizer)
    made["trainer"] |= {"strategy": "ddp", "devices": 2}
    made["watchdog"] = {"limit": LIMIT, "pause": 60, "join": 120}
    if fault:
        made["trainer"]["callbacks"] = [{"class_path": "faulty.Faulty", "init_args": {"fault": fault, "rank": rank}}]
    run.mkdir(exist_ok=True)
    (run / "faulty.py").write_text(textwrap.dedent(FAULTY))
    path = run / "recipe.yaml"
    path.write_text(yaml.safe_dump(made))
    return path


def start(path: Path, **more: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": f"{path.parent}:{ROOT}", "OMP_NUM_THREADS": "1", **more}
    command = [sys.executable, str(ROOT / "train.py"), "fit", "--config", str(path)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit code and the last lines of stderr; a process that hangs fails the test."""
    try:
        _, errors = process.communicate(timeout=500)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"hangs: {process.communicate()}") from None
    print(errors)
    return process.returncode, errors


def since_fault(run: Path) -> float:
    return time.time() - float((run / "fault").read_text())


def orphans(run: Path) -> list[int]:
    """Processes that still work in a run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(run).encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, toy_shards: Path, toy_tokenizer: Path) -> Path:
    """An unbroken run."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert finish(start(recipe(run, toy_shards, toy_tokenizer)))[0] == 0
    return run


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("fault", ["kill", "stop", "1000"])
def test_ranks_started_by_lightning_end_together_and_the_next_run_is_bit_equal(
    fault: str, rank: int, tmp_path: Path, toy_shards: Path, toy_tokenizer: Path, whole: Path
) -> None:
    run = tmp_path / "run"
    process = start(recipe(run, toy_shards, toy_tokenizer, fault, rank))
    code, errors = finish(process)
    seconds = since_fault(run)
    assert code == (EXIT_CODE if (rank, fault) not in ((0, "kill"), (0, "stop")) else -signal.SIGKILL)
    named = f"error: rank {rank} on host {socket.gethostname()} "
    lines = [line for line in errors.splitlines() if "error:" in line]
    assert len(lines) == 1 and lines[0].startswith(named), errors
    assert "Traceback" not in errors
    assert seconds < (15 if fault == "kill" else LIMIT + 15)
    limit = time.monotonic() + 10
    while orphans(run) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not orphans(run)
    alive = [rank] if fault == "1000" else []
    for number in [1 - rank, *alive]:
        stacks = (run / "watchdog" / f"rank-{number}.txt").read_text()
        assert named.removeprefix("error: ") in stacks and "Thread" in stacks
    if alive:
        assert "faulty.py" in stacks
    if rank == 1:
        assert finish(start(recipe(run, toy_shards, toy_tokenizer)))[0] == 0
        assert last_checkpoint(run)["global_step"] == 8
        assert_same_run(whole, run)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_slow_step_is_no_fault(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path, whole: Path) -> None:
    run = tmp_path / "run"
    code, errors = finish(start(recipe(run, toy_shards, toy_tokenizer, str(0.6 * LIMIT), 1)))
    assert code == 0, errors
    assert not (run / "watchdog").exists()
    assert_same_run(whole, run)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_rank_ends_the_others_with_its_message(
    rank: int, tmp_path: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    run = tmp_path / "run"
    code, errors = finish(start(recipe(run, toy_shards, toy_tokenizer, "error", rank)))
    assert code == 1
    assert errors.count("ValueError: a fault of this rank\n") == 1  # its own traceback
    assert f"error: rank {rank} on host {socket.gethostname()} failed: ValueError: a fault of this rank" in errors
    assert since_fault(run) < 60 and not orphans(run)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("rank", "code"), [(0, 3), (1, 1)])
def test_a_rank_that_exits_is_named_and_ends_the_others(
    rank: int, code: int, tmp_path: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    run = tmp_path / "run"
    found, errors = finish(start(recipe(run, toy_shards, toy_tokenizer, "exit", rank)))
    assert found == code
    lines = [line for line in errors.splitlines() if "error:" in line]
    assert len(lines) == 1 and f"rank {rank} on host {socket.gethostname()} failed: something in it called" in lines[0]
    assert "sys.exit(3)" in lines[0] and not orphans(run)


@pytest.mark.parametrize(
    ("exception", "planned"),
    [(SystemExit(75), True), (SystemExit(130), True), (KeyboardInterrupt(), True), (SystemExit(3), False)],
)
def test_only_ends_after_a_save_and_interrupts_are_planned(exception: BaseException, planned: bool) -> None:
    assert is_planned_end(exception) == planned
    assert not is_planned_end(SystemExit(0))  # one rank alone would leave the others waiting


def test_a_run_ends_after_the_ranks_that_it_started() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"])
    launcher = SimpleNamespace(procs=[child])
    trainer: Any = SimpleNamespace(world_size=2, global_rank=0, strategy=SimpleNamespace(launcher=launcher))
    with Watchdog(limit=LIMIT).meeting(trainer):
        assert child.poll() is None
    assert child.returncode == 0  # only the CPU time of children that were waited for counts as a stage's
