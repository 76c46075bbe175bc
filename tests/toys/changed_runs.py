"""A finished toy run that tests resume with another recipe, and the learning rates of its steps."""

import csv
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from leam_mm.callbacks import learning_rates
from leam_mm.checkpoint import read_checkpoint
from toys.command_line import fit_here
from toys.recipes import clip_recipe
from toys.runs import with_callbacks

LR = "model.init_args.optimizer.init_args.lr"
SEEN, BATCH = 48, 8  # of the first run


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, toy_shards: Path, toy_tokenizer: Path) -> Path:
    """Folder of a finished run over 48 samples, cosine to 0 with 2 steps of warm-up."""
    folder = tmp_path_factory.mktemp("begun")
    fit_here(clip_recipe(folder / "run", toy_shards, toy_tokenizer, max_samples=SEEN), folder)
    return folder / "run"


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(begun, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def recipe(run: Path, toy_shards: Path, toy_tokenizer: Path) -> dict[str, Any]:
    return clip_recipe(run, toy_shards, toy_tokenizer, max_samples=SEEN)


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> dict[Path, dict[int, float]]:
    """Run folder -> step -> highest rate; Lightning rounds what it logs to 32 bits."""
    found: dict[Path, dict[int, float]] = {}
    original = learning_rates.rates

    def record(trainer: Any) -> dict[str, float]:
        values = original(trainer)
        found.setdefault(Path(trainer.default_root_dir), {})[trainer.global_step] = max(values.values())
        return values

    monkeypatch.setattr(learning_rates, "rates", record)
    monkeypatch.setattr(f"{__name__}.EXACT", found)
    return found


EXACT: dict[Path, dict[int, float]] = {}


def used(run: Path) -> dict[int, float]:
    """Step -> learning rate of the steps of this test, which the log has with 32 bits."""
    assert {step: logged(run)[step] for step in EXACT[run]} == pytest.approx(EXACT[run], rel=1e-6)
    return EXACT[run]


def logged(run: Path, name: str = "lr") -> dict[int, float]:
    """Step -> value of a metric."""
    with open(run / "metrics.csv") as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


def stop(recipe: dict[str, Any], step: int, folder: Path, *words: str) -> None:
    """Start a run and stop it after a step, as a scheduler does."""
    with pytest.raises(SystemExit):
        fit_here(
            with_callbacks(recipe, {"class_path": "toys.runs.SignalAt", "init_args": {"step": step}}), folder, *words
        )


def evidence(run: Path) -> dict[str, Any]:
    return read_checkpoint(run)["leam_mm"]


def cosine(samples: int, total: int, full: float = 0.003, warmup: int = 2 * BATCH) -> float:
    return full * (0.5 + 0.5 * math.cos(math.pi * (samples - warmup) / (total - warmup)))
