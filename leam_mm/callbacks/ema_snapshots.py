"""Snapshots of power-function averages during training, from which reconstruct_ema.py makes averages of other widths.

trainer:
  callbacks:
  - class_path: leam_mm.callbacks.ema_snapshots.EmaSnapshots
    init_args: {every_n_samples: 100000}

Each snapshot is one file, ``ema_snapshots/000000100000.safetensors`` in the run folder. A resumed run writes those
after its checkpoint again, equal bit for bit.
"""

import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from leam_mm.data.batch import samples_seen
from leam_mm.distributed import any_rank
from leam_mm.errors import UserError
from leam_mm.files import TEMPORARY, atomic_write
from leam_mm.json_text import parse_object
from leam_mm.optim.power_ema import PowerEma
from leam_mm.system_fault import system_fault

FOLDER = "ema_snapshots"
ENTRY = "leam_mm"  # the only key of a file's metadata, since the order of several would vary
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """Metadata of a file.

    Args:
        samples: Samples seen.
        updates: Updates of the averages, the t of their profiles.
        widths: sigma_rel of the averages; the weight `name` of the i-th is the tensor `i.name`.
    """

    samples: int
    updates: int
    widths: tuple[float, ...]


class EmaSnapshots(Callback):
    """Write the averages of a PowerEma at an interval in samples, and at the end of the run.

    Args:
        every_n_samples: Interval; a snapshot is written after the optimizer step that completes it. Ten or twenty per
            run suffice; each is as large as all averages.

    A full disk ends no run: a warning is given, and the averages are written after another tenth of the interval. Only
    the snapshot at the end of the run must succeed; it is written before the checkpoint, so that the same command
    writes it again.
    """

    def __init__(self, every_n_samples: int) -> None:
        """See the class for the arguments."""
        if every_n_samples < 1:
            raise UserError(f"EmaSnapshots: every_n_samples is {every_n_samples}: give at least 1")
        self.every_n_samples = every_n_samples
        self._seen = 0  # at the last optimizer step
        self._again: int | None = None  # samples seen after which a snapshot that failed is written

    def state_dict(self) -> dict[str, int | None]:
        """Return the samples seen at the last optimizer step, and those at which a failed snapshot is due."""
        return {"seen": self._seen, "again": self._again}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the checkpoint."""
        self._seen, self._again = state_dict["seen"], state_dict.get("again")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the size of a snapshot; remove files that a killed run wrote after its last checkpoint."""
        average = _average(pl_module)
        size = sum(value.numel() * value.element_size() for kept in average.copies() for value in kept.parameters())
        self._step = trainer.global_step
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / FOLDER
        log.info("a snapshot of the averages every %d samples, %.1f MB each", self.every_n_samples, size / 1e6)
        numbered = [path for path in folder.glob("*.safetensors") if path.stem.isdigit()]
        later = [path for path in numbered if int(path.stem) > self._seen]
        for path in [*later, *folder.glob(f"*{TEMPORARY}*")]:
            path.unlink()
        if later:
            log.info("%d snapshots after sample %d are removed and will be written again", len(later), self._seen)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Write at the end of an interval and of the run, before the checkpoint is written."""
        if trainer.global_step == self._step:
            return  # gradient accumulation
        self._step = trainer.global_step
        seen = samples_seen(trainer)
        if seen is None:
            raise UserError("EmaSnapshots needs the number of samples seen, which train.py counts: use train.py")
        due = seen // self.every_n_samples > self._seen // self.every_n_samples
        due |= self._again is not None and seen >= self._again
        self._seen = seen
        if due or trainer.global_step == trainer.max_steps:
            self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, module: LightningModule) -> None:
        average, failure = _average(module), None
        tensors = gather(average)  # a collective if the weights are sharded
        if trainer.is_global_zero:
            snapshot = Snapshot(self._seen, int(average.updates), tuple(average.widths))
            try:
                write_snapshot(Path(trainer.default_root_dir) / FOLDER, snapshot, tensors)
            except UserError as error:
                if system_fault(error) is None:
                    raise
                failure = error
        failed, self._again = any_rank(failure is not None, module.device), None
        if failed and trainer.global_step == trainer.max_steps:
            raise failure or UserError("the first rank could not write a snapshot of the averages: see its message")
        if failed:
            self._again = self._seen + max(1, self.every_n_samples // 10)
            rank_zero_warn(f"no snapshot of the averages is written, training continues and tries again: {failure}")


def _average(module: LightningModule) -> PowerEma:
    average = getattr(module, "ema", None)
    if not isinstance(average, PowerEma):
        raise UserError(
            "EmaSnapshots keeps power-function averages, and this model has none: set model.init_args.ema to "
            "leam_mm.optim.power_ema.PowerFunction, or remove EmaSnapshots from trainer.callbacks"
        )
    return average


def gather(average: PowerEma) -> dict[str, Tensor]:
    """Return the full weights on the CPU, under the names of a file."""
    return {
        f"{number}.{name}": (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu().contiguous()
        for number, kept in enumerate(average.copies())
        for name, value in kept.named_parameters()
    }


def tensors_sha256(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return one SHA-256 over the names, types, shapes and bytes of tensors, in the given order."""
    digest = hashlib.sha256()
    for name, value in tensors:
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_snapshot(folder: Path, snapshot: Snapshot, tensors: dict[str, Tensor]) -> Path:
    """Write one file atomically and flush it to the disk."""
    path = folder / f"{snapshot.samples:012d}.safetensors"
    record = asdict(snapshot) | {"sha256": tensors_sha256(sorted(tensors.items()))}
    try:
        with atomic_write(path, durable=True) as temporary:
            save_file(tensors, temporary, {ENTRY: json.dumps(record)})
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be written ({error}): make room, then start the same command again") from error
    return path


def read_snapshots(run: Path) -> list[tuple[Path, Snapshot]]:
    """Return the snapshots of a run, the oldest first.

    Raises:
        UserError: There are none, or a file is damaged or of another kind.
    """
    folder = run / FOLDER
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                content = parse_object((file.metadata() or {})[ENTRY])
                names = sorted(file.keys())
                digest = tensors_sha256((name, file.get_tensor(name)) for name in names)
            if content.get("sha256", digest) != digest:  # older files state none
                raise ValueError("its content does not have the digest that it states")
            widths = tuple(float(width) for width in content["widths"])
            found.append((path, Snapshot(int(content["samples"]), int(content["updates"]), widths)))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise UserError(f"{path} is damaged, or not a snapshot of averages ({error!r:.200}): remove it") from None
    if not found:
        raise UserError(
            f"{folder} holds no snapshots: train with leam_mm.callbacks.ema_snapshots.EmaSnapshots in trainer.callbacks"
        )
    return found
