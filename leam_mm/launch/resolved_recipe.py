"""A recipe with its overlays and overrides, as train.py reads it, and what it reads from disk."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from leam_mm.errors import UserError
from leam_mm.launch.job import ROOT

PATIENCE = 600  # seconds for the imports of torch on a slow file system
WRITTEN = ("default_root_dir", "dirpath", "save_dir", "cache", "folder")  # keys of paths that a run makes


@dataclass(frozen=True)
class ResolvedRecipe:
    """All settings of a run.

    Args:
        settings: The settings, defaults included.
        directory: Folder that relative paths are relative to.
    """

    settings: dict[str, Any]
    directory: Path
    run: Path = field(init=False)

    def __post_init__(self) -> None:
        """Find the run folder."""
        run = self.at("trainer.default_root_dir")
        if not run:
            raise UserError("the recipe names no run folder: set trainer.default_root_dir, or give --run FOLDER")
        object.__setattr__(self, "run", (self.directory / str(run)).resolve())

    def at(self, key: str) -> Any:
        """Return the value of a dotted key, None if there is none."""
        found: Any = self.settings
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return found

    @property
    def batch_size(self) -> int | None:
        """Samples of an optimizer step, over all ranks."""
        return self.at("data.init_args.batch_size")

    def shard_folders(self) -> list[tuple[str, str]]:
        """Return key and path, or URL, of each shard folder of training and validation."""
        found = []
        for name in ("train", "validation"):
            value = self.at(f"data.init_args.{name}")
            for entry in value if isinstance(value, list) else [value]:
                path = entry.get("path") if isinstance(entry, dict) else entry
                if path:
                    found.append((f"data.init_args.{name}", str(path)))
        return found

    def inputs(self) -> Iterator[tuple[str, str]]:
        """Yield key and text of every setting that looks like a path or the name of published weights."""
        for section in ("model", "data", "trainer"):
            yield from _strings(self.settings.get(section), section)


def _strings(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name != "class_path" and name not in WRITTEN:
                yield from _strings(inner, f"{key}.{name}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _strings(inner, f"{key}.{number}")
    elif isinstance(value, str) and " " not in value and ("/" in value or ":" in value):
        yield key, value


def train_words(recipe: str, more: Sequence[str], run: str | None, slurm: bool = True) -> tuple[str, ...]:
    """Return the words after the interpreter that train a recipe.

    Args:
        recipe: Path of the recipe.
        more: Overlays and overrides of train.py.
        run: Run folder in place of the recipe's, or None.
        slurm: Add the overlay for jobs of Slurm.
    """
    overlay = ("--config", str(ROOT / "configs" / "overlay_slurm.yaml")) if slurm else ()
    folder = ("--trainer.default_root_dir", run) if run is not None else ()
    return (str(ROOT / "train.py"), "fit", "--config", recipe, *overlay, *more, *folder)


def resolve(recipe: str, more: Sequence[str], run: str | None, directory: Path) -> ResolvedRecipe:
    """Read a recipe by train.py's own parser, which checks it, too.

    Raises:
        UserError: train.py refuses it; the line is train.py's.
    """
    words = [sys.executable, *train_words(recipe, more, run, slurm=False), "--print_config"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    try:
        done = subprocess.run(
            words, cwd=directory, env=environment, capture_output=True, text=True, timeout=PATIENCE
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(f"train.py did not read {recipe} in {PATIENCE} s: see whether the file system hangs") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1].removeprefix("error: ")
        raise UserError(f"train.py refuses {recipe}: {last}")
    return ResolvedRecipe(yaml.safe_load(done.stdout), directory)
