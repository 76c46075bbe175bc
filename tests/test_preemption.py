"""TERM and USR1: one save at a step boundary, then exit code 75, on every rank even if only one was told."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import yaml
from toys.recipes import ROOT, clip_recipe
from toys.runs import assert_same_run, last_checkpoint

from leam_mm.callbacks.preemption import EXIT_CODE, INTERRUPTED, Preemption

PROBE = """
    import os
    from lightning.pytorch import Callback

    class Probe(Callback):
        '''Sends a signal to one rank after a step, and writes down each save.'''

        def __init__(self, step: int, number: int, rank: int) -> None:
            self.step, self.number, self.rank = step, number, rank

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == self.step and trainer.global_rank == self.rank:
                os.kill(os.getpid(), self.number)

        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            with open(f"{trainer.default_root_dir}/saves.{trainer.global_rank}", "a") as file:
                file.write(f"{trainer.global_step}\\n")
"""


def probed(run: Path, shards: Path, tokenizer: Path, number: int, rank: int) -> list[str]:
    """A run of 8 steps whose given rank gets the signal in the third; the command that starts it."""
    recipe = clip_recipe(run, shards, tokenizer)
    recipe["checkpoint"] = {"every_n_train_steps": 1000}
    probe = {"class_path": "probe.Probe", "init_args": {"step": 3, "number": int(number), "rank": rank}}
    recipe["trainer"]["callbacks"] = [probe]
    run.mkdir()
    (run / "probe.py").write_text(textwrap.dedent(PROBE))
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return [sys.executable, str(ROOT / "train.py"), "fit", "--config", str(run / "recipe.yaml")]


def start(command: list[str], run: Path, **more: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{run}:{ROOT}", "OMP_NUM_THREADS": "1", **more}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str], seconds: float = 600) -> int:
    """Exit code of a process; one that hangs is killed and fails the test with what it said."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"hangs: {process.communicate()[0]}") from None
    print(output)
    return process.returncode


def saves(run: Path, ranks: int) -> list[list[int]]:
    return [[int(step) for step in (run / f"saves.{rank}").read_text().split()] for rank in range(ranks)]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, EXIT_CODE), (signal.SIGHUP, EXIT_CODE), (signal.SIGINT, INTERRUPTED)]
)
def test_a_signal_saves_once_and_ends_with_its_code(
    number: int, code: int, tmp_path: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    run = tmp_path / "run"
    process = start(probed(run, toy_shards, toy_tokenizer, number, rank=0), run)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output
    assert "Traceback" not in output and f"exiting with code {code}; the same command resumes" in output
    assert saves(run, 1) == [[last_checkpoint(run)["global_step"]]]
    assert last_checkpoint(run)["global_step"] in (3, 4)


def test_a_signal_during_the_imports_ends_the_run_before_its_first_step_with_the_code_of_a_requeue(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    run = tmp_path / "run"
    command = probed(run, toy_shards, toy_tokenizer, signal.SIGTERM, rank=9)
    with open(run / "probe.py", "a") as file:  # the first file of the recipe that the process imports
        file.write(f"\nos.kill(os.getpid(), {int(signal.SIGTERM)})\n")
    output, _ = (process := start(command, run)).communicate(timeout=600)
    assert process.returncode == EXIT_CODE, output
    assert "signal received before the first step" in output and not (run / "metrics.csv").exists()


def test_a_second_interrupt_ends_at_once_and_nohup_is_respected() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    preemption = Preemption()
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        preemption._install(signal.SIGHUP, signal.SIGINT)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGINT)
        assert preemption.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signal_to_the_whole_process_group_spares_the_loader_workers(
    number: int, tmp_path: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    # Schedulers do this; a worker that dies of it makes torch raise in the trainer, and nothing would be saved.
    run = tmp_path / "run"
    command = probed(run, toy_shards, toy_tokenizer, number, rank=9)
    more = ["--data.init_args.loading.workers=2", "--max_samples=100000", "--trainer.log_every_n_steps=1"]
    environment = {**os.environ, "PYTHONPATH": f"{run}:{ROOT}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, *more], env=environment, start_new_session=True)
    log = run / "metrics.csv"
    for _ in range(1200):
        if log.exists() and len(log.read_text().splitlines()) > 3:
            break
        time.sleep(0.1)
    os.killpg(process.pid, number)
    assert process.wait(timeout=120) == (INTERRUPTED if number == signal.SIGINT else EXIT_CODE)
    assert last_checkpoint(run)["global_step"] >= 3


def test_program_that_leaves_its_loader_open_still_ends(toy_shards: Path) -> None:
    # At its end a program tells its workers to go by TERM and waits for them.
    code = """
import sys
from pathlib import Path
from leam_mm.data.image_decoding import ImageDecoding
from leam_mm.data.pairs_module import PairsModule
from leam_mm.data.plan_datamodule import Loading
made = PairsModule(Path(sys.argv[1]), ImageDecoding(16), 8, loading=Loading(1))
made.setup("fit")
batches = iter(made.train_dataloader())
next(batches)
sys.modules["kept"] = batches
"""
    subprocess.run([sys.executable, "-c", code, str(toy_shards)], cwd=ROOT, check=True, timeout=120)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_to_one_rank_makes_both_save_once_and_leave(
    number: int, tmp_path: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    run = tmp_path / "run"
    command = probed(run, toy_shards, toy_tokenizer, number, rank=1)
    command += ["--config", str(ROOT / "configs" / "overlay_two_ranks.yaml")]
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    # LOCAL_RANK tells Lightning that somebody else starts the ranks, so that both exit codes can be seen here.
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    processes = [start(command, run, LOCAL_RANK=str(rank), **place) for rank in range(2)]
    assert [finish(process) for process in processes] == [EXIT_CODE] * 2
    step = last_checkpoint(run)["global_step"]
    assert step in (3, 4)
    assert saves(run, 2) == [[step]] * 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ranks_that_lightning_started_leave_with_the_first(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    # Lightning's observer kills the first rank when another one leaves with a code other than 0.
    overlay = ["--config", str(ROOT / "configs" / "overlay_two_ranks.yaml")]
    run = tmp_path / "run"
    assert finish(start([*probed(run, toy_shards, toy_tokenizer, signal.SIGUSR1, rank=1), *overlay], run)) == EXIT_CODE
    assert finish(start([*probed_again(run), *overlay], run)) == 0
    whole = probed(tmp_path / "whole", toy_shards, toy_tokenizer, signal.SIGUSR1, rank=9)
    assert finish(start([*whole, *overlay], run)) == 0
    assert_same_run(tmp_path / "whole", run)


def probed_again(run: Path) -> list[str]:
    """The same run without a signal."""
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["trainer"]["callbacks"][0]["init_args"]["rank"] = 9
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return [sys.executable, str(ROOT / "train.py"), "fit", "--config", str(run / "recipe.yaml")]
