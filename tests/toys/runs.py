"""Run train.py in processes of its own, kill it, and compare runs."""

import csv
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import yaml

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


def run_training(recipe: dict, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run train.py in a process of its own, with tests' callbacks importable."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "killer.py").write_text(textwrap.dedent(KILLER))
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, str(ROOT / "train.py"), "fit", "--config", str(path), *overrides]
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


def with_kill(recipe: dict, step: int, number: int = 9) -> dict:
    trainer = {
        **recipe["trainer"],
        "callbacks": [{"class_path": "killer.Killer", "init_args": {"step": step, "signal_number": int(number)}}],
    }
    return {**recipe, "trainer": trainer}


def last_checkpoint(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def step_losses(run: Path) -> list[tuple[str, str]]:
    with open(run / "metrics.csv") as file:
        return [(row["step"], row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def assert_equal(left: object, right: object, where: str) -> None:
    """Bit-equal trees of tensors, numbers and containers."""
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
    one, two = last_checkpoint(first), last_checkpoint(second)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_equal(one[part], two[part], part)
    assert one["leam_mm"]["samples_seen"] == two["leam_mm"]["samples_seen"]
    assert step_losses(first) == step_losses(second)


RECORDER = """
    from lightning.pytorch import Callback

    class Recorder(Callback):
        '''Writes the keys of each batch, one file a rank.'''

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            with open(f"{trainer.default_root_dir}/keys.{trainer.global_rank}", "a") as file:
                file.write(" ".join(batch["key"]) + "\\n")
"""


def run_recorded(recipe: dict, *overlays: str, stop_at: int | None = None) -> Path:
    """Run train.py to its end, or to a USR1 during the given step, with the Recorder; returns the run folder."""
    run = Path(recipe["trainer"]["default_root_dir"])
    run.mkdir(exist_ok=True)
    (run / "recorder.py").write_text(textwrap.dedent(RECORDER))
    (run / "killer.py").write_text(textwrap.dedent(KILLER))
    callbacks: list[dict] = [{"class_path": "recorder.Recorder"}]
    if stop_at is not None:
        arguments = {"step": stop_at, "signal_number": int(signal.SIGUSR1)}
        callbacks.append({"class_path": "killer.Killer", "init_args": arguments})
    (run / "recipe.yaml").write_text(
        yaml.safe_dump({**recipe, "trainer": {**recipe["trainer"], "callbacks": callbacks}})
    )
    command = [sys.executable, str(ROOT / "train.py"), "fit", "--config", str(run / "recipe.yaml")]
    for overlay in overlays:
        command += ["--config", str(ROOT / "configs" / overlay)]
    environment = {**os.environ, "PYTHONPATH": f"{run}:{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == (0 if stop_at is None else EXIT_CODE), done.stderr
    return run


def seen_keys(run: Path) -> list[str]:
    """All samples in the order of the global batches, whatever the number of ranks that wrote a line."""
    files = [path.read_text().splitlines() for path in sorted(run.glob("keys.*"))]
    alone = len(files[0]) - min(map(len, files))  # lines of the first rank from before the others joined
    together = zip(*[lines[alone:] if rank == 0 else lines for rank, lines in enumerate(files)], strict=True)
    return " ".join(files[0][:alone] + [" ".join(parts) for parts in together]).split()


def loss_curve(run: Path) -> list[float]:
    return [float(loss) for _, loss in step_losses(run)]


def assert_same_training(one: Path, two: Path) -> None:
    """Same samples in the same order, and losses and weights that agree to rounding."""
    assert seen_keys(one) == seen_keys(two)
    assert loss_curve(two) == pytest.approx(loss_curve(one), rel=1e-5)
    first, second = last_checkpoint(one), last_checkpoint(two)
    assert first["global_step"] == second["global_step"] == len(loss_curve(one))
    assert first["leam_mm"]["samples_seen"] == second["leam_mm"]["samples_seen"] == len(seen_keys(one))
    for name, value in first["state_dict"].items():
        torch.testing.assert_close(second["state_dict"][name], value, rtol=1e-4, atol=1e-5, msg=name)


WITHOUT_US = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("leam_mm", "data_tools"):
            raise ImportError(f"{name} must not be needed")
sys.meta_path.insert(0, Blocker())
"""


def run_without_us(code: str, folder: Path) -> str:
    """Run code in a process that cannot import our package, offline, in the given folder."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WITHOUT_US + code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
