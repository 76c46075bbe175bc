"""Checkpoints that rebuild themselves: the resolved config is inside, and weights_only loading suffices."""

import inspect
import logging
import os
import re
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
import yaml
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule

from leam_mm.checkpoint_file import check_archive, compare_digest, write_with_digest
from leam_mm.checkpoint_generations import (
    DAMAGED,
    LAST,
    PREVIOUS,
    all_names,
    candidates,
    new_generation,
    next_generation,
    point_last,
    set_aside,
)
from leam_mm.checkpoint_shards import SHARDS, compare_parts, find_parts, open_parts
from leam_mm.config_error import innermost
from leam_mm.errors import UserError
from leam_mm.files import atomic_write
from leam_mm.recorded_classes import MODEL_CLASSES, build_recorded

EVIDENCE = "leam_mm"  # the checkpoint's entry with config, data and versions
# Which module has a part that others load; a subclass or another module with a part of that name serves as well.
PARTS = {
    "ema_encoder": "ContrastiveModule",
    "ema_codec": "LatentCodecModule",
    "ema_denoiser": "LatentDiffusionModule",
}
# The evidence of a checkpoint while its module is rebuilt. The weights come from the checkpoint, so the files that the
# run started from are not needed.
MAX_CONFIG, MAX_DEPTH = 1 << 20, 100  # characters and levels of brackets
# The types of what programs use of a checkpoint, where it is present.
FORM: dict[str, Any] = {
    **dict.fromkeys((EVIDENCE, SHARDS, "state_dict", "callbacks", "loops"), dict),
    **{"optimizer_states": list, "lr_schedulers": list, "epoch": int, "global_step": int},
}
EVIDENCE_FORM: dict[str, Any] = {
    **dict.fromkeys(
        ("code", "data", "versions", "arithmetic", "frozen", "pretrained", "reconstructed", "tokenizer"), dict
    ),
    **{"config": str, "model_class": str, "random_stream": str, "samples_seen": int | None},
    **{"steps": int, "schedule": dict | None, "changes": list, "data_now": list},
}
ENERGY_FORM: dict[str, Any] = {
    **dict.fromkeys(("joules", "estimated_joules", "location_grams", "location_joules"), int | float | None),
    **dict.fromkeys(("market_grams", "market_joules", "grams_per_kwh", "market_grams_per_kwh"), int | float | None),
    **{"pue": int | float | None, "carbon_source": str | None},
    **dict.fromkeys(("began_at", "ended_at", "hardware"), str | None),
    **dict.fromkeys(("seconds", "cpu_seconds", "node_seconds", "measured_node_seconds", "samples"), int | float),
    **dict.fromkeys(("source", "coverage"), str),
}
REBUILDING: ContextVar[dict[str, Any] | None] = ContextVar("REBUILDING", default=None)
Module = TypeVar("Module", bound=LightningModule)
log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint writer that leaves the older checkpoints whole, whenever the run is killed.

    Args:
        keep: Number of generations that stay in the folder of a ``last.ckpt``; see checkpoint_generations.py.
    """

    failure: str | None = None  # the line of a save that failed, where failures do not end the run

    def __init__(self, keep: int = 2) -> None:
        """See the class for the arguments."""
        self.keep = keep

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write to a temporary file, flush it to the disk, rename; a path ``last.ckpt`` becomes a new generation."""
        target = Path(path)
        samples = checkpoint.get(EVIDENCE, {}).get("samples_seen")
        if target.name == LAST:
            self.save_generation(checkpoint, next_generation(target.parent, samples))
        else:
            with atomic_write(target) as temporary:
                _write(checkpoint, temporary)

    def begin(self, content: Any, work: Callable[[Any], None], agree: Callable[[bool], bool] = bool) -> None:
        """Do the work of a save with its content; a writer in the background copies the content and does it later.

        Args:
            content: Of nested dicts, lists and tuples.
            work: Writes the content.
            agree: Whether any rank is late, where several write together; gets whether this one is.
        """
        work(content)

    def save_generation(self, checkpoint: dict[str, Any], target: Path) -> None:
        """Write a generation, the newest from now on, and remove the oldest ones."""
        with new_generation(target, self.keep) as temporary:
            _write(checkpoint, temporary)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Load to the CPU and never unpickle code, whatever the trainer asks for: the file may be hostile."""
        return read_checkpoint(path)


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    with open(path, "xb+") as file:
        write_with_digest(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())


def find_checkpoint(path: Path | str) -> Path:
    """Return the checkpoint file of a path: the file itself, or ``checkpoints/last.ckpt`` of a run folder.

    A run that was killed before its first ``last.ckpt`` was in place has its newest generation.
    """
    path = Path(path)
    for candidate in (path, path / "checkpoints" / LAST, path / LAST):
        if candidate.is_file():
            return candidate
    for folder in (path / "checkpoints", path):
        if found := candidates(folder):
            log.warning("%s is missing: %s is taken", folder / LAST, found[0].name)
            return found[0]
    raise UserError(f"no checkpoint at {path}: give a .ckpt file or a run folder with checkpoints/last.ckpt")


def is_run(path: Path | str) -> bool:
    """Return whether a path is a checkpoint file or the folder of a run, rather than published weights."""
    path = Path(path)
    return path.suffix == ".ckpt" or any(candidates(folder) for folder in (path, path / "checkpoints"))


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Load a checkpoint without unpickling code.

    Raises:
        UserError: The file is damaged, or was not written by train.py.
    """
    return _read(find_checkpoint(path))[0]


def read_evidence(path: Path | str) -> dict[str, Any]:
    """Return config, data and versions of a checkpoint; all its digests are compared, and sharded tensors not loaded.

    Raises:
        UserError: As `read_checkpoint`.
    """
    file = find_checkpoint(path)
    checkpoint = read_places(file)[0]
    if SHARDS in checkpoint:
        compare_parts(*find_parts(checkpoint, file))
    return checkpoint[EVIDENCE]


def _read(file: Path) -> tuple[dict[str, Any], str]:
    """Return a checkpoint with its sharded tensors in their places, and the SHA-256 of its file."""
    checkpoint, sha256 = read_places(file)
    if SHARDS in checkpoint:
        try:
            parts = open_parts(checkpoint, file)
            checkpoint = parts.whole({name: value for name, value in checkpoint.items() if name != SHARDS})
        except UserError:
            raise
        except Exception as error:  # of a hostile file
            reason = str(error).split("\n", 1)[0][:200]
            raise UserError(f"{file}: its parts do not fit ({reason}); use an intact checkpoint") from None
    return checkpoint, sha256


def read_places(file: Path) -> tuple[dict[str, Any], str]:
    """Return a checkpoint, in which sharded tensors are only named, and the SHA-256 of its file.

    The file is opened once: another process may replace it.

    Raises:
        UserError: As `read_checkpoint`.
    """
    try:
        with open(file, "rb") as stream:
            sha256 = compare_digest(stream, file)
            check_archive(stream)
            stream.seek(0)
            checkpoint = torch.load(stream, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # torch raises half a dozen kinds for damaged, foreign or hostile files
        reason = str(error).split("\n", 1)[0][:200]
        raise UserError(f"{file} cannot be read as a checkpoint ({reason}); use an intact file of train.py") from None
    if not isinstance(checkpoint, dict) or EVIDENCE not in checkpoint:
        raise UserError(
            f"{file} was not written by train.py: its config is missing, so no model can be rebuilt from it"
        )
    _check_form(checkpoint, f"{file}: ", FORM)
    _check_form(checkpoint[EVIDENCE], f"{file}: {EVIDENCE}.", EVIDENCE_FORM)
    energy = checkpoint.get("callbacks", {}).get("EnergyRecord", {})
    _check_form({"EnergyRecord": energy}, f"{file}: callbacks.", {"EnergyRecord": dict})
    _check_form(energy, f"{file}: callbacks.EnergyRecord.", ENERGY_FORM)
    for name, part in checkpoint[EVIDENCE].get("frozen", {}).items():
        _check_form({"part": part}, f"{file}: {EVIDENCE}.frozen.{name}: ", {"part": dict})
        _check_form(part, f"{file}: {EVIDENCE}.frozen.{name}.", {"path": str, "sha256": str, "statistics": dict})
    return checkpoint, sha256


def _check_form(found: dict[str, Any], where: str, form: dict[str, Any]) -> None:
    for name, kind in form.items():
        if name in found and not isinstance(found[name], kind):
            raise UserError(
                f"{where}{name} is of type {type(found[name]).__name__}: the file was edited; take an intact one"
            )


def sound_checkpoint(last: Path, replace: bool) -> tuple[Path, dict[str, Any]] | None:
    """Return the checkpoint that a run resumes from: the last one, or the newest good one if the last is damaged.

    Args:
        last: ``last.ckpt`` of the run.
        replace: Point ``last.ckpt`` to the chosen one; the newest damaged one is kept as ``damaged.ckpt``.

    Returns:
        The file and its evidence, or None if there is no checkpoint.

    Raises:
        UserError: All are damaged, or a folder has the name of a checkpoint.
    """
    for name in (LAST, PREVIOUS, DAMAGED):
        if last.with_name(name).is_dir():
            raise UserError(f"{last.with_name(name)} is a folder, but a checkpoint has this name: rename or remove it")
    files = candidates(last.parent)
    faults = [f"{last} is missing"] if files and files[0] != last else []
    damaged: list[Path] = []
    for file in files:
        try:
            evidence = read_evidence(file)
        except UserError as error:
            faults.append(str(error))
            damaged.append(file)
            continue
        if not faults:
            return file, evidence
        if replace:
            set_aside(damaged)
            point_last(file)
            older = f"the run resumes from the checkpoint before the last one, {file.name}"
            log.warning("%s: %s", older, "; ".join(faults))
        return last if replace else file, evidence
    if not files:
        return None
    names = ", ".join(file.name for file in all_names(last.parent))
    raise UserError(f"{'; '.join(faults)}: remove {names} from {last.parent} to start the run anew")


def checkpoint_config(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the resolved config of the run that wrote a checkpoint.

    Raises:
        UserError: It is missing, or no mapping of mappings.
    """
    text = checkpoint[EVIDENCE].get("config", "")
    try:
        if len(text) > MAX_CONFIG:
            raise ValueError(f"it has more than {MAX_CONFIG} characters")
        if _depth(text) > MAX_DEPTH:
            raise ValueError(f"it has more than {MAX_DEPTH} levels")
        config = yaml.safe_load(text)
        for name in ("model", "data"):
            section = config.get(name, {})
            if not isinstance(section, dict) or not isinstance(section.get("init_args", {}), dict):
                raise ValueError(f"{name} or its init_args is no mapping")
    except (yaml.YAMLError, ValueError, AttributeError, TypeError, RecursionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"the config in the checkpoint cannot be read ({reason}): use an intact file of train.py"
        ) from None
    return config


def _depth(text: str) -> int:
    """Return how deep brackets are nested; PyYAML takes quadratic time for them."""
    depth = most = 0
    for letter in re.findall(r"[][{}]", text):
        depth = max(0, depth + (1 if letter in "[{" else -1))
        most = max(most, depth)
    return most


def restoring_failed(error: BaseException) -> bool:
    """Return whether an error was raised while Lightning restored the state of a run from a checkpoint."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [f.f_code.co_name for f in frames if f.f_globals.get("__name__", "").endswith(".checkpoint_connector")]
    return any("restore" in name or name == "resume_start" for name in names)


def refuse_other_weights(checkpoint: dict[str, Any], origin: dict[str, Any]) -> None:
    """Refuse to resume from a checkpoint whose run started from other pretrained weights.

    Args:
        checkpoint: Its evidence names the weights that the run started from under ``pretrained``, if there were any.
        origin: The weights configured now, with their sha256; empty if none are.
    """
    before, now = (weights.get("sha256") for weights in (checkpoint.get(EVIDENCE, {}).get("pretrained", {}), origin))
    if before != now:
        raise UserError(
            f"the checkpoint was trained from other weights (sha256 {str(before)[:12]}) than are configured now "
            f"({str(now)[:12]}): configure the old ones, or start a new run folder"
        )


def build_module(section: dict[str, Any] | None) -> LightningModule:
    """Build a module from the ``model:`` section of a config, which may come from someone else.

    Raises:
        UserError: It names a class that is neither ours nor trusted; see recorded_classes.py.
    """
    return build_recorded(section, LightningModule, MODEL_CLASSES)


@overload
def load_module(path: Path | str, expected: type[Module]) -> Module: ...
@overload
def load_module(path: Path | str, expected: str | None = None) -> LightningModule: ...
def load_module(path: Path | str, expected: type[LightningModule] | str | None = None) -> LightningModule:
    """Rebuild a trained module from its checkpoint alone.

    Args:
        path: A .ckpt file or a run folder.
        expected: Class that the module must be an instance of, or name of a method or attribute that it must have; a
            name spares low layers the import of the class. None accepts any module.

    Returns:
        The module in eval mode on the CPU, with a ``checkpoint_evidence`` dict (path, sha256, samples_seen, data).

    Raises:
        UserError: The file is damaged, holds another kind of module, or its weights do not fit its config.
    """
    file = find_checkpoint(path)
    checkpoint, sha256 = _read(file)
    rebuilding = REBUILDING.set({**checkpoint[EVIDENCE], "file": str(file)})
    try:
        module = build_module(checkpoint_config(checkpoint).get("model"))
    except Exception as error:  # jsonargparse and the constructors raise many kinds of exceptions
        reason = innermost(str(error))
        raise UserError(f"{file}: the model of its config cannot be rebuilt here ({reason})") from None
    finally:
        REBUILDING.reset(rebuilding)
    if isinstance(expected, type):
        fits, needed = isinstance(module, expected), expected.__name__
    else:
        fits = expected is None or hasattr(module, expected)
        needed = PARTS.get(expected or "", f"module with {expected}")
    if not fits:
        raise UserError(
            f"{file} holds a {type(module).__name__}, but a {needed} is needed here: give the checkpoint of such a run"
        )
    try:
        module.load_state_dict(checkpoint.get("state_dict", {}))
    except Exception as error:  # torch raises many kinds for entries that are no tensors, or of other forms
        reason = (str(error).strip() or type(error).__name__).split("\n")[-1][:200]
        raise UserError(f"{file}: weights and config inside do not fit ({reason}); the file was edited") from None
    evidence = {
        "path": str(file),
        "sha256": sha256,
        **{name: value for name, value in checkpoint[EVIDENCE].items() if name not in ("config", "tokenizer")},
    }
    setattr(module, "checkpoint_evidence", evidence)  # noqa: B010 (an attribute torch's Module does not declare)
    return module.eval()


def load_part(path: Path | str, name: str) -> Any:
    """Load one part of a trained module, without importing the module's class.

    Args:
        path: A .ckpt file or a run folder.
        name: Attribute of the recorded module, or method without arguments, which is called: ``"ema_encoder"``,
            ``"ema_denoiser"``, ``"ema_codec"``.

    Returns:
        The part in eval mode on the CPU; a torch module carries the ``checkpoint_evidence`` of `load_module`.

    Raises:
        UserError: As `load_module`; or the checkpoint's module has no such part.
    """
    module = load_module(path, name)
    part = getattr(module, name)
    if inspect.ismethod(part):
        part = part()
    if isinstance(part, torch.nn.Module):
        setattr(part, "checkpoint_evidence", module.checkpoint_evidence)  # noqa: B010
    return part
