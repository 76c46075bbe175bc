"""Checkpoints that rebuild themselves: the resolved config is inside, and weights_only loading suffices."""

import os
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from leam_mm.config_error import innermost
from leam_mm.errors import UserError
from leam_mm.files import file_sha256

EVIDENCE = "leam_mm"  # the checkpoint's entry with config, data and versions
# While a module is rebuilt: the evidence of its checkpoint. Its weights come from there too, and files that training
# started from are not needed.
REBUILDING: ContextVar[dict[str, Any] | None] = ContextVar("REBUILDING", default=None)
Module = TypeVar("Module", bound=LightningModule)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it, so that a kill leaves the old one whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write to ``path.tmp``, flush to the disk, rename."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(target.name + ".tmp")
        with open(temporary, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Load to the CPU and never unpickle code, whatever the trainer asks for: the file may be a stranger's."""
        return read_checkpoint(path)


class RunCheckpoint(ModelCheckpoint):
    """One file per run, ``checkpoints/last.ckpt``, replaced every few steps and written once more at the end.

    Args:
        every_n_train_steps: Optimizer steps between two checkpoints.
        dirpath: Folder; None takes ``checkpoints`` in the run folder.
    """

    def __init__(self, every_n_train_steps: int = 1000, dirpath: str | None = None) -> None:
        """See the class for the arguments."""
        super().__init__(
            dirpath=dirpath,
            filename="last",
            every_n_train_steps=every_n_train_steps,
            save_top_k=1,
            enable_version_counter=False,
            auto_insert_metric_name=False,
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the last steps too, when their number is no multiple of the interval."""
        super().on_train_end(trainer, pl_module)
        if self._last_global_step_saved != trainer.global_step:
            trainer.save_checkpoint(f"{self.dirpath}/last.ckpt")
            self._last_global_step_saved = trainer.global_step


def find_checkpoint(path: Path | str) -> Path:
    """A checkpoint file from its own path or from a run folder that holds ``checkpoints/last.ckpt``."""
    path = Path(path)
    for candidate in (path, path / "checkpoints" / "last.ckpt", path / "last.ckpt"):
        if candidate.is_file():
            return candidate
    raise UserError(f"no checkpoint at {path}: give a .ckpt file or a run folder with checkpoints/last.ckpt")


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Load a checkpoint without unpickling code; damage and foreign files are one-line errors."""
    file = find_checkpoint(path)
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for damaged, foreign or hostile files
        reason = str(error).split("\n", 1)[0][:200]
        raise UserError(f"{file} cannot be read as a checkpoint ({reason}); use an intact file of train.py") from None
    if not isinstance(checkpoint, dict) or EVIDENCE not in checkpoint:
        raise UserError(
            f"{file} was not written by train.py: its config is missing, so no model can be rebuilt from it"
        )
    return checkpoint


def checkpoint_config(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The resolved config that the checkpoint was trained with."""
    return yaml.safe_load(checkpoint[EVIDENCE]["config"])


def refuse_other_weights(checkpoint: dict[str, Any], origin: dict[str, Any]) -> None:
    """Refuse to go on from a checkpoint that did not start from these trained weights.

    Args:
        checkpoint: Its evidence names what it started from under ``pretrained``, where it did from something.
        origin: What is named now, with its sha256; empty where nothing is.
    """
    before, now = (where.get("sha256") for where in (checkpoint.get(EVIDENCE, {}).get("pretrained", {}), origin))
    if before != now:
        raise UserError(
            f"the checkpoint was trained from other weights (sha256 {str(before)[:12]}) than are named now "
            f"({str(now)[:12]}): name the old ones, or start a new run folder"
        )


def build_module(section: dict[str, Any]) -> LightningModule:
    """Build a module from the ``model:`` section of a config."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model", required=True)
    return parser.instantiate_classes(parser.parse_object({"model": section})).model


def load_module(path: Path | str, expected: type[Module] = LightningModule) -> Module:  # type: ignore[assignment]
    """Rebuild a trained module from its checkpoint alone.

    Args:
        path: A .ckpt file or a run folder.
        expected: The class it must be.

    Returns:
        The module in eval mode on the CPU, with a ``checkpoint_evidence`` dict (path, sha256, samples_seen, data).

    Raises:
        UserError: Damaged file, other model, or weights that do not fit the config inside.
    """
    file = find_checkpoint(path)
    checkpoint = read_checkpoint(file)
    rebuilding = REBUILDING.set(checkpoint[EVIDENCE])
    try:
        module = build_module(checkpoint_config(checkpoint)["model"])
    except Exception as error:  # jsonargparse and the constructors raise many kinds; the person needs the reason
        reason = innermost(str(error))
        raise UserError(f"{file}: the model of its config cannot be rebuilt here ({reason})") from None
    finally:
        REBUILDING.reset(rebuilding)
    if not isinstance(module, expected):
        raise UserError(
            f"{file} holds a {type(module).__name__}, but a {expected.__name__} is needed here: "
            "give the checkpoint of that training"
        )
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[-1][:200]
        raise UserError(f"{file}: weights and config inside do not fit ({reason}); the file was edited") from None
    evidence = {
        "path": str(file),
        "sha256": file_sha256(file),
        **{name: value for name, value in checkpoint[EVIDENCE].items() if name != "config"},
    }
    setattr(module, "checkpoint_evidence", evidence)  # noqa: B010 (an attribute torch's Module does not declare)
    return module.eval()
