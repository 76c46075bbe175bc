"""Checkpoints of sharded weights: every rank writes and reads its own shards; see checkpoint_shards.py for the files.

Rank 0 names a temporary folder, each rank writes its part there, and all exchange whether it succeeded. Then rank 0
writes the manifest, renames the folder, and writes the checkpoint that refers to it: only this last rename makes the
new checkpoint the newest, and a kill before it leaves the older ones as they are.
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from leam_mm.checkpoint import EVIDENCE, AtomicCheckpointIO
from leam_mm.checkpoint_generations import NO_ROOM, make_room, next_generation
from leam_mm.checkpoint_shards import (
    SHARDS,
    Parts,
    compare_parts,
    find_parts,
    is_placeholder,
    placeholder,
    replace_leaves,
    shards_folder,
    write_manifest,
    write_part,
)
from leam_mm.errors import UserError
from leam_mm.files import temporary_path
from leam_mm.system_fault import fault_line, system_fault

STATES = ("state_dict", "optimizer_states")  # entries of a checkpoint with sharded tensors
Pieces = dict[str, tuple[Tensor, Sequence[int]]]
Group = Any  # torch's process group; None means that of training
log = logging.getLogger(__name__)


def save_parts(
    checkpoint: dict[str, Any],
    folder: Path,
    writer: AtomicCheckpointIO,
    group: Group = None,
    agree: Callable[[bool], bool] = bool,
) -> None:
    """Write a generation in parts, on all ranks; a fault of the machine is a warning, and the older ones stay.

    On a full disk the checkpoints older than the newest good one make room, and the ranks try once more.

    Args:
        checkpoint: With DTensors in ``STATES``; whatever else it holds is written by rank 0.
        folder: Of the generations.
        writer: Its ``failure`` holds the line of a fault until a save succeeds, on all ranks.
        group: The ranks, in a gloo group of their own if the writer is asynchronous: its thread communicates while
            training does. None takes that of training.
        agree: Whether any rank is late, asked by all ranks together; gets whether this one is.
    """
    places, pieces = split(checkpoint)
    writer.begin((places, pieces), lambda held: _save(held[0], held[1], folder, writer, group), agree)


def _save(places: dict[str, Any], pieces: Pieces, folder: Path, writer: AtomicCheckpointIO, group: Group) -> None:
    line, full = _try_to_save(places, pieces, folder, writer, group)
    removed: list[Path] = []
    if full and dist.get_rank() == 0:
        removed = make_room(folder)
        if removed:
            log.warning(
                "%s has no room for a new checkpoint beside the old ones: the newest stays, and %s made room; free "
                "space on that disk, or set checkpoint.keep lower",
                *(folder, ", ".join(file.name for file in removed)),
            )
    if full and _from_first(bool(removed), group):
        line, full = _try_to_save(places, pieces, folder, writer, group)
    writer.failure = line
    if line is not None and dist.get_rank() == 0:
        log.warning("no checkpoint is saved, training continues and tries again later: %s", line)


def _try_to_save(
    places: dict[str, Any], pieces: Pieces, folder: Path, writer: AtomicCheckpointIO, group: Group
) -> tuple[str | None, bool]:
    """Return, equal on all ranks, the line of a fault, or None, and whether it is a full disk."""
    first, target, temporary = dist.get_rank() == 0, Path(), Path()
    fault: Exception | None = None
    if first:
        try:
            target = next_generation(folder, places.get(EVIDENCE, {}).get("samples_seen"), again=False)
            temporary = temporary_path(shards_folder(target))
            shutil.rmtree(shards_folder(target), ignore_errors=True)  # of a run killed before its checkpoint
            temporary.mkdir(parents=True)
        except OSError as error:
            fault = error
    temporary, lines = _from_first(temporary, group), _exchange(fault, group)
    try:
        if lines[0] is None:
            try:
                write_part(temporary, dist.get_rank(), {key: (piece.cpu(), at) for key, (piece, at) in pieces.items()})
            except Exception as error:  # torch wraps faults of the disk in errors of its own
                fault = error
            lines = _exchange(fault, group)
            if lines[0] is None:
                if first:
                    try:
                        _publish(places, temporary, target, writer)
                    except Exception as error:
                        fault = error
                lines = _exchange(fault, group)
    finally:
        if first:
            shutil.rmtree(temporary, ignore_errors=True)
    line, full, foreseen = lines
    if line is not None and not foreseen:  # on all ranks: one alone would leave the others waiting
        raise RuntimeError(line) from fault
    return line, full


def _publish(places: dict[str, Any], temporary: Path, target: Path, writer: AtomicCheckpointIO) -> None:
    places[SHARDS] = {"folder": shards_folder(target).name, "sha256": write_manifest(temporary)}
    temporary.rename(shards_folder(target))
    try:
        writer.save_generation(places, target)
    except BaseException:
        if not target.exists():
            shutil.rmtree(shards_folder(target), ignore_errors=True)
        raise


def _exchange(fault: Exception | None, group: Group) -> tuple[str | None, bool, bool]:
    """Return, equal on all ranks, the line of a fault, whether it is a full disk, and whether it is of the machine."""
    known = system_fault(fault) if fault is not None else None
    line = None if fault is None else fault_line(fault) or f"{type(fault).__name__}: {fault}"
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, (line, known is not None and known.errno in NO_ROOM, known is not None), group=group)
    return next((one for one in found if one[0] is not None), (None, False, False))


def _from_first(value: Any, group: Group) -> Any:
    found = [value]
    dist.broadcast_object_list(found, src=0, group=group)
    return found[0]


def split(checkpoint: dict[str, Any]) -> tuple[dict[str, Any], Pieces]:
    """Return a checkpoint that names its sharded tensors, and this rank's pieces of them with their offsets."""
    pieces: Pieces = {}

    def place(key: str, value: DTensor) -> dict[str, Any]:
        local = value.to_local().detach()
        _, offset = compute_local_shape_and_global_offset(value.shape, value.device_mesh, value.placements)
        if local.numel():
            padded = local.untyped_storage().nbytes() > local.nbytes
            pieces[key] = local.clone() if padded else local, offset
        return placeholder(key, value.shape, value.dtype)

    states = {name: checkpoint[name] for name in STATES if name in checkpoint}
    return {**checkpoint, **replace_leaves(states, lambda value: isinstance(value, DTensor), place)}, pieces


def gather_whole(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint with whole tensors on the CPU of rank 0; all ranks take part."""

    def whole(_: str, value: DTensor) -> Tensor | None:
        found = value.full_tensor()
        return found.cpu() if dist.get_rank() == 0 else None

    states = {name: checkpoint[name] for name in STATES if name in checkpoint}
    return {**checkpoint, **replace_leaves(states, lambda value: isinstance(value, DTensor), whole)}


def open_parts_together(checkpoint: dict[str, Any], file: Path) -> Parts:
    """Open the parts of a checkpoint on all ranks, each of which compares the digests of its share of them.

    Raises:
        UserError: A part is missing or damaged; raised on all ranks.
    """
    line = None
    try:
        folder, parts = find_parts(checkpoint, file)
        compare_parts(folder, parts, sorted(parts)[dist.get_rank() :: dist.get_world_size()])
    except UserError as error:
        line = str(error)
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, line)
    if line := next((one for one in found if one), None):
        raise UserError(line)
    return Parts(folder, parts)


def read_shard(value: Any, like: Any, parts: Parts) -> Any:
    """Return a value of a checkpoint for this rank.

    Args:
        value: A plain value, or what stands for a sharded tensor.
        like: The parameter it belongs to, whose shards it takes if it has the parameter's shape.
        parts: Of the checkpoint.
    """
    if not is_placeholder(value):
        return value
    shape = value["shape"]
    if not isinstance(like, DTensor) or list(like.shape) != shape:
        return parts.read(value, shape, [0] * len(shape))
    mesh, placements = like.device_mesh, like.placements
    own, offset = compute_local_shape_and_global_offset(like.shape, mesh, placements)
    local = parts.read(value, own, offset if all(own) else [0] * len(shape)).to(like.to_local().device)
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())
