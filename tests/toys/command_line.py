"""Call our programs in this process."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from data_tools import encode_latents as program
from leam_mm.cli import LeamCLI, main
from toys.recipes import ROOT


def fit_here(recipe: dict[str, Any], folder: Path, *words: str) -> LeamCLI:
    """Train a recipe in this process."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return main(["fit", "--config", str(folder / "recipe.yaml"), *words])


CONFIGS = ROOT / "configs"


def printed_config(capsys: pytest.CaptureFixture[str], *files: Path) -> dict[str, Any]:
    """Return the config that --print_config prints for these files."""
    capsys.readouterr()
    words = [word for file in files for word in ("--config", str(file))]
    with pytest.raises(SystemExit) as caught:
        main(["fit", *words, "--print_config"])
    assert caught.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def encode_latents(shards: Path, checkpoints: dict[str, Path], output: Path, *more: str) -> str:
    given = {"shards": shards, "output": output, "batch-size": 7, **checkpoints}
    arguments = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    console = Console(file=io.StringIO(), width=200)
    program.encode_latents(program.parse([*arguments, *more]), console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def array_of(members: dict[str, bytes], name: str) -> np.ndarray:
    """An array member of a sample."""
    return np.load(io.BytesIO(members[name]), allow_pickle=False)
