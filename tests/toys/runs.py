"""Run train.py in processes of its own, kill it, and compare runs."""

import csv
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer

from leam_mm.callbacks.preemption import EXIT_CODE
from toys.recipes import ROOT

KILLER = """
    import os, signal
    from lightning.pytorch import Callback

    class Killer(Callback):
        def __init__(self, step: int, signal_number: int = 9) -> None:
            self.step, self.signal_number = step, signal_number

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == self.step:
                os.kill(os.getpid(), self.signal_number)
"""


RECORDER = """
    from lightning.pytorch import Callback

    class Recorder(Callback):
        '''Writes the keys of each batch, one file a rank.'''

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            with open(f"{trainer.default_root_dir}/keys.{trainer.global_rank}", "a") as file:
                file.write(" ".join(batch["key"]) + "\\n")
"""


class SignalAt(Callback):
    """Sends USR1 to this process after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGUSR1)


def run_training(recipe: dict, folder: Path, *words: str, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    """Run train.py in a process of its own that can import the callbacks of this module from ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, code in (("killer", KILLER), ("recorder", RECORDER)):
        (folder / f"{name}.py").write_text(textwrap.dedent(code))
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, str(ROOT / "train.py"), "fit", "--config", str(path), *words]
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)


def with_callbacks(recipe: dict, *callbacks: dict) -> dict:
    """The recipe with these callbacks in place of its own."""
    return {**recipe, "trainer": {**recipe["trainer"], "callbacks": list(callbacks)}}


def killer(step: int, number: int = 9) -> dict:
    """Section of the callback that sends a signal to its own process after a step."""
    return {"class_path": "killer.Killer", "init_args": {"step": step, "signal_number": int(number)}}


def with_kill(recipe: dict, step: int, number: int = 9) -> dict:
    """The recipe with a signal to its own process after a step."""
    return with_callbacks(recipe, killer(step, number))


def last_checkpoint(run: Path) -> dict:
    """Content of last.ckpt."""
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def step_losses(run: Path) -> list[tuple[str, str]]:
    """Step and training loss of each row of metrics.csv, as written."""
    with open(run / "metrics.csv") as file:
        return [(row["step"], row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def assert_equal(left: object, right: object, where: str) -> None:
    """Require equal trees of tensors, numbers and containers, bit for bit."""
    if isinstance(left, torch.Tensor):
        assert isinstance(right, torch.Tensor) and torch.equal(left, right), where
    elif isinstance(left, dict):
        assert isinstance(right, dict) and left.keys() == right.keys(), where
        for key in left:
            assert_equal(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where  # type: ignore[arg-type]
        for number, (a, b) in enumerate(zip(left, right, strict=True)):  # type: ignore[arg-type]
            assert_equal(a, b, f"{where}[{number}]")
    else:
        assert left == right, where


def assert_same_run(first: Path, second: Path) -> None:
    """Require equal weights, optimizer states, positions and losses, bit for bit."""
    one, two = last_checkpoint(first), last_checkpoint(second)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_equal(one[part], two[part], part)
    assert one["leam_mm"]["samples_seen"] == two["leam_mm"]["samples_seen"]
    assert step_losses(first) == step_losses(second)


def run_recorded(recipe: dict, *overlays: str, stop_at: int | None = None) -> Path:
    """Run train.py to its end, or to a USR1 after the given step, and record all keys; returns the run folder."""
    run = Path(recipe["trainer"]["default_root_dir"])
    stop = [] if stop_at is None else [killer(stop_at, signal.SIGUSR1)]
    words = [word for overlay in overlays for word in ("--config", str(ROOT / "configs" / overlay))]
    recorded = with_callbacks(recipe, {"class_path": "recorder.Recorder"}, *stop)
    done = run_training(recorded, run, *words, timeout=600)
    assert done.returncode == (EXIT_CODE if stop else 0), done.stderr
    return run


def seen_keys(run: Path) -> list[str]:
    """Keys of all samples in the order of the global batches, for any number of ranks."""
    files = [path.read_text().splitlines() for path in sorted(run.glob("keys.*"))]
    alone = len(files[0]) - min(map(len, files))  # lines of the first rank from before the other ranks joined
    together = zip(*[lines[alone:] if rank == 0 else lines for rank, lines in enumerate(files)], strict=True)
    return " ".join(files[0][:alone] + [" ".join(parts) for parts in together]).split()


def loss_curve(run: Path) -> list[float]:
    """Training losses of all steps."""
    return [float(loss) for _, loss in step_losses(run)]


def assert_same_training(one: Path, two: Path) -> None:
    """Require the same samples in the same order, and losses and weights that agree to rounding."""
    assert seen_keys(one) == seen_keys(two)
    assert_close_runs(one, two)
    assert last_checkpoint(one)["leam_mm"]["samples_seen"] == len(seen_keys(one))


def assert_close_runs(one: Path, two: Path) -> None:
    """Require losses and weights that agree to rounding."""
    assert loss_curve(two) == pytest.approx(loss_curve(one), rel=1e-5)
    first, second = last_checkpoint(one), last_checkpoint(two)
    assert first["global_step"] == second["global_step"] == len(loss_curve(one))
    assert first["leam_mm"]["samples_seen"] == second["leam_mm"]["samples_seen"]
    for name, value in first["state_dict"].items():
        torch.testing.assert_close(second["state_dict"][name], value, rtol=1e-4, atol=1e-5, msg=name)


WITHOUT_US = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("leam_mm", "data_tools"):
            raise ImportError(f"{name} must not be needed")
sys.meta_path.insert(0, Blocker())

import socket
def refused(*_, **__):
    raise OSError("this process has no network")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refused
"""


def run_without_us(code: str, folder: Path, *paths: str) -> str:
    """Run code in the given folder, in a process that has no network, an empty cache, and cannot import our package.

    Args:
        code: Python code.
        folder: The current directory of the process.
        paths: Folders of packages that come before the installed ones.
    """
    extras = find_spec("sentence_transformers")  # may lie outside the environment
    place = str(Path(str(extras.origin)).parents[1]) if extras is not None else ""
    # The environment's own folder stays behind the standard library: a package in it is named like a module of that.
    folders = [*paths, *([place] if place and place != sysconfig.get_paths()["purelib"] else [])]
    command = [sys.executable, "-c", WITHOUT_US + code]
    with tempfile.TemporaryDirectory() as cache:
        changes = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": cache, "PYTHONPATH": ":".join(folders)}
        done = subprocess.run(
            command, cwd=folder, env=os.environ | changes, capture_output=True, text=True, timeout=240
        )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
